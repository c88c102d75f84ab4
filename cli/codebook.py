"""nic codebook."""

from pathlib import Path

import click

from nic.cli.train import EXISTING, data_option, device_option, note_option, workers_option

__all__ = ["codebook"]


@click.group(short_help="Fit the codebooks of a trained model.")
def codebook() -> None:
    """Fit the codebooks of a trained model."""


@codebook.command(short_help="Fit codebooks and write the weight file.")
@click.argument("source", type=EXISTING)
@click.argument("output", type=click.Path(path_type=Path))
@data_option
@click.option("--crops", type=click.IntRange(1), default=400, show_default=True, help="256x256 crops a pass, 3 passes.")
@device_option
@workers_option
@click.option(
    "--mode",
    type=click.Choice(["fidelity", "video"]),
    help="What a checkpoint was trained for.  [default: fidelity]",
)
@click.option(
    "--codebooks",
    type=EXISTING,
    help="Weight file: keep its codewords, and only count their symbols. Takes minutes less.",
)
@note_option
def fit(
    source: Path,
    output: Path,
    data: tuple[Path, ...],
    crops: int,
    device: str,
    workers: int,
    mode: str | None,
    codebooks: Path | None,
    note: str,
) -> None:
    """Turn SOURCE, the checkpoint of nic train image, into the weight file OUTPUT.

    The prior is converted to integers. If SOURCE is a weight file, all but its codebooks stays. Entropy-constrained
    codebooks are fitted to the residuals of the pictures and their symbols counted. Prints, for each class, the
    dimension, codewords, and the share of them that is used.
    """
    from nic.models import store
    from nic.models.training.codebook import fit_weights

    books = store.read_codebooks(codebooks) if codebooks else None
    for row in fit_weights(source, output, data, crops, device, workers, note, mode, books):
        click.echo(row)
