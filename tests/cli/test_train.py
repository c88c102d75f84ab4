"""`nic train` and `nic codebook` on folders and files that are not as they should be."""

from pathlib import Path

import click.testing
import numpy as np
import pytest
import skimage.data
import skimage.io
import torch

from nic.cli.main import cli
from nic.errors import BadInput
from nic.models import store
from nic.models.codec import ImageCodec
from nic.models.config import ImageConfig, RefinerConfig
from nic.models.refiner import Refiner
from nic.models.training import data
from nic.models.training.data import SIDE, read_photos

CONFIG = """
[model]
trunk = 8
trunk_blocks = 1
deep = 8
deep_blocks = 1
latent = 16
hyper = 4
prior = 8
prior_blocks = 1
lambda_min = 0.001
lambda_max = {lambda_max}

[train]
batch = 1
crop = 64
learning_rate = 1e-3
warmup_steps = 1
clip = 1.0
ema = 0.9
seed = 1
"""


def nic(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, perceptual: Path) -> Path:
    """plain/ with a photograph and no val folder, broken/ with a text named .png, small/, empty/, lpips/, two configs.

    And checkpoints of a codec that is wider than these, and of a small refiner.
    """
    folder = tmp_path_factory.mktemp("train")
    for name in ("plain", "broken", "small", "empty"):
        (folder / name).mkdir()
    skimage.io.imsave(folder / "plain" / "coffee.png", skimage.data.coffee())
    skimage.io.imsave(folder / "small" / "coffee.png", skimage.data.coffee()[:100])
    (folder / "broken" / "text.png").write_text("no picture")
    for name, value in (("config", 0.05), ("other", 0.1)):
        (folder / f"{name}.toml").write_text(CONFIG.format(lambda_max=value))
    (folder / "text.toml").write_text("[model")
    (folder / "lpips").symlink_to(perceptual)
    (folder / "broken" / "alexnet.pth").write_text("no weights")
    wide = ImageConfig(16, 1, 8, 1, 16, 4, 8, 1, 0.001, 0.05)
    small = RefinerConfig(8, 1, 8, 1, 30.0)
    for name, model in (("wide", ImageCodec(wide)), ("refiner", Refiner(small))):
        torch.save({"average": model.state_dict(), "config": vars(model.config)}, folder / f"{name}.pt")
    return folder


def test_a_folder_without_validation_is_enough(folder: Path) -> None:
    command = ("train", "image", "--data", folder / "plain", "--minutes", 0.01, "--workers", 1, "-o", folder / "run")
    result = nic(*command, "--config", folder / "config.toml")
    assert result.exit_code == 0, result.output
    assert torch.load(folder / "run" / "last.pt", weights_only=True)["config"]["lambda_max"] == 0.05
    result = nic(*command, "--config", folder / "other.toml")
    assert (result.exit_code, result.stderr) == (
        2,
        f"nic: {folder / 'run'} holds a run of another config: name another folder\n",
    )


EXTREME = store.find(store.EXTREME)["path"]


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["image", "--data", "empty"], 3, "no pictures to train on in empty"),
        (["image", "--data", "small"], 3, "no pictures to train on in small"),
        (["image", "--data", "broken"], 3, "broken/text.png cannot be read as a picture"),
        (["image", "--data", "nowhere"], 2, "'nowhere' does not exist"),
        (["image", "--data", "plain", "--config", "text.toml"], 2, "config text.toml is not one of this command"),
        (["image", "--data", "plain", "--config", "refiner"], 2, "config refiner is not one of this command"),
        (["image", "--data", "plain", "--config", "none"], 2, "no config none: there are base, extreme, "),
        (["image", "--data", "plain", "--codebooks", "config.toml"], 5, "config.toml is damaged, or no weight file"),
        (["image", "--data", "plain", "--start-from", "config.toml"], 5, "config.toml is damaged, or no weight file"),
        (["image", "--data", "plain", "--start-from", EXTREME], 3, "is of mode extreme: training starts from one of"),
        (
            ["image", "--data", "plain", "--config", "config.toml", "--start-from", "wide.pt"],
            2,
            "has other sizes than the config",
        ),
        (
            ["extreme", "--data", "plain", "--start-from", "wide.pt", "--perceptual", "lpips"],
            2,
            "has other widths",
        ),
        (
            ["refine", "x.safetensors", "--data", "plain", "--start-from", "refiner.pt", "--perceptual", "lpips"],
            2,
            "refiner.pt is of another config",
        ),
        (["indices", "config.toml", "x.safetensors", "--data", "plain"], 3, "config.toml is no checkpoint"),
        (["recovery", "config.toml", "--data", "plain"], 5, "config.toml is damaged, or no weight file"),
        (
            ["extreme", "--data", "plain", "--start-from", "config.toml", "--perceptual", "empty"],
            3,
            "no alexnet*.pth in empty",
        ),
        (
            ["extreme", "--data", "plain", "--start-from", "config.toml", "--perceptual", "broken"],
            3,
            "broken/alexnet.pth does not hold the weights that training needs",
        ),
    ],
)
def test_what_cannot_be_trained_with_is_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], exit_code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    result = nic("train", *options, "--minutes", 0.01, "--workers", 1, "-o", "none/run")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_codebooks_of_a_run_of_another_kind(folder: Path) -> None:
    result = nic("codebook", "fit", folder / "config.toml", folder / "x.safetensors", "--data", folder / "plain")
    assert (result.exit_code, "is no checkpoint" in result.stderr) == (3, True)
    result = nic(
        "train", "image", "--data", folder / "plain", "--minutes", 1, "-o", folder / "x", "--codebooks", EXTREME
    )
    assert (result.exit_code, "has no codebooks of scale classes" in result.stderr) == (5, True)
    assert not (folder / "x").exists()


def test_pictures_that_cannot_be_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bits a sample, or more pixels than Pillow opens."""
    photograph = skimage.data.coffee()
    skimage.io.imsave(folder / "deep.png", photograph[:, :, 0].astype(np.uint16) * 257, check_contrast=False)
    assert data.decode_square(("deep", (folder / "deep.png").read_bytes())) is None
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadInput, match="^large cannot be read as a picture: remove it$"):
        data.decode_square(("large", (folder / "plain" / "coffee.png").read_bytes()))


def test_pictures_are_read_a_few_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "READ_AHEAD", 2)
    files = [("coffee", (folder / "plain" / "coffee.png").read_bytes())] * 5
    monkeypatch.setattr(data, "encoded_photos", lambda sources, part: iter(files))
    photos = read_photos([folder], workers=1)
    assert len(photos) == 5 and np.array_equal(photos[4], skimage.data.coffee()[:SIDE, :SIDE])


def test_crops_are_of_photographs_that_hold_them() -> None:
    sides = [(200, 400), (128, 512), (512, 300)]
    photos = data.Photos([np.full((*side, 3), 40 * i, np.uint8) for i, side in enumerate(sides)], torch.device("cpu"))
    assert {round(float(photos.crops(1, 256).mean() * 255)) for _ in range(20)} == {80}
    assert {round(float(photos.crops(1, 128).mean() * 255)) for _ in range(40)} == {0, 40, 80}
    with pytest.raises(BadInput, match="holds a crop of 320x320"):
        photos.crops(1, 320)


def test_pictures_are_cut_to_their_upper_left_corner(folder: Path) -> None:
    photograph = np.tile(skimage.data.coffee(), (2, 1, 1))
    (folder / "tall").mkdir()
    skimage.io.imsave(folder / "tall" / "coffee.png", photograph)
    (photo,) = read_photos([folder / "tall"], workers=1)
    assert np.array_equal(photo, photograph[:SIDE, :SIDE])
    assert read_photos([folder / "tall"], "val", workers=1) == []
