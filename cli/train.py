"""nic train."""

from pathlib import Path
from typing import Any

import click

from nic.errors import UsageError

__all__ = ["train"]


@click.group(short_help="Train models on your own pictures.")
def train() -> None:
    """Train models on your own pictures; needs nothing that coding does not need."""


DATA_HELP = (
    "Pictures: a folder, searched recursively, also in tar files, or a tar. Folders named val are set aside for"
    " validation. Repeatable."
)
data_option = click.option("--data", "sources", multiple=True, required=True, metavar="DIR_OR_TAR", help=DATA_HELP)
minutes_option = click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), required=True, help="Wall-clock length of the run."
)
run_option = click.option(
    "-o",
    "--output",
    "run",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of checkpoint and log; resumed.",
)
device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
precision_option = click.option(
    "--bfloat16/--float32",
    default=None,
    help="Precision of the transforms' convolutions; bfloat16 is the default on a GPU, and faster on processors that"
    " have it too.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode pictures."
)
batch_option = click.option(
    "--batch", type=click.IntRange(1), help="Crops a step and process, instead of the config's."
)
rate_option = click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Instead of the config's.")
perceptual_option = click.option(
    "--perceptual",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder with LPIPS's weights: alexnet*.pth of torchvision, lpips/alex.pth.",
)
adversary_option = click.option(
    "--adversary",
    type=click.FloatRange(0),
    default=0.0,
    metavar="WEIGHT",
    help="Weight of the loss to a discriminator that learns at the same time; by default there is none.",
)
note_option = click.option("--note", default="", help="A line for the model card: what the model was trained on.")


@train.command(short_help="Train the image codec.")
@data_option
@minutes_option
@run_option
@click.option("--config", default="tiny", show_default=True, help="A name in models/configs, or a TOML file.")
@click.option(
    "--start-from",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint (.pt), its averaged weights, or weight file (.safetensors) to start from.",
)
@click.option(
    "--codebooks",
    type=click.Path(exists=True, path_type=Path),
    help="Weight file: train with its vector quantizer instead of rounding.",
)
@device_option
@precision_option
@workers_option
@batch_option
@rate_option
def image(
    sources: tuple[str, ...],
    minutes: float,
    run: Path,
    config: str,
    start_from: Path | None,
    codebooks: Path | None,
    device: str,
    bfloat16: bool | None,
    workers: int,
    batch: int | None,
    learning_rate: float | None,
) -> None:
    """Train the image codec of a config for some minutes; the learning rate has decayed to zero when they end.

    On several GPUs: torchrun --nproc-per-node N --no-python nic train image ... Then run nic codebook fit.
    """
    from nic.models import config as configs
    from nic.models import store
    from nic.models.training.image import train as run_training

    model, options = read_config(config, configs.ImageConfig, batch, learning_rate)
    books = store.read_codebooks(codebooks) if codebooks else None
    data = [Path(source) for source in sources]
    half = device == "cuda" if bfloat16 is None else bfloat16
    run_training(model, options, data, run, minutes, device, workers, start_from, books, half)


@train.command(short_help="Train the codec of videos.")
@click.option(
    "--data", "clips", multiple=True, required=True, metavar="VIDEO", type=click.Path(exists=True), help="Repeatable."
)
@click.option("--photos", multiple=True, metavar="DIR_OR_TAR", help="Pictures, as for nic train image. Repeatable.")
@minutes_option
@run_option
@click.option("--config", default="video", show_default=True, help="A name in models/configs, or a TOML file.")
@click.option("--start-from", default="fidelity", show_default=True, help="Installed model to start from.")
@click.option("--passes", type=click.IntRange(1), default=2, show_default=True, help="Times each video is coded.")
@click.option(
    "--repeat", type=click.IntRange(1), default=4, show_default=True, help="How many photographs a frame counts as."
)
@device_option
@precision_option
@workers_option
def video(
    clips: tuple[str, ...],
    photos: tuple[str, ...],
    minutes: float,
    run: Path,
    config: str,
    start_from: str,
    passes: int,
    repeat: int,
    device: str,
    bfloat16: bool | None,
    workers: int,
) -> None:
    """Train the picture codec further on what is left of the frames of videos after their prediction.

    The videos are coded with the model that training starts from, and the residual pictures written to RUN/pictures,
    before the minutes count. Then run nic codebook fit --mode video.
    """
    import numpy as np
    from PIL import Image

    from nic.media import Source
    from nic.models import config as configs
    from nic.models import store
    from nic.models.training.image import train as run_training
    from nic.models.training.video import residual_pictures

    model, options = read_config(config, configs.ImageConfig, None, None)
    pictures, start = run / "pictures", store.load(start_from)
    if not isinstance(start, store.Model):
        raise UsageError(f"model {start_from} is of the extreme mode: start from a fidelity model")
    for seed, clip in [(seed, clip) for seed in range(passes) for clip in clips]:
        if not any(pictures.glob(f"*/{Path(clip).stem}-{seed}-*.png")):
            frames = np.stack(list(Source.open(clip).frames()))
            for index, picture in enumerate(residual_pictures(start, frames, seed)):
                part = pictures / ("val" if index % 20 == 19 else "train")
                target = part / f"{Path(clip).stem}-{seed}-{index:05}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(target)
    data = [pictures] * repeat + [Path(photo) for photo in photos]
    half = device == "cuda" if bfloat16 is None else bfloat16
    weights = Path(store.find(start_from)["path"])
    run_training(model, options, data, run, minutes, device, workers, weights, None, half)


@train.command(short_help="Train the extreme mode.")
@data_option
@minutes_option
@run_option
@click.option("--config", default="extreme", show_default=True, help="A name in models/configs, or a TOML file.")
@click.option(
    "--start-from",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Checkpoint (.pt) or weight file (.safetensors) of the fidelity mode, or checkpoint of this command.",
)
@perceptual_option
@click.option(
    "--synthesis-only", is_flag=True, help="Fit the codebooks to START-FROM's latents; only synthesis learns."
)
@adversary_option
@device_option
@precision_option
@workers_option
@batch_option
@rate_option
def extreme(
    sources: tuple[str, ...],
    minutes: float,
    run: Path,
    config: str,
    start_from: Path,
    perceptual: Path,
    synthesis_only: bool,
    adversary: float,
    device: str,
    bfloat16: bool | None,
    workers: int,
    batch: int | None,
    learning_rate: float | None,
) -> None:
    """Train the extreme mode of a config for some minutes; the learning rate has decayed to zero when they end.

    First from a fidelity codec, then from the result with --synthesis-only; then run nic train indices.
    """
    from nic.models import config as configs
    from nic.models.training.extreme import train as run_training

    model, options = read_config(config, configs.ExtremeConfig, batch, learning_rate)
    data = [Path(source) for source in sources]
    half = device == "cuda" if bfloat16 is None else bfloat16
    run_training(
        model, options, data, run, minutes, perceptual, start_from, device, workers, synthesis_only, half, adversary
    )


@train.command(short_help="Train the prior of the extreme mode's indices and write the weight file.")
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@data_option
@minutes_option
@run_option
@device_option
@workers_option
@note_option
def indices(
    checkpoint: Path,
    output: Path,
    sources: tuple[str, ...],
    minutes: float,
    run: Path,
    device: str,
    workers: int,
    note: str,
) -> None:
    """Turn the CHECKPOINT of nic train extreme --synthesis-only into the weight file OUTPUT.

    The pictures are coded, the prior of their indices is trained for some minutes and converted to integers. Prints,
    for each codebook, bits an index, the order-0 entropy, and the share of codewords in use.
    """
    from nic.models.training.indices import train as run_training

    identity = run_training(
        checkpoint, output, [Path(source) for source in sources], run, minutes, device, workers, note
    )
    click.echo(f"wrote {output}, model id {identity.hex()}")


@train.command(short_help="Train what fills lost cells of the extreme mode.")
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@data_option
@minutes_option
@run_option
@device_option
@workers_option
def recovery(weights: Path, sources: tuple[str, ...], minutes: float, run: Path, device: str, workers: int) -> None:
    """Train a network that guesses lost indices, and write it into the weight file WEIGHTS of nic train indices."""
    from nic.models.training.recovery import train as run_training

    run_training(weights, [Path(source) for source in sources], run, minutes, device, workers)


@train.command(short_help="Train the refiner and write its weight file.")
@click.argument("output", type=click.Path(path_type=Path))
@data_option
@minutes_option
@run_option
@click.option("--config", default="refiner", show_default=True, help="A name in models/configs, or a TOML file.")
@click.option("--fidelity", default="fidelity", show_default=True, help="Installed model, or weight file.")
@click.option("--extreme", default="extreme", show_default=True, help="Installed model, or weight file.")
@click.option(
    "--start-from",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint (.pt) of an earlier run to go on from.",
)
@perceptual_option
@adversary_option
@device_option
@precision_option
@workers_option
@batch_option
@rate_option
@note_option
def refine(
    output: Path,
    sources: tuple[str, ...],
    minutes: float,
    run: Path,
    config: str,
    fidelity: str,
    extreme: str,
    start_from: Path | None,
    perceptual: Path,
    adversary: float,
    device: str,
    bfloat16: bool | None,
    workers: int,
    batch: int | None,
    learning_rate: float | None,
    note: str,
) -> None:
    """Train the refiner of a config for some minutes, on what both modes' models make of pictures; write OUTPUT."""
    from nic.models import config as configs
    from nic.models import store
    from nic.models.training import refine as training

    model, options = read_config(config, configs.RefinerConfig, batch, learning_rate)

    def weights_of(name: str) -> Path:
        return Path(name) if Path(name).suffix else Path(store.find(name)["path"])

    data = [Path(source) for source in sources]
    half = device == "cuda" if bfloat16 is None else bfloat16
    checkpoint = training.train(
        model,
        options,
        data,
        run,
        minutes,
        perceptual,
        (weights_of(fidelity), weights_of(extreme)),
        device,
        workers,
        start_from,
        half,
        adversary,
    )
    identity = training.export(checkpoint, output, {"trained on": note})
    click.echo(f"wrote {output}, model id {identity.hex()}")


def read_config(name: str, sizes: type[Any], batch: int | None, learning_rate: float | None) -> tuple[Any, Any]:
    """The model and training tables of a config, with what the command line says instead; raises UsageError."""
    import dataclasses

    from nic.models.config import CONFIGS, read_toml

    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.exists():
        raise UsageError(f"no config {name}: there are {', '.join(p.stem for p in CONFIGS.glob('*.toml'))}")
    try:
        model, options = read_toml(path, sizes)
    except TypeError:
        raise UsageError(f"config {name} is not one of this command") from None
    return model, dataclasses.replace(
        options, batch=batch or options.batch, learning_rate=learning_rate or options.learning_rate
    )
