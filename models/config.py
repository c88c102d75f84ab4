"""The sizes of a codec. Read from TOML for training, from the weight file's metadata for coding."""

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

__all__ = [
    "CONFIGS",
    "LEVELS",
    "ExtremeConfig",
    "ImageConfig",
    "RefinerConfig",
    "TrainConfig",
    "TransformConfig",
    "read_toml",
]

CONFIGS = Path(__file__).parent / "configs"
LEVELS = 252  # the highest quality level that files store; users see it as quality 100, the transforms as 63


@dataclass(frozen=True)
class TransformConfig:
    """Sizes of analysis and synthesis: channel counts unless said otherwise."""

    trunk: int  # at 1/8 resolution
    trunk_blocks: int  # residual blocks there, in analysis and in synthesis
    deep: int  # at 1/16 resolution
    deep_blocks: int  # residual blocks there
    latent: int  # y; in fidelity mode a multiple of 16
    linear: bool = field(default=False, kw_only=True)  # whether a linear transform of 16x16 blocks adds to both
    filter: int = field(default=0, kw_only=True)  # of the synthesis' post-filter, at 1/2 resolution; 0: there is none
    filter_blocks: int = field(default=0, kw_only=True)  # residual blocks of the post-filter

    @property
    def log_gains(self) -> tuple[float, float]:
        """Logarithms of the latents' gains at quality indices 0 and 63 before any training."""
        return 0.0, 0.0


@dataclass(frozen=True)
class ImageConfig(TransformConfig):
    """Sizes of the image codec's fidelity mode and the rates it is trained for."""

    hyper: int  # z, a multiple of 4
    prior: int  # width of the integer prior
    prior_blocks: int  # residual blocks of its context trunk
    lambda_min: float  # rate-distortion trade-off at quality index 0: bits per pixel + lambda * MSE (0..255)
    lambda_max: float  # the same at quality index 63; log-interpolated between

    @property
    def log_gains(self) -> tuple[float, float]:
        """At high rate the optimal step of an orthonormal transform obeys step^2 = 18 / (lambda ln 2), on 0..255."""
        low, high = (0.5 * math.log(255**2 * x * math.log(2) / 18) for x in (self.lambda_min, self.lambda_max))
        return low, high


@dataclass(frozen=True)
class ExtremeConfig(TransformConfig):
    """Sizes of the extreme mode and the weights of its loss."""

    index_bits: int  # the largest codebook has 2**index_bits codewords; every bit less is a codebook of its own
    prior: int  # width of the integer prior of indices
    prior_blocks: int  # residual blocks of it
    mse: float  # weight of the mean squared error (pixels in [0, 1]); LPIPS has weight 1
    commitment: float  # weight of the squared distance from latents to their codewords


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of the refiner, channel counts unless said otherwise, and the weight of its loss."""

    trunk: int  # at 1/8 resolution
    trunk_blocks: int  # residual blocks there, before and again after the coarser ones
    deep: int  # at 1/16 resolution
    deep_blocks: int  # residual blocks there
    mse: float  # weight of the mean squared error (pixels in [0, 1]); LPIPS has weight 1
    filter: int = field(default=0, kw_only=True)  # of a post-filter, at 1/2 resolution; 0: there is none
    filter_blocks: int = field(default=0, kw_only=True)  # residual blocks of it
    log_gains: ClassVar[tuple[float, float]] = 0.0, 0.0  # of what that sees, beside its own


@dataclass(frozen=True)
class TrainConfig:
    """How to train it; the command line may override batch and learning_rate."""

    batch: int  # crops per step and process
    crop: int  # pixels, a multiple of 64
    learning_rate: float  # peak
    warmup_steps: int
    clip: float  # gradient norm
    ema: float  # decay of the averaged weights that ship
    seed: int
    renew: int = 10  # steps between renewals of SOAP's eigenbases


Sizes = TypeVar("Sizes", ImageConfig, ExtremeConfig, RefinerConfig)


def read_toml(path: Path, sizes: type[Sizes]) -> tuple[Sizes, TrainConfig]:
    """Reads a config file with the tables [model] and [train].

    Raises TypeError for unknown or missing keys, KeyError for a missing table.
    """
    tables = tomllib.loads(path.read_text())
    return sizes(**tables["model"]), TrainConfig(**tables["train"])
