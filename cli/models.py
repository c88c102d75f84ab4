"""nic models."""

import json

import click

__all__ = ["models"]


@click.command(short_help="List the installed models.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each model, with its card.")
def models(as_json: bool) -> None:
    """List the installed models: the id that .nic files name, the model's name, mode, size and file."""
    from nic.models import store

    for model in store.available():
        if as_json:
            click.echo(json.dumps(model))
        else:
            megabytes = model["bytes"] / 1e6
            click.echo(f"{model['id']}  {model['name']}  {model['mode']}  {megabytes:.1f} MB  {model['path']}")
