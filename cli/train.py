"""nic train."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from nic.cli.options import Real
from nic.errors import UsageError

__all__ = ["EXISTING", "data_option", "device_option", "note_option", "train", "workers_option"]


@click.group(short_help="Train models on your own pictures.")
def train() -> None:
    """Train models on your own pictures; needs nothing that coding does not need."""


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Options as one decorator, in the order in which --help shows them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _crop(ctx: click.Context, param: click.Parameter, side: int | None) -> int | None:
    if side is not None and side % 64:
        raise click.BadParameter(f"{side} is no multiple of 64")
    return side


def _precision(ctx: click.Context, param: click.Parameter, bfloat16: bool | None) -> bool:
    return ctx.params["device"] == "cuda" if bfloat16 is None else bfloat16


def config_option(default: str) -> Callable[..., Any]:
    return click.option(
        "--config", default=default, show_default=True, help="A name in models/configs, or a TOML file."
    )


EXISTING = click.Path(exists=True, path_type=Path)
DATA_HELP = (
    "Pictures: a folder, searched recursively, also in tar files, or a tar. Folders named val are set aside for"
    " validation. Repeatable."
)
data_option = click.option("--data", multiple=True, required=True, metavar="DIR_OR_TAR", type=EXISTING, help=DATA_HELP)
device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    is_eager=True,  # it decides the default precision
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode pictures."
)
# Options are named as the arguments of the functions of nic.models.training, which get them as they are.
schedule_options = together(
    click.option("--minutes", type=Real(0, min_open=True), required=True, help="Wall-clock length of the run."),
    click.option(
        "-o",
        "--output",
        "run",
        type=click.Path(file_okay=False, writable=True, path_type=Path),
        required=True,
        help="Folder of checkpoint and log; resumed.",
    ),
    device_option,
)
run_options = together(schedule_options, workers_option)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder; what is there stays.",
)
precision_option = click.option(
    "--bfloat16/--float32",
    default=None,
    callback=_precision,
    help="Precision of the transforms' convolutions; bfloat16 is the default on a GPU, and faster on processors that"
    " have it too.",
)
tuning_options = together(
    precision_option,
    click.option("--batch", type=click.IntRange(1), help="Crops a step and process, instead of the config's."),
    click.option(
        "--crop", type=click.IntRange(64), callback=_crop, help="Its sides in pixels, instead of the config's."
    ),
    click.option("--learning-rate", type=Real(0, min_open=True), help="Instead of the config's."),
)
perceptual_options = together(
    click.option(
        "--perceptual",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        required=True,
        help="Folder with LPIPS's weights: alexnet*.pth of torchvision, lpips/alex.pth; and DISTS's: vgg16*.pth of"
        " torchvision, dists/weights.pt.",
    ),
    click.option(
        "--dists",
        "dists_weight",
        type=Real(0),
        default=0.0,
        metavar="WEIGHT",
        help="Weight of DISTS in the loss, beside LPIPS's of 1; by default 0, which takes half as long.",
    ),
    click.option(
        "--adversary",
        "adversary_weight",
        type=Real(0),
        default=0.0,
        metavar="WEIGHT",
        help="Weight of the loss to a discriminator that learns at the same time and sees what DISTS does; by default"
        " there is none.",
    ),
)
START_HELP = "Checkpoint (.pt), its averaged weights, or weight file (.safetensors) to start from."
codebooks_option = click.option(
    "--codebooks", type=EXISTING, help="Weight file: train with its vector quantizer instead of rounding."
)
note_option = click.option("--note", default="", help="A line for the model card: what the model was trained on.")


@train.command(short_help="Train the image codec.")
@data_option
@run_options
@config_option("tiny")
@click.option("--start-from", type=EXISTING, help=START_HELP)
@codebooks_option
@tuning_options
def image(
    config: str, codebooks: Path | None, batch: int | None, crop: int | None, learning_rate: float | None, **run: Any
) -> None:
    """Train the image codec of a config for some minutes; the learning rate has decayed to zero when they end.

    On several GPUs: torchrun --nproc-per-node N --no-python nic train image ... Then run nic codebook fit.
    """
    from nic.models import store
    from nic.models.config import ImageConfig
    from nic.models.training import image as training

    model, options = read_config(config, ImageConfig, batch=batch, crop=crop, learning_rate=learning_rate)
    training.train(model, options, codebooks=store.read_codebooks(codebooks) if codebooks else None, **run)


@train.command(short_help="Make the latents that a synthesis alone is trained on.")
@click.argument("videos", nargs=-1, type=EXISTING)
@data_option
@output_option
@click.option("--count", type=click.IntRange(1), default=3200, show_default=True, help="Pictures of 256x256 pixels.")
@click.option("--coded-by", default="fidelity", show_default=True, help="Installed model that codes them.")
@workers_option
def latents(
    videos: tuple[Path, ...], data: tuple[Path, ...], output: Path, count: int, coded_by: str, workers: int
) -> None:
    """Code crops of photographs at random qualities as nic compress does, and keep their latents.

    With a model of videos: frames of VIDEOS and of photographs that are set in motion. A process takes about half a
    second for a picture. Then run nic train synthesis.
    """
    from nic.searched import write_shards

    for path in write_shards(output, data, videos, count, coded_by, workers):
        click.echo(f"wrote {path}")


@train.command(short_help="Train the synthesis of the image codec alone.")
@click.argument("weights", type=EXISTING)
@click.option(
    "--latents",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of nic train latents.",
)
@schedule_options
@config_option("medium")
@precision_option
@click.option("--batch", type=click.IntRange(1), help="Crops a step and process, instead of the config's.")
@click.option("--learning-rate", type=Real(0, min_open=True), help="Instead of the config's.")
def synthesis(config: str, batch: int | None, learning_rate: float | None, **run: Any) -> None:
    """Train the synthesis in the weight file WEIGHTS for some minutes; the model id stays, unless it is of videos.

    The config may add a post-filter; it learns at the learning rate, all else at a twentieth of it. Without a new one,
    the post-filter learns four times as fast as the rest, for which 5e-5 is a good rate.
    """
    from nic.models.config import ImageConfig
    from nic.models.training import synthesis as training

    training.train(*read_config(config, ImageConfig, batch=batch, learning_rate=learning_rate), **run)


@train.command(short_help="Make the pictures that the codec of videos is trained on.")
@click.argument("videos", nargs=-1, required=True, type=EXISTING)
@output_option
@click.option("--photos", multiple=True, metavar="DIR_OR_TAR", type=EXISTING, help="Set these in motion, too.")
@click.option("--moving", type=click.IntRange(1), default=72, show_default=True, help="Clips made of --photos.")
@click.option("--passes", type=click.IntRange(1), default=2, show_default=True, help="Times each video is coded.")
@click.option("--coded-by", default="video", show_default=True, help="Installed model that codes them.")
@device_option
@workers_option
def residuals(
    videos: tuple[Path, ...],
    output: Path,
    photos: tuple[Path, ...],
    moving: int,
    passes: int,
    coded_by: str,
    device: str,
    workers: int,
) -> None:
    """Write what is left of the frames of VIDEOS after their prediction, as pictures.

    Then run nic train image --config video with these pictures and with photographs as data.
    """
    from nic.models import store
    from nic.models.training.data import read_photos
    from nic.models.training.loop import device_of
    from nic.models.training.video import in_motion
    from nic.searched import read_clip

    coder = store.load(coded_by, str(device_of(device)))
    if not isinstance(coder, store.Model):
        raise UsageError(f"model {coded_by} is of the extreme mode: name one of fidelity mode or of videos")
    for number, video in enumerate(videos):
        for seed in range(passes):
            write_residuals(coder, partial(read_clip, video), seed, output / f"{number}-{video.stem}-{seed}")
    still = read_photos(photos, workers=workers) if photos else []
    if len(still) == 1:
        raise UsageError("--photos must have two pictures at least: one moves before the other")
    for seed in range(moving if photos else 0):
        write_residuals(coder, partial(in_motion, still, seed), seed, output / f"moving-{seed:03}")


def write_residuals(coder: Any, frames: Callable[[], Any], seed: int, folder: Path) -> None:
    """The residual pictures of a clip, every twentieth for validation, unless the folder is there already."""
    import numpy as np
    from PIL import Image

    from nic.models.training.video import residual_pictures

    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.partial")
    for part in ("train", "val"):
        (unfinished / part).mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(residual_pictures(coder, np.asarray(frames()), seed)):
        Image.fromarray(picture).save(unfinished / ("val" if index % 20 == 19 else "train") / f"{index:05}.png")
    unfinished.rename(folder)
    click.echo(f"wrote {folder}")


@train.command(short_help="Train the extreme mode.")
@data_option
@run_options
@config_option("extreme")
@click.option(
    "--start-from",
    type=EXISTING,
    required=True,
    help="Checkpoint (.pt) or weight file (.safetensors) of the fidelity mode, or checkpoint of this command.",
)
@click.option(
    "--synthesis-only", is_flag=True, help="Fit the codebooks to START-FROM's latents; only synthesis learns."
)
@click.option(
    "--into",
    type=EXISTING,
    help="With --synthesis-only: weight file with START-FROM's codebooks that gets the synthesis; its model id stays.",
)
@perceptual_options
@tuning_options
def extreme(config: str, batch: int | None, crop: int | None, learning_rate: float | None, **run: Any) -> None:
    """Train the extreme mode of a config for some minutes; the learning rate has decayed to zero when they end.

    First from a fidelity codec or an earlier run, then from the result with --synthesis-only; then run nic train
    indices.
    """
    from nic.models.config import ExtremeConfig
    from nic.models.training import extreme as training

    training.train(*read_config(config, ExtremeConfig, batch=batch, crop=crop, learning_rate=learning_rate), **run)


@train.command(short_help="Train the prior of the extreme mode's indices and write the weight file.")
@click.argument("checkpoint", type=EXISTING)
@click.argument("output", type=click.Path(path_type=Path))
@data_option
@run_options
@note_option
def indices(output: Path, **run: Any) -> None:
    """Turn the CHECKPOINT of nic train extreme --synthesis-only into the weight file OUTPUT.

    The pictures are coded, the prior of their indices is trained for some minutes and converted to integers. Prints,
    for each codebook, bits an index, the order-0 entropy, and the share of codewords in use.
    """
    from nic.models.training import indices as training

    identity = training.train(output=output, **run)
    if identity:  # it is the first process that writes
        click.echo(f"wrote {output}, model id {identity.hex()}")


@train.command(short_help="Train what fills lost cells of the extreme mode.")
@click.argument("weights", type=EXISTING)
@data_option
@run_options
def recovery(**run: Any) -> None:
    """Train a network that guesses lost indices, and write it into the weight file WEIGHTS of nic train indices."""
    from nic.models.training import recovery as training

    training.train(**run)


@train.command(short_help="Train the refiner and write its weight file.")
@click.argument("output", type=click.Path(path_type=Path))
@data_option
@run_options
@config_option("refiner")
@click.option("--fidelity", default="fidelity", show_default=True, help="Installed model, or weight file.")
@click.option("--extreme", default="extreme", show_default=True, help="Installed model, or weight file.")
@click.option(
    "--start-from", type=EXISTING, help="Refiner to go on from: a checkpoint (.pt) or a weight file (.safetensors)."
)
@perceptual_options
@tuning_options
@note_option
def refine(
    output: Path,
    config: str,
    fidelity: str,
    extreme: str,
    batch: int | None,
    crop: int | None,
    learning_rate: float | None,
    note: str,
    **run: Any,
) -> None:
    """Train the refiner of a config for some minutes, on what both modes' models make of pictures; write OUTPUT."""
    from nic.models import store
    from nic.models.config import RefinerConfig
    from nic.models.training import refine as training

    model, options = read_config(config, RefinerConfig, batch=batch, crop=crop, learning_rate=learning_rate)

    def weights_of(name: str) -> Path:
        return Path(name) if Path(name).suffix else Path(store.find(name)["path"])

    checkpoint = training.train(model, options, codecs=(weights_of(fidelity), weights_of(extreme)), **run)
    identity = training.export(checkpoint, output, {"trained on": note})
    if identity:  # it is the first process that writes
        click.echo(f"wrote {output}, model id {identity.hex()}")


def read_config(name: str, sizes: type[Any], **given: Any) -> tuple[Any, Any]:
    """The model and training tables of a config, with what is given instead, if not None; raises UsageError."""
    import dataclasses

    from nic.models.config import CONFIGS, read_toml

    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"no config {name}: there are {', '.join(sorted(p.stem for p in CONFIGS.glob('*.toml')))}")
    try:
        model, options = read_toml(path, sizes)
    except (OSError, KeyError, TypeError, ValueError):
        raise UsageError(f"config {name} is not one of this command") from None
    return model, dataclasses.replace(options, **{name: value for name, value in given.items() if value is not None})
