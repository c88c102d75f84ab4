"""Our rate and loss against CompressAI's, which many published codecs were trained with. Needs the bench group."""

import importlib.util

import pytest
import torch

from nic.bench.shim import declare_operators
from nic.models.codec import ImageCodec, gaussian_bits
from nic.models.config import CONFIGS, ImageConfig, read_toml
from nic.models.transforms import lambda_of

if importlib.util.find_spec("compressai") is None:
    pytest.skip("compressai is not installed: pip install -c constraints.txt -e '.[bench]'", allow_module_level=True)

declare_operators()

pytestmark = pytest.mark.filterwarnings("ignore")  # of compressai's and torchvision's own


def test_gaussian_bits_equal_those_of_gaussian_conditional() -> None:
    from compressai.entropy_models import GaussianConditional

    torch.manual_seed(0)
    sigma = torch.rand(1, 8, 16, 16) * 20 + 0.12
    residuals = sigma * torch.randn(1, 8, 16, 16)
    _, likelihoods = GaussianConditional(None).eval()(residuals, sigma)  # it rounds, as eval mode does
    assert torch.allclose(gaussian_bits(residuals.round(), sigma), -torch.log2(likelihoods), atol=1e-3)


def test_loss_is_compressais_rate_distortion_loss() -> None:
    from compressai.losses import RateDistortionLoss

    torch.manual_seed(0)
    config, _ = read_toml(CONFIGS / "tiny.toml", ImageConfig)
    codec, images, quality = ImageCodec(config), torch.rand(1, 3, 64, 64), torch.tensor([30.0])
    torch.manual_seed(1)
    out = codec(images, quality)
    torch.manual_seed(1)
    ours, _ = codec.loss(images, quality)
    bits = out["y_bits"] + out["z_bits"]
    trade_off = float(lambda_of(quality, config))
    likelihoods = torch.exp2(-bits.double() / 10_000).expand(1, 10_000)  # of ten thousand equal symbols
    theirs = RateDistortionLoss(lmbda=trade_off)({"x_hat": out["images"], "likelihoods": {"y": likelihoods}}, images)
    assert float(ours) * trade_off**0.5 == pytest.approx(float(theirs["loss"]), rel=1e-4)
