"""Training the synthesis of the fidelity mode alone, on latents that the encoder's search has found."""

import dataclasses
import random
import shutil
from pathlib import Path

import click.testing
import numpy as np
import pytest
import skimage.data
import torch
from safetensors.numpy import load_file

from nic import searched
from nic.cli.main import cli
from nic.errors import BadInput, UsageError
from nic.models import store
from nic.models.config import ImageConfig, TrainConfig
from nic.models.training.start import new_weight
from nic.models.training.synthesis import Searched, Shard, train, write_shard
from nic.models.transforms import Synthesis

OPTIONS = TrainConfig(batch=1, crop=256, learning_rate=1e-2, warmup_steps=1, clip=5.0, ema=0.5, seed=1)


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def latents(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    result = run("train", "latents", "--data", photographs, "-o", folder, "--count", 3, "--workers", 1)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The shipped weights, but for the post-filter."""
    path = Path(shutil.copy(store.find(store.FIDELITY)["path"], tmp_path / "copy.safetensors"))
    plain, shipped = with_filter(path, 0, 0), store.load_from(path, "cpu").synthesis.state_dict()
    synthesis = Synthesis(plain)
    synthesis.load_state_dict({k: v for k, v in shipped.items() if not k.startswith("filter")})
    store.put_network(path, "synthesis", synthesis, plain)
    return path


def with_filter(weights: Path, width: int, blocks: int) -> ImageConfig:
    model = store.load_from(weights, "cpu")
    assert isinstance(model, store.Model)
    return dataclasses.replace(model.config, filter=width, filter_blocks=blocks)


def test_latents_are_those_of_their_pixels(latents: Path) -> None:
    shard, model = load_file(latents / "0000.safetensors"), store.load(store.FIDELITY)
    assert isinstance(model, store.Model)
    assert shard["pixels"].shape == (3, 256, 256, 3) and len(set(shard["level"].tolist())) == 3
    with torch.no_grad():
        decoded = model.synthesis(torch.from_numpy(shard["latents"]) / 64, torch.from_numpy(shard["level"]) / 4)
    errors = np.square(decoded.permute(0, 2, 3, 1).numpy() - shard["pixels"] / 255).mean(axis=(1, 2, 3))
    assert (errors < 10**-2.2).all()  # 22 dB


def test_frames_are_kept_with_their_predictions(tmp_path: Path) -> None:
    """What key frames and others need for the synthesis to make them again; as arrays, too."""
    model, photo = store.load(store.VIDEO), skimage.data.astronaut()
    assert isinstance(model, store.Model)
    clip = [photo[100:228, 2 * i : 2 * i + 128].copy() for i in range(3)]
    rows = searched.frames_of(model, clip, random.Random(2))
    assert rows[0].prediction is not None and (rows[0].prediction == 0.5).all()
    write_shard(tmp_path / "0000.safetensors", Shard.of(rows), model.id)
    batch = Searched(tmp_path, model).batch(8, torch.device("cpu"))
    assert batch.images.shape == (8, 3, 128, 128) and len(set(batch.quality.tolist())) > 1
    with torch.no_grad():
        decoded = model.synthesis(batch.latents, batch.quality, batch.prediction)
    plain = (decoded - batch.images).square().mean(dim=(1, 2, 3))
    filtered = torch.cat([adapt(image[None]) for adapt, image in zip(batch.filters, decoded, strict=True)])
    assert plain.max() < 10**-2.2 and (filtered - batch.images).square().mean() < plain.mean()


def test_parts_of_clips_are_as_large_as_wanted() -> None:
    photo = skimage.data.coffee()
    for height, width, frames in ((300, 400, 30), (200, 400, 17), (300, 200, 5)):
        clip = [photo[:height, i : i + width] for i in range(frames)]
        made = searched.part(clip, random.Random(1))
        assert {pixels.shape for pixels in made} == {(256, 256, 3)} and len(made) == min(frames, 17)


def test_a_new_filter_changes_nothing_yet(weights: Path) -> None:
    plain, filtered = with_filter(weights, 0, 0), with_filter(weights, 4, 1)
    old, new = Synthesis(plain), Synthesis(filtered)
    missing = {k: new_weight(k, v) for k, v in new.state_dict().items() if k not in old.state_dict()}
    new.load_state_dict(old.state_dict() | missing)
    y, quality = torch.randn(1, plain.latent, 8, 4), torch.tensor([20.0])
    assert missing and torch.equal(old(y, quality), new(y, quality))


def test_the_synthesis_learns_and_all_else_stays(weights: Path, latents: Path, tmp_path: Path) -> None:
    config, before = with_filter(weights, 4, 1), store.load_from(weights, "cpu")
    for name in ("first", "second"):  # that starts from the first one's filter
        train(config, OPTIONS, latents, weights, tmp_path / name, 0.1)
        after, old = store.load_from(weights, "cpu"), before
        assert isinstance(after, store.Model) and isinstance(old, store.Model)
        assert after.id == old.id and after.config == config
        assert torch.equal(after.analysis.patch.weight, old.analysis.patch.weight)
        assert not torch.equal(after.synthesis.trunk_gain.knots, old.synthesis.trunk_gain.knots)
        assert after.synthesis.filter and after.synthesis.filter.leave.weight.abs().max() > 0
        before = after
    with pytest.raises(UsageError, match="another config"):
        train(with_filter(weights, 8, 1), OPTIONS, latents, weights, tmp_path / "third", 0.05)


def test_what_does_not_fit_is_refused(weights: Path, latents: Path, tmp_path: Path) -> None:
    config = with_filter(weights, 4, 1)
    with pytest.raises(UsageError, match="another config"):
        train(dataclasses.replace(config, deep_blocks=11), OPTIONS, latents, weights, tmp_path / "run", 0.01)
    with pytest.raises(UsageError, match="extreme mode"):
        train(config, OPTIONS, latents, Path(store.find(store.EXTREME)["path"]), tmp_path / "run", 0.01)
    with pytest.raises(BadInput, match="no latents"):
        train(config, OPTIONS, tmp_path / "run", weights, tmp_path / "run", 0.01)
    others = tmp_path / "others"
    write_shard(others / "0000.safetensors", Shard(**load_file(latents / "0000.safetensors")), bytes(8))
    with pytest.raises(BadInput, match="was not coded by model"):
        train(config, OPTIONS, others, weights, tmp_path / "run", 0.01)
    (others / "0000.safetensors").write_bytes((latents / "0000.safetensors").read_bytes()[:1000])
    with pytest.raises(BadInput, match="is damaged"):
        train(config, OPTIONS, others, weights, tmp_path / "run", 0.01)
    result = run("train", "latents", "--data", tmp_path, "-o", tmp_path / "x", "--coded-by", "extreme")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "nic: model extreme is of no mode that this is for: name one of fidelity mode or of videos",
    )
    (tmp_path / "text.mkv").write_text("no video")
    result = run("train", "latents", tmp_path / "text.mkv", "--data", tmp_path, "-o", tmp_path / "x")
    assert result.exit_code == 2 and "fidelity codes no videos" in result.stderr
