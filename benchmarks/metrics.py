"""How near a decoded picture is to its original."""

import math

import numpy as np
import pytorch_msssim
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ms_ssim", "psnr"]


def psnr(a: Image.Image, b: Image.Image) -> float:
    """In dB, over all RGB samples of two 8-bit pictures; infinite if they are equal."""
    error = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ms_ssim(a: Image.Image, b: Image.Image) -> float:
    """MS-SSIM of two RGB pictures of more than 160 pixels a side, mean of the channels.

    Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
    """
    return pytorch_msssim.ms_ssim(to_tensor(a), to_tensor(b), data_range=255).item()


def to_tensor(image: Image.Image) -> Tensor:
    """[1, 3, H, W] float32 in 0..255, in the picture's own memory order (channels last), which is the fastest here."""
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None]
