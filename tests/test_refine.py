"""Refining decoded pictures: by the shipped weights on photographs, and training a refiner."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import nic
from nic import codec, video, windows
from nic.cli.main import cli
from nic.decoder import decode_latents
from nic.errors import UnknownModel, UsageError
from nic.loaded import load_model
from nic.media import ClipWriter
from nic.models import store
from nic.models.config import RefinerConfig
from nic.models.refiner import Refiner, euler
from nic.models.training.perceptual import Lpips
from nic.models.training.refine import go_on_from
from nic.pixels import Picture
from nic.refine import Refinement, noise, refine

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def original() -> np.ndarray:
    return skimage.data.coffee()[100:356, 100:420].copy()


@pytest.fixture(scope="module")
def file(original: np.ndarray) -> bytes:
    return codec.compress(Picture(original), quality=15, effort=1).data


@pytest.fixture(scope="module")
def decoded(file: bytes) -> np.ndarray:
    return codec.decompress(file).pixels


def refined(file: bytes, *settings: Any) -> np.ndarray:
    return codec.decompress(file, refinement=Refinement(*settings)).pixels


def test_windows_give_what_the_whole_picture_does(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((1536, 1024)))
    model = load_model("fidelity", "cpu")
    in_windows = refine(photo, model, 30, Refinement(2, 1.0))
    assert len(windows.cell_slices(64, 96)) == 2
    monkeypatch.setattr(windows, "CELL", 96)
    whole = refine(photo, model, 30, Refinement(2, 1.0))
    assert np.abs(in_windows.astype(int) - whole).max() <= 1
    assert np.abs(whole.astype(int) - photo).mean() > 0.3


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_any_number_of_steps_keeps_colours_and_content(steps: int, file: bytes, decoded: np.ndarray) -> None:
    result = refined(file, steps, 1.0)
    assert result.shape == decoded.shape and not np.array_equal(result, decoded)
    assert np.abs(result.mean(axis=(0, 1)) - decoded.mean(axis=(0, 1))).max() < 1
    assert np.square(result.astype(float) - decoded).mean() < 60


def test_a_seed_repeats_and_others_differ(file: bytes) -> None:
    assert np.array_equal(refined(file, 2, 1.0, 5), refined(file, 2, 1.0, 5))
    assert not np.array_equal(refined(file, 2, 1.0, 5), refined(file, 2, 1.0, 6))


def test_strength_goes_from_the_decoded_picture_to_the_refined_one(file: bytes, decoded: np.ndarray) -> None:
    none, half, full = (refined(file, 1, strength).astype(float) for strength in (0.0, 0.5, 1.0))
    assert np.array_equal(none, decoded)
    assert np.abs(half - (none + full) / 2).max() <= 1


def test_noise_depends_on_the_place_not_on_the_window() -> None:
    device = torch.device("cpu")
    whole = noise((slice(0, 40), slice(0, 40)), (0, 0), 3, device)
    part = noise((slice(3, 10), slice(9, 16)), (10, 21), 3, device)
    assert torch.equal(part, whole[:, :, 208:320, 480:592])
    assert abs(float(whole.mean())) < 0.01 and abs(float(whole.std()) - 1) < 0.01


def test_steps_with_a_known_end_arrive_there() -> None:
    end: Tensor = torch.rand(1, 3, 4, 4)
    state = torch.zeros_like(end)
    for step in range(5):
        state = euler(state, end, step / 5, (step + 1) / 5)
        assert torch.allclose(state, end * (step + 1) / 5, atol=1e-6)


def test_grey_alpha_and_16_bits_are_kept(original: np.ndarray) -> None:
    grey = original[:, :, :1].astype(np.uint16) * 257
    alpha = np.full(grey.shape[:2], 777, np.uint16)
    picture = codec.decompress(
        codec.compress(Picture(grey, alpha), quality=30, effort=1).data, refinement=Refinement(1)
    )
    assert picture.pixels.dtype == np.uint16 and picture.pixels.shape == grey.shape
    assert picture.alpha is not None and np.array_equal(picture.alpha, alpha)
    assert np.abs(picture.pixels / 257.0 - original[:, :, :1]).mean() < 12


def test_consistent_pictures_of_the_extreme_mode_are_coded_alike(original: np.ndarray) -> None:
    file = codec.compress(Picture(original), quality=50, mode="extreme").data
    free, bound = (codec.recover(file, refinement=Refinement(2, 1.0, 0, consistent)) for consistent in (False, True))
    assert free.consistency is None and bound.consistency is not None and bound.consistency > 0.9

    def agreeing(pixels: np.ndarray) -> float:
        again = codec.compress(Picture(pixels), quality=50, mode="extreme").data
        model = load_model("extreme", "cpu")
        latents = [
            decode_latents(parsed.header, dict(enumerate(parsed.cells)), model)[0]
            for parsed in map(codec.unpack, (file, again))
        ]
        return float((latents[0] == latents[1]).all(dim=1).float().mean())

    assert agreeing(bound.picture.pixels) > agreeing(free.picture.pixels)


def test_command_line(file: bytes, decoded: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.nic").write_bytes(file)
    result = run("decompress", tmp_path / "a.nic", tmp_path / "a.png", "--refine", 2, "--consistent", "--seed", 9)
    assert result.exit_code == 0 and "% of its latents agree with the file" in result.output
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == decoded.shape
    result = run("decompress", tmp_path / "a.nic", tmp_path / "b.png", "--refine", 1, "--crop", "16,16,64,48")
    assert result.exit_code == 0 and Image.open(tmp_path / "b.png").size == (64, 48)
    expected = np.asarray(nic.decode(file, refine=1, refine_strength=0.5))
    run("decompress", tmp_path / "a.nic", tmp_path / "c.png", "--refine", 1, "--refine-strength", 0.5)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "c.png")), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--consistent",), "are for --refine"),
        (("--seed", "0"), "are for --refine"),
        (("--refine-strength", "0.5"), "are for --refine"),
        (("--refine", "101"), "outside 1 to 100"),
        (("--refine", "1", "--refine-strength", "1.5"), "1.5"),
        (("--refine", "1", "--consistent", "--crop", "0,0,16,16"), "only whole pictures"),
    ],
)
def test_impossible_options(options: tuple[str, ...], text: str, file: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nic").write_bytes(file)
    result = run("decompress", tmp_path / "a.nic", tmp_path / "a.png", *options)
    assert result.exit_code == 2 and text in result.output and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("options", [{"refine_strength": 0.7}, {"seed": 1}, {"consistent": True}])
def test_options_of_refining_need_refining(options: dict[str, Any], file: bytes) -> None:
    with pytest.raises(UsageError, match="are for refine"):
        nic.decode(file, **options)


def test_defaults_are_the_same_everywhere(file: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nic").write_bytes(file)
    run("decompress", tmp_path / "a.nic", tmp_path / "a.png", "--refine", 1)
    for pixels in (np.asarray(Image.open(tmp_path / "a.png")), np.asarray(nic.decode(file, refine=1))):
        assert np.array_equal(pixels, refined(file, 1))


def test_frames_of_videos(tmp_path: Path) -> None:
    with ClipWriter(str(tmp_path / "clip.mkv"), ".mkv", 96, 64, Fraction(1, 25), Fraction(1)) as writer:
        for index in range(2):
            writer.add(skimage.data.astronaut()[30:94, 160 + index : 256 + index].copy(), index)
    assert run("compress", tmp_path / "clip.mkv", tmp_path / "clip.nic", "-e", 1, "-q", 30).exit_code == 0
    file = video.read((tmp_path / "clip.nic").read_bytes())
    plain, better = video.decode_one(file, 1), video.decode_one(file, 1, refinement=Refinement(1))
    assert not np.array_equal(plain, better) and np.abs(plain.astype(int) - better).mean() < 6
    with pytest.raises(UsageError, match="not videos"):
        video.decode_one(file, 1, refinement=Refinement(1, consistent=True))
    target = tmp_path / "again" / "%02d.png"
    assert run("decompress", tmp_path / "clip.nic", target, "--refine", 1).exit_code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again" / "01.png")), better)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/weights, LPIPS's networks")
def test_four_steps_look_more_like_the_photograph(original: np.ndarray, file: bytes, decoded: np.ndarray) -> None:
    lpips, photo = Lpips(WEIGHTS), to_images(original)
    with torch.inference_mode():
        before, after = (float(lpips(to_images(pixels), photo)) for pixels in (decoded, refined(file, 4, 1.0)))
    assert after < 0.9 * before


def to_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_the_refiner_is_no_codec(file: bytes) -> None:
    identity = bytes.fromhex(store.find(store.REFINER)["id"])
    with pytest.raises(UnknownModel, match="codes none"):
        store.load(identity)


def test_training_writes_a_refiner(photographs: Path, perceptual: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    model = "[model]\ntrunk = 16\ntrunk_blocks = 1\ndeep = 16\ndeep_blocks = 1\nmse = 30.0\n"
    train = "[train]\nbatch = 2\ncrop = 64\nlearning_rate = 1e-3\nwarmup_steps = 2\nclip = 1.0\nema = 0.9\nseed = 1\n"
    config.write_text(model + train)
    command = ("train", "refine", tmp_path / "out.safetensors", "--data", photographs, "--config", config)
    command += (
        "--perceptual",
        perceptual,
        "--minutes",
        0.1,
        "--workers",
        1,
        "--adversary",
        0.1,
        "--dists",
        1,
        "--note",
        "two photos",
    )
    result = run(*command, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    metadata, _ = store.read_weights(tmp_path / "out.safetensors")
    assert metadata["mode"] == store.REFINER and json.loads(metadata["card"]) == {"trained on": "two photos"}
    trained = store.load_refiner(tmp_path / "out.safetensors")
    assert trained.pixels.weight.abs().max() > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["validation"]["steps"] for row in rows if "validation" in row] == [0, 1, 4] * 4
    result = run(*command, "--adversary", 0, "-o", tmp_path / "run")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        f"nic: {tmp_path / 'run'} holds a run of other options: name another folder",
    )
    config.write_text(model + "filter = 4\nfilter_blocks = 1\n" + train)  # which those that it starts from lack
    for start in (tmp_path / "run" / "last.pt", tmp_path / "out.safetensors"):
        result = run(*command, "-o", tmp_path / start.suffix[1:], "--start-from", start)
        assert result.exit_code == 0, result.output
    assert store.load_refiner(tmp_path / "out.safetensors").filter is not None


def test_a_larger_refiner_starts_as_the_smaller_one(tmp_path: Path) -> None:
    config = dataclasses.asdict(store.load_refiner().config)
    small = Refiner(RefinerConfig(**config | {"filter": 0, "filter_blocks": 0}))
    large = Refiner(RefinerConfig(**config | {"filter": 8, "filter_blocks": 2}))
    torch.nn.init.normal_(small.pixels.weight, std=0.1)
    store.save_refiner(small, tmp_path / "small.safetensors", {})
    small = store.load_refiner(tmp_path / "small.safetensors")  # in half precision
    go_on_from(tmp_path / "small.safetensors", large, None)
    state, decoded = torch.rand(2, 1, 3, 64, 48)
    known = torch.tensor([0.5]), torch.tensor([20.0]), torch.tensor([False])
    with torch.no_grad():
        made = [network(state, decoded, *known) for network in (small, large)]
    assert torch.allclose(*made, atol=1e-5) and not torch.allclose(made[0], decoded, atol=0.1)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_refined_part_is_a_part_of_the_refined_whole(steps: int) -> None:
    """Wherever it begins: the noise is that of its place."""
    pixels = np.tile(skimage.data.chelsea()[:200, :400], (1, 3, 1))
    file = codec.compress(Picture(pixels), quality=15, effort=1).data
    refinement = Refinement(steps, 1.0)
    left, top, width, height = crop = (703, 41, 90, 77)
    part = codec.decompress(file, crop=crop, refinement=refinement).pixels
    whole = codec.decompress(file, refinement=refinement).pixels[top : top + height, left : left + width]
    assert np.abs(part.astype(int) - whole).max() <= 1
