"""nic codebook."""

from pathlib import Path

import click

__all__ = ["codebook"]


@click.group(short_help="Fit the codebooks of a trained model.")
def codebook() -> None:
    """Fit the codebooks of a trained model."""


@codebook.command(short_help="Fit codebooks and write the weight file.")
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--data", "sources", multiple=True, required=True, metavar="DIR_OR_TAR", help="As for nic train.")
@click.option("--crops", type=click.IntRange(1), default=400, show_default=True, help="256x256 crops a pass, 3 passes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode pictures.")
@click.option(
    "--mode",
    type=click.Choice(["fidelity", "video"]),
    default="fidelity",
    show_default=True,
    help="What it was trained for.",
)
@click.option(
    "--codebooks",
    type=click.Path(exists=True, path_type=Path),
    help="Weight file: keep its codewords, and only count their symbols. Takes minutes less.",
)
@click.option("--note", default="", help="A line for the model card: what the model was trained on.")
def fit(
    checkpoint: Path,
    output: Path,
    sources: tuple[str, ...],
    crops: int,
    device: str,
    workers: int,
    mode: str,
    codebooks: Path | None,
    note: str,
) -> None:
    """Turn the CHECKPOINT of nic train image or video into the weight file OUTPUT.

    The prior is converted to integers; entropy-constrained codebooks are fitted to the residuals of the pictures and
    their symbols counted. Prints, for each class, the dimension, codewords, and the share of them that is used.
    """
    from nic.models import store
    from nic.models.training.codebook import fit_weights

    books = store.read_codebooks(codebooks) if codebooks else None
    data = [Path(source) for source in sources]
    for row in fit_weights(checkpoint, output, data, crops, device, workers, note, mode, books):
        click.echo(row)
