"""Compresses a photograph that comes with scikit-image, decompresses it, and says what was won and lost.

Leaves photo.png, photo.nic and photo-decoded.png in build/.
"""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import nic

folder = Path("build")
folder.mkdir(exist_ok=True)
photo = Image.fromarray(skimage.data.coffee())
photo.save(folder / "photo.png")

compressed = nic.encode(photo, quality=50)
(folder / "photo.nic").write_bytes(compressed)

decoded = nic.decode((folder / "photo.nic").read_bytes())
decoded.save(folder / "photo-decoded.png")

bits_per_pixel = 8 * len(compressed) / (photo.width * photo.height)
psnr = peak_signal_noise_ratio(np.asarray(photo), np.asarray(decoded))
print(f"{photo.width}x{photo.height} pixels")
print(f"{folder}/photo.png          {(folder / 'photo.png').stat().st_size:>8,} bytes")
print(f"{folder}/photo.nic          {len(compressed):>8,} bytes, {bits_per_pixel:.3f} bits per pixel")
print(f"{folder}/photo-decoded.png  PSNR {psnr:.2f} dB")
