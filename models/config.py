"""The sizes of one image codec. Read from TOML for training, from the weight file's metadata for coding."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONFIGS", "ImageConfig", "TrainConfig", "read_toml"]

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image codec (channel counts unless said otherwise) and the rates it is trained for."""

    trunk: int  # at 1/8 resolution
    trunk_blocks: int  # residual blocks there, in analysis and in synthesis
    deep: int  # at 1/16 resolution
    deep_blocks: int  # residual blocks there
    latent: int  # y, a multiple of 16: four channel chunks of whole groups of four
    hyper: int  # z, a multiple of 4
    prior: int  # width of the integer prior
    prior_blocks: int  # residual blocks of its context trunk
    lambda_min: float  # rate-distortion trade-off at quality index 0: bits per pixel + lambda * MSE (0..255)
    lambda_max: float  # the same at quality index 63; log-interpolated between


@dataclass(frozen=True)
class TrainConfig:
    """How to train it; every field can be overridden on the command line."""

    batch: int  # crops per step and process
    crop: int  # pixels, a multiple of 64
    learning_rate: float  # peak
    renew: int  # steps between renewals of the optimizer's eigenbases
    warmup_steps: int
    clip: float  # gradient norm
    ema: float  # decay of the averaged weights that ship
    seed: int


def read_toml(path: Path) -> tuple[ImageConfig, TrainConfig]:
    """Reads a config file with the tables [model] and [train]; unknown or missing keys raise TypeError."""
    tables = tomllib.loads(path.read_text())
    return ImageConfig(**tables["model"]), TrainConfig(**tables["train"])
