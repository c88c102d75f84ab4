"""nic info."""

import json
from functools import partial
from typing import Any

import click

from nic.cli.files import nic_files, read
from nic.cli.jobs import for_each
from nic.errors import BadFile, NicError

__all__ = ["info"]


@click.command(short_help="Show what .nic files hold, without decoding them.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each file.")
def info(files: tuple[str, ...], as_json: bool) -> None:
    """Show the size, quality, model and chunks of each .nic FILE, also of damaged ones; - is stdin, a folder all .nic
    files in it."""
    from nic.describe import describe

    def show(source: str) -> None:
        try:
            description = {"file": source, **describe(read(source))}
        except NicError as error:
            if as_json:
                click.echo(json.dumps({"file": source, "problems": [str(error)]}))
            raise
        click.echo(json.dumps(description) if as_json else _text(description))
        if description["problems"]:
            raise BadFile(description["problems"][0])

    for_each([(source, partial(show, source)) for source in nic_files(files)])


def _text(description: dict[str, Any]) -> str:
    """One `name: value` a line; of a list, one element a line."""
    lines = []
    for name, value in description.items():
        if isinstance(value, list):
            elements = (
                " ".join(map(str, element.values())) if isinstance(element, dict) else element for element in value
            )
            lines += [f"{name}:", *(f"  {element}" for element in elements)] if value else []
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)
