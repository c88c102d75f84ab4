"""nic train."""

from pathlib import Path

import click

from nic.errors import UsageError

__all__ = ["train"]


@click.group(short_help="Train models on your own pictures.")
def train() -> None:
    """Train models on your own pictures; needs nothing that coding does not need."""


@train.command(short_help="Train the image codec.")
@click.option(
    "--data",
    "sources",
    multiple=True,
    required=True,
    metavar="DIR_OR_TAR",
    help="Pictures: a folder, searched recursively, also in tar files, or a tar. Folders named val are set aside for"
    " validation. Repeatable.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="Wall-clock length of the run.")
@click.option(
    "-o",
    "--output",
    "run",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of checkpoint and log; resumed.",
)
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
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--bfloat16/--float32",
    default=None,
    help="Precision of the transforms' convolutions; bfloat16 is the default on a GPU, and faster on processors that"
    " have it too.",
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode pictures.")
@click.option("--batch", type=click.IntRange(1), help="Crops a step and process, instead of the config's.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Instead of the config's.")
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
    import dataclasses

    from nic.models import config as configs
    from nic.models import store
    from nic.models.training.image import train as run_training

    path = Path(config) if config.endswith(".toml") else configs.CONFIGS / f"{config}.toml"
    if not path.exists():
        raise UsageError(f"no config {config}: there are {', '.join(p.stem for p in configs.CONFIGS.glob('*.toml'))}")
    model, options = configs.read_toml(path)
    options = dataclasses.replace(
        options, batch=batch or options.batch, learning_rate=learning_rate or options.learning_rate
    )
    books = store.read_codebooks(codebooks) if codebooks else None
    data = [Path(source) for source in sources]
    half = device == "cuda" if bfloat16 is None else bfloat16
    run_training(model, options, data, run, minutes, device, workers, start_from, books, half)


@train.command(short_help="Train the codec of videos.")
@click.option(
    "--data", "clips", multiple=True, required=True, metavar="VIDEO", type=click.Path(exists=True), help="Repeatable."
)
@click.option("--photos", multiple=True, metavar="DIR_OR_TAR", help="Pictures, as for nic train image. Repeatable.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="Wall-clock length of the run.")
@click.option(
    "-o",
    "--output",
    "run",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of pictures, checkpoint and log; resumed.",
)
@click.option("--config", default="video", show_default=True, help="A name in models/configs, or a TOML file.")
@click.option("--start-from", default="fidelity", show_default=True, help="Installed model to start from.")
@click.option("--passes", type=click.IntRange(1), default=2, show_default=True, help="Times each video is coded.")
@click.option(
    "--repeat", type=click.IntRange(1), default=4, show_default=True, help="How many photographs a frame counts as."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--bfloat16/--float32", default=None, help="As for nic train image.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode pictures.")
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

    path = Path(config) if config.endswith(".toml") else configs.CONFIGS / f"{config}.toml"
    if not path.exists():
        raise UsageError(f"no config {config}: there are {', '.join(p.stem for p in configs.CONFIGS.glob('*.toml'))}")
    pictures, start = run / "pictures", store.load(start_from)
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
    run_training(*configs.read_toml(path), data, run, minutes, device, workers, weights, None, half)
