"""Pictures for every test. The photographs come with scikit-image, so that no third party's picture is committed."""

import os
import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import skimage.data
import skimage.io
import torch

from nic.cli.jobs import cores
from nic.models.training.perceptual import LAYERS, STAGES

hypothesis.settings.register_profile("same every time", derandomize=True)
hypothesis.settings.load_profile("same every time")

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # that commands inherit, even if a background shell ignores it


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return cores()


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A face: [96, 80, 3] uint8."""
    return skimage.data.astronaut()[30:126, 180:260].copy()


@pytest.fixture(scope="session")
def photo16(photo: np.ndarray) -> np.ndarray:
    """The same in [96, 80, 3] uint16; its low bytes are noise that 8 bits would lose."""
    noise = np.random.default_rng(1).integers(0, 256, photo.shape, dtype=np.uint16)
    return photo.astype(np.uint16) * 256 + noise


@pytest.fixture(scope="session")
def ramp() -> np.ndarray:
    """An alpha channel from transparent to opaque: [96, 80] uint8."""
    return np.linspace(0, 255, 96 * 80).reshape(96, 80).astype(np.uint8)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs to train on: two, and a part of another for validation."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "val").mkdir()
    skimage.io.imsave(folder / "chelsea.png", skimage.data.chelsea())
    skimage.io.imsave(folder / "coffee.png", skimage.data.coffee())
    skimage.io.imsave(folder / "val" / "rocket.png", skimage.data.rocket()[:256, :256])
    return folder


@pytest.fixture(scope="session")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For training with LPIPS and DISTS: networks of AlexNet's and VGG's layers, narrow and random."""
    folder = tmp_path_factory.mktemp("perceptual")
    (folder / "lpips").mkdir()
    torch.manual_seed(0)
    features, heads, inputs = {}, {}, 3
    for number, ((layer, *_), size) in enumerate(zip(LAYERS, (11, 5, 3, 3, 3), strict=True)):
        features |= {
            f"features.{layer}.weight": torch.randn(8, inputs, size, size),
            f"features.{layer}.bias": torch.zeros(8),
        }
        heads[f"lin{number}.model.1.weight"] = torch.rand(1, 8, 1, 1)
        inputs = 8
    torch.save(features, folder / "alexnet_random.pth")
    torch.save(heads, folder / "lpips" / "alex.pth")
    features, inputs = {}, 3
    for layer in (layer for stage in STAGES for layer in stage):
        features |= {f"features.{layer}.weight": torch.randn(4, inputs, 3, 3), f"features.{layer}.bias": torch.zeros(4)}
        inputs = 4
    torch.save(features, folder / "vgg16_random.pth")
    (folder / "dists").mkdir()
    weights = {name: torch.rand(1, 3 + 4 * len(STAGES), 1, 1) for name in ("alpha", "beta")}
    torch.save(weights, folder / "dists" / "weights.pt")
    return folder
