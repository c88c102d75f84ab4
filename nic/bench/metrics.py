"""How near a decoded picture is to its original: fidelity and perceptual metrics of 8-bit RGB pictures.

Backbones of LPIPS and DISTS are torchvision's weights, from a folder or from torch.hub's cache and download.
"""

import io
import math
import pickle
import socket
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nic.bench.shim import declare_operators
from nic.errors import BadInput
from nic.models.training.perceptual import Dists, Moments, moments

__all__ = ["METRICS", "Meter", "Metric", "missing"]


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before it is measured."""

    label: str  # in plots and tables
    unit: str  # or ""
    higher_is_better: bool
    smallest: int = 1  # pixels of the shorter side; smaller pictures raise BadInput
    package: str = ""  # on PyPI
    module: str = ""  # that it installs
    backbone: str = ""  # a key of BACKBONES


METRICS = {
    "psnr": Metric("PSNR", "dB", True),
    "ms_ssim": Metric("MS-SSIM", "", True, 161, "pytorch-msssim", "pytorch_msssim"),
    "ms_ssim_db": Metric("MS-SSIM", "dB", True, 161, "pytorch-msssim", "pytorch_msssim"),
    "lpips": Metric("LPIPS", "", False, 32, "lpips", "lpips", "alexnet"),
    "dists": Metric("DISTS", "", False, 16, "DISTS-pytorch", "DISTS_pytorch", "vgg16"),
    "ssimulacra2": Metric("SSIMULACRA2", "", True, 8, "ssimulacra2", "ssimulacra2"),
}

BACKBONES = {  # torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url and VGG16_Weights.IMAGENET1K_V1.url
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
# libjxl's blur, a sum of three cosines like a Gaussian of deviation 1.5: Charalampidis, "Recursive Implementation of
# the Gaussian Filter Using Truncated Cosine Functions", IEEE Transactions on Signal Processing 64(14), 2016.
LIBJXL_BLUR = (0.0094144, 0.0360111, 0.1093354, 0.2129286, 0.2646211, 0.2129286, 0.1093354, 0.0360111, 0.0094144)
TIMEOUT = 10.0  # seconds without an answer after which a download fails


def missing(names: Iterable[str], weights: Path | None) -> dict[str, str]:
    """The metrics that cannot be measured here: name -> one line how to get it.

    weights: a folder with backbones (see ``find_backbone``). A backbone that is not on this machine is downloaded.
    """
    lines = {}
    for name in names:
        metric = METRICS[name]
        if metric.module and find_spec(metric.module) is None:
            lines[name] = f"pip install {metric.package}"
        elif metric.backbone:
            try:
                find_backbone(metric.backbone, weights)
            except BadInput as error:
                lines[name] = str(error)
    return lines


class Meter:
    """Measures ``names`` of METRICS; ``weights`` is as in ``missing``, which says what is not here.

    Raises BadInput for a backbone that is absent or damaged.
    """

    def __init__(self, names: Iterable[str], weights: Path | None = None) -> None:
        self.names = tuple(names)
        self.smallest = max((METRICS[name].smallest, name) for name in self.names)
        self.lpips = load_lpips(weights) if "lpips" in self.names else None
        self.dists = load_dists(weights) if "dists" in self.names else None
        self.original: Image.Image | None = None  # whose features are kept, because those of DISTS take long
        self.features: list[Moments] = []

    @torch.inference_mode()
    def measure(self, original: Image.Image, decoded: Image.Image) -> dict[str, float]:
        """Metric -> value, for two RGB pictures of the same size; in the order of the names.

        PSNR and MS-SSIM in dB of equal pictures are infinite. Calls with the same object as ``original`` one after
        another take half the time for DISTS, which keeps about 500 bytes a pixel for it. Raises BadInput for pictures
        too small for a metric.
        """
        smallest, name = self.smallest
        if min(original.size) < smallest:
            size = f"{original.width}x{original.height}"
            raise BadInput(f"{METRICS[name].label} needs pictures of at least {smallest} pixels a side, not {size}")
        values = {}
        if "psnr" in self.names:
            values["psnr"] = psnr(original, decoded)
        if "ms_ssim" in self.names or "ms_ssim_db" in self.names:
            values["ms_ssim"] = ms_ssim(original, decoded)
            values["ms_ssim_db"] = math.inf if values["ms_ssim"] >= 1 else -10 * math.log10(1 - values["ms_ssim"])
        if self.lpips:
            values["lpips"] = self.lpips(to_tensor(original), to_tensor(decoded), normalize=True).item()
        if self.dists:
            if original is not self.original:
                self.original, self.features = original, [moments(x) for x in self.dists.features(to_tensor(original))]
            values["dists"] = self.dists.compare(self.features, self.dists.features(to_tensor(decoded))).item()
        if "ssimulacra2" in self.names:
            values["ssimulacra2"] = ssimulacra2(original, decoded)
        return {name: values[name] for name in self.names}


def psnr(a: Image.Image, b: Image.Image) -> float:
    """In dB, over all RGB samples of two 8-bit pictures; infinite if they are equal."""
    error = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ms_ssim(a: Image.Image, b: Image.Image) -> float:
    """MS-SSIM, mean of the RGB channels; both sides must be over 160 pixels.

    Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
    """
    import pytorch_msssim

    return float(pytorch_msssim.ms_ssim(to_tensor(a), to_tensor(b), data_range=1))


def ssimulacra2(a: Image.Image, b: Image.Image) -> float:
    """100 for equal pictures, 90 for no visible difference, 50 for medium quality, below 0 for the worst.

    Of libjxl; 6 scales, and fewer for pictures under 225 pixels a side. The package reads files only, so both
    pictures pass through one in memory. Its blur mirrors the picture at two of its borders where libjxl's sees black,
    which costs up to 4 points at scores below 20 and 0.2 at 85, so it is replaced.
    """
    from ssimulacra2 import ssimulacra2 as package

    package.blur_image = libjxl_blur
    return float(package.compute_ssimulacra2(to_file(a), to_file(b)))


def libjxl_blur(planes: np.ndarray) -> np.ndarray:
    """planes: [H, W, C]; black around them."""
    from scipy import ndimage

    for axis in (0, 1):
        planes = ndimage.correlate1d(planes, LIBJXL_BLUR, axis, mode="constant")
    return planes


def to_file(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PPM")
    file.seek(0)
    return file


def to_tensor(image: Image.Image) -> Tensor:
    """[1, 3, H, W] float32 in [0, 1], in the picture's own memory order (channels last), which is the fastest."""
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)[None]


def load_lpips(weights: Path | None) -> Any:
    """LPIPS 0.1 over AlexNet (Zhang et al., arXiv 1801.03924), with the linear heads of its package."""
    declare_operators()
    import lpips

    with warnings.catch_warnings():  # it calls torchvision with an argument that has got another name
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = load_backbone("alexnet", weights)
    # It calls the layer features.3 slice2.3.
    model.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in model.net.state_dict()})
    return model.requires_grad_(False).to(memory_format=torch.channels_last)


def load_dists(weights: Path | None) -> Dists:
    """DISTS with the weights of its package, whose own class would download VGG."""
    spec = find_spec("DISTS_pytorch")
    assert spec and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "weights.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return Dists(load_backbone("vgg16", weights), state["alpha"].flatten(), state["beta"].flatten())


def load_backbone(name: str, weights: Path | None) -> dict[str, Tensor]:
    """The convolutions of a backbone, by torchvision's names, in float32; raises BadInput."""
    path = find_backbone(name, weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        layers = {key: value.float() for key, value in state.items() if key.startswith("features.")}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError):
        layers = {}
    if not layers:
        raise BadInput(f"{path} does not hold torchvision's weights of {name}")
    return layers


def find_backbone(name: str, weights: Path | None) -> Path:
    """The file ``name``*.pth in the folder ``weights`` or below, else in torch.hub's cache, else downloaded to there.

    Raises BadInput if all of this fails.
    """
    local = [path for path in sorted(weights.rglob(f"{name}*.pth")) if "_bn" not in path.name] if weights else []
    if local:
        return local[0]
    url = BACKBONES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.exists():
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError):
        raise BadInput(f"put {name}*.pth of {url} in a folder and name it with --metric-weights") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path
