"""Pictures for every test. The photographs come with scikit-image, so that no third party's picture is committed."""

import hypothesis
import numpy as np
import pytest
import skimage.data

hypothesis.settings.register_profile("same every time", derandomize=True)
hypothesis.settings.load_profile("same every time")


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
