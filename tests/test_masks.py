"""Groups of latents, and of the extreme mode vectors of bases or indices, that are left out."""

import numpy as np
import pytest
import skimage.data

import nic
from nic.errors import UsageError


@pytest.mark.parametrize(
    ("mode", "quality", "smallest"), [("fidelity", 60, 0.5), ("extreme", 100, 0.6), ("extreme", 60, 0.6)]
)
def test_more_masks_make_a_smaller_and_worse_picture(mode: str, quality: float, smallest: float) -> None:
    photo = skimage.data.chelsea()[:192, :256]
    sizes, errors = [], []
    for rate in (0, 0.2, 0.4, 0.6, 0.8, 1):
        data = nic.encode(photo, quality=quality, effort=1, mode=mode, mask_rate=rate)
        sizes.append(len(data))
        errors.append(np.square(np.asarray(nic.decode(data)).astype(float) - photo).mean())
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < smallest * sizes[0]
    assert errors == sorted(errors) and errors[1] < 1.3 * errors[0]


def test_impossible_masks_are_refused() -> None:
    with pytest.raises(UsageError):
        nic.encode(skimage.data.chelsea()[:64, :64], mask_rate=1.5)
