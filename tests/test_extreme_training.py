"""Training the extreme mode from a fidelity codec to a weight file that codes, on two photographs, very small."""

import dataclasses
import errno
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.io
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from nic import codec
from nic.errors import UnknownModel, UsageError
from nic.models import store
from nic.models.config import ExtremeConfig, ImageConfig, TrainConfig
from nic.models.extreme import Codebook, ExtremeCodec, nearest
from nic.models.indices import STEPS, IndexPrior, step_positions
from nic.models.prior import UNIT
from nic.models.recovery import Recovery, smooth_fill
from nic.models.training import extreme, indices, recovery
from nic.models.training.adversary import Adversary
from nic.models.training.data import Photos, read_photos
from nic.models.training.image import train as train_fidelity
from nic.models.training.perceptual import Lpips, Perceptual
from nic.pixels import Picture

FIDELITY = ImageConfig(16, 1, 32, 1, 32, 8, 16, 1, 0.001, 0.05)
CONFIG = ExtremeConfig(16, 1, 32, 2, 8, 6, 16, 1, 30.0, 2.0)
OPTIONS = TrainConfig(batch=2, crop=128, learning_rate=1e-3, warmup_steps=5, clip=1.0, ema=0.9, seed=1)
WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"


@pytest.fixture(scope="module")
def checkpoints(photographs: Path, perceptual: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of joint training, and of the synthesis alone."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extreme, "CROPS", 5)
        start = train_fidelity(FIDELITY, OPTIONS, [photographs], folder / "fidelity", 0.03)
        joint = extreme.train(CONFIG, OPTIONS, [photographs], folder / "joint", 0.05, perceptual, start)
        final = extreme.train(
            CONFIG,
            OPTIONS,
            [photographs],
            folder / "final",
            0.05,
            perceptual,
            joint,
            synthesis_only=True,
            adversary_weight=0.1,
            dists_weight=1.0,
        )
    return joint, final


def test_both_runs_train_what_they_should(checkpoints: tuple[Path, Path]) -> None:
    joint, final = (torch.load(path, weights_only=True)["average"] for path in checkpoints)
    for name in ("codebook.fitted", "bases.vectors", "bases.bits"):
        assert joint[name].isnan().all() and not final[name].isnan().any()
    assert torch.equal(joint["analysis.patch.weight"], final["analysis.patch.weight"])
    assert not torch.equal(joint["synthesis.patch.weight"], final["synthesis.patch.weight"])
    rows = [json.loads(line) for line in (checkpoints[1].parent / "log.jsonl").read_text().splitlines()]
    assert [row["validation"]["codewords"] for row in rows if "validation" in row] == [8, 64]
    assert rows[-1]["validation"]["psnr"] > 12


def test_everything_goes_on_learning_from_the_last_run(
    checkpoints: tuple[Path, Path], photographs: Path, perceptual: Path, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, learning_rate=1e-9)
    weights = {"adversary_weight": 0.1, "dists_weight": 1.0}
    again = extreme.train(CONFIG, options, [photographs], tmp_path, 0.02, perceptual, checkpoints[1], **weights)
    states = [torch.load(path, weights_only=True) for path in (checkpoints[1], again)]
    before, after = (ExtremeCodec(CONFIG) for _ in states)
    for model, state in zip((before, after), states, strict=True):
        model.load_state_dict(state["average"])
    assert not before.codebook.fitted.isnan().any() and after.codebook.fitted.isnan().all()
    book = CONFIG.index_bits - 3
    assert torch.allclose(before.codebook.codewords(book), after.codebook.codewords(book), atol=1e-4)
    name = "judges.0.2.weight"
    assert torch.allclose(states[0]["adversary"][name], states[1]["adversary"][name], atol=1e-4)


def test_a_larger_codec_starts_as_the_smaller_one(checkpoints: tuple[Path, Path]) -> None:
    larger = dataclasses.replace(CONFIG, trunk_blocks=2, deep_blocks=3, filter=4, filter_blocks=1)
    images, book, made = torch.rand(1, 3, 128, 64), torch.tensor([2]), []
    for config in (CONFIG, larger):
        model = ExtremeCodec(config)
        extreme.start_from_run(model, None, checkpoints[1])
        with torch.no_grad():
            made.append(model(images, book)["images"])
    assert torch.allclose(*made, atol=1e-5)
    with pytest.raises(UsageError, match="another config"):
        extreme.start_from_run(ExtremeCodec(dataclasses.replace(CONFIG, deep_blocks=1)), None, checkpoints[1])


def test_a_weight_file_is_a_run_to_start_from(checkpoints: tuple[Path, Path], weights: Path) -> None:
    """Its codewords are in fixed point, its networks in half precision, its bases' costs those of its tables."""
    models = [ExtremeCodec(CONFIG), ExtremeCodec(CONFIG)]
    for model, path in zip(models, (checkpoints[1], weights), strict=True):
        extreme.start_from_run(model, None, path)
    run, shipped = (model.state_dict() for model in models)
    for name, tolerance in {"codebook.fitted": 0.5, "bases.vectors": 0.5}.items():
        assert (run[name] - shipped[name]).abs().max() * UNIT <= tolerance + 1e-4
    assert torch.equal(shipped["synthesis.patch.weight"], run["synthesis.patch.weight"].half().float())
    assert torch.exp2(-shipped["bases.bits"]).sum(dim=-1).sub(1).abs().max() < 1e-4


@pytest.fixture(scope="module")
def weights(checkpoints: tuple[Path, Path], photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    indices.train(checkpoints[1], folder / "test.safetensors", [photographs], folder / "prior", 0.05, workers=1)
    before = store.load_extreme(folder / "test.safetensors")
    recovery.train(folder / "test.safetensors", [photographs], folder / "recovery", 0.03, workers=1)
    after = store.load_extreme(folder / "test.safetensors")
    assert before.recovery is None and after.recovery is not None and before.id == after.id
    return folder / "test.safetensors"


def test_a_weight_file_takes_a_synthesis_that_learned_from_its_codebooks(
    checkpoints: tuple[Path, Path], weights: Path, photographs: Path, perceptual: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())

    def train(name: str, start: Path, **options: Any) -> Path:
        return extreme.train(CONFIG, OPTIONS, [photographs], tmp_path / name, 0.02, perceptual, start, **options)

    last = train("run", checkpoints[1], synthesis_only=True, dists_weight=1.0, into=copy)
    before, after = store.load_extreme(weights), store.load_extreme(copy)
    trained = torch.load(last, weights_only=True)["average"]["synthesis.patch.weight"]
    assert before.id == after.id and after.recovery is not None
    assert torch.equal(after.synthesis.patch.weight, trained.half().float())
    assert not torch.equal(after.synthesis.patch.weight, before.synthesis.patch.weight)
    filtered = dataclasses.replace(CONFIG, filter=4, filter_blocks=1)
    extreme.train(
        filtered, OPTIONS, [photographs], tmp_path / "x", 0.02, perceptual, copy, synthesis_only=True, into=copy
    )
    longer = store.load_extreme(copy)  # which started from a weight file
    assert longer.id == before.id and longer.config == filtered and longer.synthesis.filter.leave.weight.abs().max() > 0
    with pytest.raises(UsageError, match="other codebooks"):
        train("another", checkpoints[0], synthesis_only=True, into=copy)
    with pytest.raises(UsageError, match="synthesis-only"):
        train("third", checkpoints[1], into=copy)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_dists_joins_lpips_in_the_loss(perceptual: Path, weight: float) -> None:
    loss = Perceptual(perceptual, weight)
    originals = torch.rand(3, 3, 160, 160)
    total, parts = loss.loss((0.8 * originals).requires_grad_(), originals)
    expected = parts["lpips"].mean() + (weight * parts["dists"].mean() if weight else 0)
    assert total.item() == pytest.approx(expected.item()) and total.requires_grad
    assert set(parts) == ({"lpips", "dists"} if weight else {"lpips"})
    if weight:
        assert parts["dists"].shape == (2,) and 0 < parts["dists"].min() and parts["dists"].max() < 1


def test_an_adversary_needs_dists(perceptual: Path) -> None:
    with pytest.raises(UsageError, match="DISTS"):
        Perceptual(perceptual, 0.0, 0.1)


def test_an_adversary_judges_what_dists_sees(perceptual: Path) -> None:
    originals, images = torch.rand(2, 3, 3, 64, 64)
    total, parts = Perceptual(perceptual, 2.0, 0.1).loss(images.requires_grad_(), originals)
    expected = parts["lpips"].mean() + 2 * parts["dists"].mean() + 0.1 * parts["deceived"] + parts["told"]
    assert total.item() == pytest.approx(expected.item())


def test_an_adversary_learns_to_tell() -> None:
    """Activations of any scale, by what is not the same in both; what it judges learns to deceive it."""
    adversary = Adversary([8, 4], 0.5)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=0.01)

    def activations(offset: float) -> list[torch.Tensor]:
        return [100 * (torch.randn(2, 8, 16, 16) + offset), torch.randn(2, 4, 8, 8) + offset]

    for _ in range(100):
        images = [x.requires_grad_() for x in activations(-1.0)]
        loss, parts = adversary.loss(images, activations(1.0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert parts["told"] < 0.7
    for x in images:
        assert x.grad is not None and (x.grad.mean((0, 2, 3)) < 0).all()  # the more like photographs, the less it loses
    deceived = 0.5 * torch.stack([F.softplus(-logits).mean() for logits in adversary(images)]).mean()
    again = torch.autograd.grad(deceived, images)
    for x, gradient in zip(images, again, strict=True):
        assert torch.allclose(x.grad, gradient, rtol=0.1, atol=1e-6)  # telling adds nothing to it


def test_a_weight_file_is_written_as_a_whole(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while the recovery is written leaves the model as it was."""
    before = weights.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space"):
        store.put_network(weights, "recovery", Recovery(CONFIG))
    assert weights.read_bytes() == before and list(weights.parent.glob("*.partial")) == []


def test_a_damaged_weight_file_is_told_whatever_is_damaged(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no symbol depends on it; and other models are found beside it."""
    (weights.parent / "half.safetensors").write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr(store, "WEIGHTS", weights.parent)
    assert [model["name"] for model in store.available()] == ["test"]
    with safe_open(weights, framework="numpy") as file:
        values = file.get_tensor("synthesis.patch.weight").tobytes()
    data = bytearray(weights.read_bytes())
    data[data.index(values) + 1] ^= 4
    weights.with_name("damaged.safetensors").write_bytes(data)
    with pytest.raises(UnknownModel, match="damaged"):
        store.load_extreme(weights.with_name("damaged.safetensors"))
    weights.with_name("damaged.safetensors").unlink()
    weights.with_name("half.safetensors").unlink()


def test_the_trained_model_codes_a_photograph(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WEIGHTS", weights.parent)
    model = store.load("test")
    monkeypatch.setattr(codec, "load_model", lambda wanted, device: model)
    picture = Picture(skimage.data.coffee()[:200, :300])
    files = [codec.compress(picture, quality=quality, mode="extreme").data for quality in (0, 35, 100)]
    assert len(files[0]) < len(files[1]) < len(files[2])
    decoded = codec.decompress(files[2]).pixels
    assert np.mean((decoded.astype(float) - picture.pixels) ** 2) < 6000


def test_the_codec_starts_as_the_fidelity_codec_projected(photographs: Path) -> None:
    """With as many latents as the fidelity codec has, and not quantized, the pictures are the same."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, latent=FIDELITY.latent, index_bits=3)
    donor, model = codec_of(FIDELITY), ExtremeCodec(config)
    photos = extreme.Photos(extreme.read_photos([photographs], workers=1), torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extreme, "CROPS", 5)
        extreme.start_from_fidelity(model, donor.state_dict(), FIDELITY, photos)
    images, quality = photos.crops(2, 128), torch.zeros(2)
    with torch.no_grad():
        expected = donor.synthesis(donor.analysis(images, quality), quality)
        assert torch.allclose(model.synthesis(model.analysis(images, quality), quality), expected, atol=1e-3)


def codec_of(config: ImageConfig) -> "extreme.ImageCodec":
    model = extreme.ImageCodec(config)
    model.start_from_dct()
    return model


def test_smaller_codebooks_are_clusters_of_the_largest() -> None:
    torch.manual_seed(0)
    book = Codebook(5, 3)
    book.use.uniform_(0.5, 2)
    large, small = book.codewords(2), book.codewords(0)
    expected = (large * book.use[:, None]).view(8, 4, 3).sum(dim=1) / book.use.view(8, 4).sum(dim=1, keepdim=True)
    assert torch.allclose(small, expected)


def test_the_order_of_codewords_is_a_tree_of_clusters() -> None:
    torch.manual_seed(0)
    points = torch.randn(64, 2)
    ordered = points[extreme.tree_order(points, torch.ones(64))]
    assert torch.equal(ordered.unique(dim=0), points.unique(dim=0))
    variance = [float(ordered.view(count, -1, 2).var(dim=1).mean()) for count in (1, 2, 4, 8, 16)]
    assert variance == sorted(variance, reverse=True) and variance[-1] < 0.2 * variance[0]


def test_pairs_of_unused_codewords_come_back(photographs: Path) -> None:
    """Sixteen codewords, twelve of them far from every latent: each takes a part of the cell of a used one nearby."""
    assert extreme.busy_neighbours(torch.tensor([5, 0, 0, 0, 9, 1, 0, 0])).tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    torch.manual_seed(0)
    model = ExtremeCodec(dataclasses.replace(CONFIG, index_bits=4))
    photos = Photos(read_photos([photographs], "train", 1), torch.device("cpu"))
    latents = model.analysis(photos.crops(1, 256), torch.zeros(1))[0].flatten(1).T.detach()
    model.codebook.anchors.fill_(1e3)
    model.codebook.anchors[:4] = latents[:4]
    extreme.fit_codebooks(model, photos)
    found = model.analysis(photos.crops(8, 256), torch.full((8,), 63.0)).movedim(1, -1).flatten(0, 2)
    assert len(nearest(found, model.codebook.codewords(1)).unique()) == 16


def test_k_means_uses_every_codeword() -> None:
    torch.manual_seed(0)
    points = torch.cat([torch.randn(500, 2), 9 + 0.01 * torch.randn(500, 2)])
    codewords, use = extreme.k_means(points, 16)
    assert use.sum() == 1000 and (use > 0).float().mean() > 0.9
    assert torch.equal(torch.bincount(nearest(points, codewords), minlength=16).float(), use)


def test_prior_learns_from_neighbours_only_what_is_coded_before() -> None:
    """Features of later steps change with the indices of a step; its own, and those of earlier ones, do not."""
    torch.manual_seed(0)
    prior, codewords = IndexPrior(CONFIG), UNIT * torch.randn(8, CONFIG.latent)
    indices, seen = torch.randint(8, (8, 8)), []

    def source(step: int, features: torch.Tensor) -> torch.Tensor:
        seen.append(features)
        return indices[step_positions(step, 8, 8)]

    for change in (0, 1):
        indices[step_positions(3, 8, 8)] += change
        indices %= 8
        with torch.no_grad():
            assert torch.equal(prior.decode(8, 8, 0, codewords, source), indices)
    same = [torch.equal(before, after) for before, after in zip(seen[:STEPS], seen[STEPS:], strict=True)]
    assert same == [True] * 4 + [False] * 2


def test_recovery_keeps_what_is_known_and_fills_the_rest() -> None:
    torch.manual_seed(0)
    latents, known = torch.randn(1, 8, 50, 54), torch.rand(50, 54) > 0.3
    known[4:44, 6:48] = False
    network, codewords = Recovery(CONFIG), torch.randn(64, 8)
    filled = network.fill(latents * known, known, codewords)
    assert torch.equal(filled[0][:, known], latents[0][:, known])
    assert (filled[0][:, ~known].abs().sum(dim=0) > 0).all()
    assert torch.equal(filled, network.fill(latents, known, codewords))
    constant = smooth_fill(torch.full((1, 2, 9, 9), 3.0) * known[None, :9, :9], known[None, :9, :9])
    assert torch.allclose(constant, torch.tensor(3.0), atol=1e-5)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/weights, LPIPS's networks")
def test_lpips_is_that_of_its_package() -> None:
    if find_spec("lpips") is None:
        pytest.skip("needs the package lpips: pip install -e '.[bench]'")
    from nic.bench.metrics import load_lpips, to_tensor

    photo = Image.fromarray(skimage.data.chelsea()[:128, :160])
    small = photo.resize((40, 32)).resize(photo.size)
    ours = Lpips(WEIGHTS)(to_tensor(small), to_tensor(photo))
    assert float(ours) == pytest.approx(
        float(load_lpips(WEIGHTS)(to_tensor(small), to_tensor(photo), normalize=True)), rel=1e-3
    )
