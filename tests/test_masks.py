"""Groups of latents that are left out."""

import numpy as np
import pytest
import skimage.data

import nic
from nic.errors import UsageError


def test_more_masks_make_a_smaller_and_worse_picture() -> None:
    photo = skimage.data.chelsea()[:192, :256]
    sizes, errors = [], []
    for rate in (0, 0.2, 0.4, 0.6, 0.8, 1):
        data = nic.encode(photo, quality=60, effort=1, mask_rate=rate)
        sizes.append(len(data))
        errors.append(np.square(np.asarray(nic.decode(data)).astype(float) - photo).mean())
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[0]
    assert errors == sorted(errors) and errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("options", [{"mask_rate": 1.5}, {"mask_rate": 0.5, "mode": "extreme"}])
def test_impossible_masks_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        nic.encode(skimage.data.chelsea()[:64, :64], **options)
