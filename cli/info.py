"""nic info."""

import json
from functools import partial
from typing import Any

import click

from nic.cli.files import for_each, read

__all__ = ["info"]


@click.command(short_help="Show what .nic files hold, without decoding them.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each file.")
def info(files: tuple[str, ...], as_json: bool) -> None:
    """Show the size, quality, model and chunks of each .nic FILE; - is stdin."""
    from nic.describe import describe

    def show(source: str) -> None:
        description = {"file": source, **describe(read(source))}
        click.echo(json.dumps(description) if as_json else _text(description))

    for_each([(source, partial(show, source)) for source in files])


def _text(description: dict[str, Any]) -> str:
    """One `name: value` a line; of a list of objects, one object a line."""
    lines = []
    for name, value in description.items():
        if isinstance(value, list):
            lines += [f"{name}:", *("  " + " ".join(map(str, element.values())) for element in value)]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)
