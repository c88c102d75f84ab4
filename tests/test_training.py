"""Training, resuming, fitting and coding with the result, on two photographs and a very small model."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.io
import torch
from torch import Tensor

from nic import codec
from nic.errors import UnknownModel, UsageError
from nic.loaded import load_model
from nic.models import store
from nic.models.codec import ImageCodec, class_sigma, gaussian_bits
from nic.models.config import CONFIGS, ImageConfig, TrainConfig, read_toml
from nic.models.prior import ACTIVATION_MAX, STEPS, ExactConv, IntegerConv, step_mask
from nic.models.training import codebook
from nic.models.training.data import Photos, read_photos
from nic.models.training.image import train
from nic.models.training.start import fit_linear, read_start, widened
from nic.pixels import Picture

CONFIG = """
[model]
trunk = 16
trunk_blocks = 1
deep = 32
deep_blocks = 1
latent = 32
hyper = 8
prior = 16
prior_blocks = 1
lambda_min = 0.001
lambda_max = 0.05

[train]
batch = 2
crop = 128
learning_rate = 1e-3
renew = 10
warmup_steps = 5
clip = 5.0
ema = 0.9
seed = 1
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "test.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def configs(config: Path) -> tuple[ImageConfig, TrainConfig]:
    return read_toml(config, ImageConfig)


@pytest.fixture(scope="module")
def checkpoint(
    configs: tuple[ImageConfig, TrainConfig], photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train(*configs, [photographs], tmp_path_factory.mktemp("run"), minutes=0.1)


def log_of(checkpoint: Path) -> list[dict]:
    return [json.loads(line) for line in (checkpoint.parent / "log.jsonl").read_text().splitlines()]


def test_training_logs_validates_and_checkpoints(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] > 0 and state["seconds"] >= 6
    rows = [row["validation"] for row in log_of(checkpoint) if "validation" in row]
    assert [row["quality"] for row in rows] == [8, 24, 40, 56]
    assert rows[-1]["psnr"] > 18 and all(row["bpp"] > 0 for row in rows)


def test_a_finished_run_is_resumed_where_it_ended(
    checkpoint: Path, configs: tuple[ImageConfig, TrainConfig], photographs: Path
) -> None:
    before = torch.load(checkpoint, weights_only=True)
    train(*configs, [photographs], checkpoint.parent, minutes=0.15)
    after = torch.load(checkpoint, weights_only=True)
    assert after["step"] > before["step"] and after["seconds"] >= 9
    assert not torch.equal(after["average"]["synthesis.patch.weight"], before["average"]["synthesis.patch.weight"])


@pytest.fixture(scope="module")
def weights(checkpoint: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "test.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebook, "CODEWORDS_MAX", 32)
        patch.setattr(codebook, "SAMPLES_MIN", 500)
        report = list(codebook.fit_weights(checkpoint, path, [photographs], crops=3, device="cpu", workers=1, note=""))
    assert len(report) == 66
    return path


def test_the_trained_model_codes_a_photograph(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder that takes precedence over the shipped models; who decodes needs it, too."""
    shutil.copy(weights, weights.parent / "fidelity.safetensors")
    monkeypatch.setenv("NIC_MODELS", str(weights.parent))
    picture = Picture(skimage.data.coffee()[:200, :300])
    small, large = (codec.compress(picture, quality=quality, effort=1).data for quality in (0, 100))
    assert len(small) < len(large) and codec.unpack(small).header.model_id == store.load_from(weights, "cpu").id
    decoded = codec.decompress(large).pixels
    assert np.mean((decoded.astype(float) - picture.pixels) ** 2) < 2000
    assert len(list(store.available())) > 4  # shipped ones are there as before
    monkeypatch.delenv("NIC_MODELS")
    with pytest.raises(UnknownModel, match="is not installed"):
        codec.decompress(large)


def test_codebooks_are_fitted_anew(weights: Path, photographs: Path, tmp_path: Path) -> None:
    """All else stays as it is; the mode is what it was."""
    again = tmp_path / "again.safetensors"
    report = list(codebook.fit_weights(weights, again, [photographs], crops=2, device="cpu", workers=1, note=""))
    (old, before), (new, after) = store.read_weights(weights), store.read_weights(again)
    assert new["id"] != old["id"] and new["id"] in report[-1] and new["mode"] == old["mode"]
    changed = {name.split(".")[0] for name in before if not np.array_equal(before[name], after.get(name))}
    assert before.keys() == after.keys() and changed == {"codebooks"}
    assert json.loads(new["card"])["steps"] == json.loads(old["card"])["steps"]
    with pytest.raises(UsageError, match="is of mode fidelity"):
        list(codebook.fit_weights(weights, again, [photographs], 2, "cpu", 1, "", mode="video"))


def test_codebooks_take_part_in_training(checkpoint: Path, configs: tuple[ImageConfig, TrainConfig]) -> None:
    """With codebooks, what the synthesis sees is a sum of means and codewords; without, of means and whole steps."""
    model = ImageCodec(configs[0])
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    residual, classes = 4 * torch.randn(1, 32, 8, 8), torch.full((1, 32, 8, 8), 30.0)
    selected = step_mask(0, 32, 8, 8)
    assert torch.equal(model.quantize_residuals(residual, classes, selected), residual.round())
    model.codebooks = load_model("fidelity", "cpu").codebooks
    hard = model.quantize_residuals(residual, classes, selected)
    assert (hard[0][~selected] == 0).all()
    assert 0 < (hard - residual)[0][selected].square().mean() < residual[0][selected].square().mean()


def test_a_run_starts_from_one_with_fewer_latents_and_blocks_and_other_rates(
    checkpoint: Path, configs: tuple[ImageConfig, TrainConfig], photographs: Path, tmp_path: Path
) -> None:
    """Widened, a codec decodes to the same picture: at the same lambda, also where that is another quality."""
    old = configs[0]
    ratio = (old.lambda_max / old.lambda_min) ** (1 / 7)  # from one of the eight knots over quality to the next
    new = dataclasses.replace(old, latent=48, lambda_max=old.lambda_max * ratio, lambda_min=old.lambda_min * ratio)
    new = dataclasses.replace(new, trunk_blocks=2, deep_blocks=2, prior_blocks=3)
    narrow, wide = ImageCodec(old), ImageCodec(new)
    state = torch.load(checkpoint, weights_only=True)["average"]
    narrow.load_state_dict(state)
    wide.load_state_dict(widened(state, old, wide, new))
    images = torch.from_numpy(skimage.data.chelsea()[:128, :192]).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        before, after = narrow(images, torch.tensor([27.0])), wide(images, torch.tensor([18.0]))
    assert torch.allclose(before["images"], after["images"], atol=1e-4)
    there = torch.device("meta")  # in place of a GPU, where tensors of the processor cannot be mixed in either
    assert {value.device for value in widened(state, old, wide.to(there), new).values()} == {there}
    longer = train(new, configs[1], [photographs], tmp_path, minutes=0.05, start_from=checkpoint)
    assert torch.load(longer, weights_only=True)["average"]["analysis.latent.weight"].shape == (48, 32, 1, 1)


def test_new_latents_carry_linearly_what_the_others_leave(
    checkpoint: Path, configs: tuple[ImageConfig, TrainConfig], photographs: Path
) -> None:
    """Unquantized, a codec with more latents and a linear transform beside the network reconstructs better at once."""
    old = configs[0]
    new = dataclasses.replace(old, latent=64, linear=True)
    narrow, wide = ImageCodec(old), ImageCodec(new)
    state = torch.load(checkpoint, weights_only=True)["average"]
    narrow.load_state_dict(state)
    wide.load_state_dict(widened(state, old, wide, new))
    images = torch.from_numpy(skimage.data.chelsea()[:128, :192]).permute(2, 0, 1)[None].float() / 255

    def error(model: ImageCodec, quality: float) -> Tensor:
        level = torch.tensor([quality])
        return (model.synthesis(model.analysis(images, level), level) - images).square().mean()

    with torch.no_grad():
        assert torch.allclose(error(narrow, 63), error(wide, 63), rtol=1e-3)  # the linear transform starts at zero
        fit_linear(wide, old, Photos(read_photos([photographs], workers=1), torch.device("cpu")))
        assert error(wide, 63) < 0.8 * error(narrow, 63)
        assert error(wide, 0) < error(narrow, 0)  # gains of analysis and synthesis are each other's inverse


def test_a_run_starts_from_a_weight_file(
    weights: Path, configs: tuple[ImageConfig, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float weights made of a weight file's integers predict what the integers do, to a few 1/64 of a step."""
    monkeypatch.setattr(store, "WEIGHTS", weights.parent)
    state, config = read_start(weights)
    assert config == configs[0]
    model = ImageCodec(config)
    model.load_state_dict(state)
    features, latents = (64 * torch.randn(1, channels, 8, 8) for channels in (config.prior, config.latent))
    quality = torch.tensor([18.0])
    with torch.no_grad():
        trained, integer = model.prior, store.load(weights.stem).prior
        for a, b in zip(trained.step(0, features, latents), integer.step(0, features.round(), latents), strict=True):
            assert (a - b).abs().max() < 8 and a.std() > 0
        assert (trained.quality(quality) - integer.quality(quality)).abs().max() <= 0.5


def test_larger_activations_of_the_prior_predict_the_same(
    checkpoint: Path, configs: tuple[ImageConfig, TrainConfig]
) -> None:
    torch.manual_seed(0)
    model = ImageCodec(configs[0])
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    prior, larger = model.prior.eval(), copy.deepcopy(model.prior)
    for layer in prior.modules():
        if isinstance(layer, ExactConv):
            torch.nn.init.normal_(layer.bias, std=0.1)
    larger.load_state_dict(prior.state_dict())
    larger.rescale(3.0)
    hyper, latents = (64 * torch.randn(1, channels, side, side) for channels, side in ((8, 2), (32, 8)))
    quality = torch.tensor([18.0])
    with torch.no_grad():
        outputs = [part.step(1, part.features(hyper, quality), latents) for part in (prior, larger)]
        assert larger.features(hyper, quality).std() > 2.9 * prior.features(hyper, quality).std()
    for before, after in zip(*outputs, strict=True):
        assert torch.allclose(before, after, atol=1e-2) and before.std() > 0


def test_crops_are_photographs(photographs: Path) -> None:
    photos = Photos(read_photos([photographs], workers=1), torch.device("cpu"))
    crops = photos.crops(4, 128)
    assert crops.shape == (4, 3, 128, 128) and crops.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= crops.min() and crops.max() <= 1 and crops.std() > 0.05


def test_each_latent_is_decoded_once() -> None:
    masks = torch.stack([step_mask(step, 16, 6, 10) for step in range(STEPS)])
    assert (masks.sum(dim=0) == 1).all()
    assert (masks.float().mean(dim=(1, 2, 3)) == 0.25).all()


def test_gaussian_bits_is_the_probability_of_a_step() -> None:
    normal = torch.distributions.Normal(0.0, 1.7)
    residuals = torch.tensor([-3.0, -0.4, 0.0, 2.2])
    expected = -torch.log2(normal.cdf(residuals + 0.5) - normal.cdf(residuals - 0.5))
    assert torch.allclose(gaussian_bits(residuals, torch.tensor(1.7)), expected, atol=1e-4)


def test_scale_classes_are_log_spaced() -> None:
    sigma = class_sigma(torch.arange(64.0))
    assert sigma[0] == pytest.approx(0.11) and sigma[63] == pytest.approx(64, rel=1e-4)
    assert torch.allclose(sigma[1:] / sigma[:-1], sigma[1] / sigma[0], rtol=1e-3)


@pytest.mark.parametrize("depthwise", [False, True])
def test_integer_convolution_follows_the_trained_one(depthwise: bool) -> None:
    torch.manual_seed(0)
    trained = ExactConv(24, 24, depthwise=depthwise, leaky=True)
    torch.nn.init.normal_(trained.bias, std=0.2)
    x = torch.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, (1, 24, 9, 7)).float()
    integer = IntegerConv(trained)
    difference = integer(x) - trained(x)
    assert difference.abs().max() < 12 and (integer(x) == integer(x).round()).all()


def test_training_starts_from_a_transform_that_reconstructs() -> None:
    """Without quantization, the untrained codec is a DCT of low frequencies: a photograph survives it."""
    config = read_toml(CONFIGS / "tiny.toml", ImageConfig)[0]
    images = torch.from_numpy(skimage.data.chelsea()[:256, :384]).permute(2, 0, 1)[None].float() / 255
    for trunk in (96, 224):
        torch.manual_seed(0)
        model = ImageCodec(dataclasses.replace(config, trunk=trunk, trunk_blocks=0, deep_blocks=0))
        model.start_from_dct()
        assert left(model, images) < 10**-2.7


def left(model: ImageCodec, images: Tensor) -> float:
    """The mean squared error of unquantized latents."""
    quality = torch.tensor([20.0])
    with torch.no_grad():
        return float((model.synthesis(model.analysis(images, quality), quality) - images).square().mean())


def test_a_linear_transform_starts_as_the_frequencies_that_the_network_lacks() -> None:
    config = dataclasses.replace(read_toml(CONFIGS / "medium.toml", ImageConfig)[0], trunk_blocks=0, deep_blocks=0)
    images = torch.from_numpy(skimage.data.chelsea()[:256, :384]).permute(2, 0, 1)[None].float() / 255
    errors = []
    for sizes in (dataclasses.replace(config, latent=192, linear=False), config):
        torch.manual_seed(0)
        model = ImageCodec(sizes)
        model.start_from_dct()
        errors.append(left(model, images))
    assert errors[1] < errors[0] / 2
