"""LPIPS and DISTS as losses: distances between features of AlexNet and of VGG-16, weighted by what people see.

VGG-16's features are also what an adversary judges.

Their weights are not part of nic: torchvision's backbones, the linear heads of the package lpips, and the weights of
the package DISTS-pytorch, from a folder on this machine.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.errors import BadInput, UsageError
from nic.models.training.adversary import Adversary

__all__ = ["Dists", "Lpips", "Moments", "Perceptual", "moments"]

Moments = tuple[Tensor, Tensor, Tensor]

# Index of a convolution among torchvision's AlexNet features, its stride and padding, and whether pooling precedes it.
LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
PERIOD = 16  # pixels between its coarsest features
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # the convolutions of VGG-16 between poolings
EPSILON = 1e-6  # of DISTS
# DISTS takes as long as 15 times LPIPS, so that it sees only a part of each batch, and a window of that.
SHARE = 3 / 8
WINDOW = 128
JUDGED = (2, 3, 4)  # what an adversary judges of DISTS' features; finer ones tell little


class Perceptual(nn.Module):
    """LPIPS + ``weight`` * DISTS + what an adversary makes of the pictures, as a loss."""

    def __init__(self, folder: Path, weight: float = 0.0, adversary_weight: float = 0.0) -> None:
        """folder: weights as for Lpips and, unless ``weight`` is 0, Dists; raises BadInput if they are not there.

        Raises UsageError for an adversary without DISTS.
        """
        super().__init__()
        if adversary_weight and not weight:
            raise UsageError("an adversary judges what DISTS sees: give it a weight, too")
        self.lpips, self.weight = Lpips(folder), weight
        self.dists = Dists.read(folder) if weight else None
        self.adversary: Adversary | None = None
        if self.dists and adversary_weight:
            self.adversary = Adversary([self.dists.channels[stage] for stage in JUDGED], adversary_weight)

    def loss(self, images: Tensor, originals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of two batches [B, 3, H, W] in [0, 1] the mean, and for the log its parts [B] or less.

        An adversary learns from it, too.
        """
        parts = {"lpips": self.lpips.loss(images, originals)}
        total = parts["lpips"].mean()
        if self.dists:
            images, originals = random_window(images, originals)
            seen = list(self.dists.features(images))
            with torch.no_grad():
                wanted = list(self.dists.features(originals))
            parts["dists"] = self.dists.compare(map(moments, wanted), seen)
            total = total + self.weight * parts["dists"].mean()
            if self.adversary:
                contest, its_parts = self.adversary.loss(*([x[stage] for stage in JUDGED] for x in (seen, wanted)))
                total, parts = total + contest, parts | its_parts
        return total, parts


class Lpips(nn.Module):
    """LPIPS 0.1 over AlexNet of two batches [B, 3, H, W] in [0, 1]: [B].

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924.
    """

    def __init__(self, folder: Path) -> None:
        """``folder``: alexnet*.pth (torchvision's names) and lpips/alex.pth, at any depth; BadInput if not."""
        super().__init__()
        convolutions = [f"features.{layer[0]}" for layer in LAYERS]
        wanted = [f"{name}.{kind}" for name in convolutions for kind in ("weight", "bias")]
        features = read(folder, "alexnet*.pth", wanted)
        heads = read(folder, "lpips/alex.pth", [f"lin{number}.model.1.weight" for number in range(len(LAYERS))])
        for number, name in enumerate(convolutions):
            weight = features[f"{name}.weight"].contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"weight{number}", weight)
            self.register_buffer(f"bias{number}", features[f"{name}.bias"])
            self.register_buffer(f"head{number}", heads[f"lin{number}.model.1.weight"].flatten())
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each convolution."""
        x, activations = (images - self.mean) / self.deviation, []
        for number, (_, stride, padding, pooled) in enumerate(LAYERS):
            x = F.max_pool2d(x, 3, 2) if pooled else x
            x = F.relu(F.conv2d(x, getattr(self, f"weight{number}"), getattr(self, f"bias{number}"), stride, padding))
            activations.append(x)
        return activations

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(originals)
        total = torch.zeros(len(images), device=images.device)
        for number, (x, y) in enumerate(zip(self.features(images), wanted, strict=True)):
            difference = (unit(x.float()) - unit(y.float())).square()
            total = total + torch.einsum("bchw,c->bhw", difference, getattr(self, f"head{number}")).mean(dim=(1, 2))
        return total

    def loss(self, images: Tensor, originals: Tensor) -> Tensor:
        """LPIPS of the pictures cut by 0 to 15 rows and columns: always at one place, the grid of its strides shows."""
        row, column = torch.randint(PERIOD, (2,)).tolist()
        return self(images[..., row:, column:], originals[..., row:, column:])


class Dists(nn.Module):
    """DISTS of two batches [B, 3, H, W] in [0, 1]: [B].

    Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", arXiv 2004.07728.
    """

    alpha: Tensor
    beta: Tensor
    window: Tensor

    def __init__(self, vgg: dict[str, Tensor], alpha: Tensor, beta: Tensor) -> None:
        """vgg: VGG-16's convolutions by torchvision's names; alpha, beta: the package's weights, flat."""
        super().__init__()
        for layer in (layer for stage in STAGES for layer in stage):
            weight = vgg[f"features.{layer}.weight"].contiguous(memory_format=torch.channels_last)  # a sixth faster
            self.register_buffer(f"weight{layer}", weight)
            self.register_buffer(f"bias{layer}", vgg[f"features.{layer}.bias"])
        self.channels = [3, *(len(vgg[f"features.{stage[-1]}.bias"]) for stage in STAGES)]
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total)
        self.register_buffer("beta", beta / total)
        window = torch.tensor([0.25, 0.5, 0.25])  # Hann's, of which L2 pooling is the weighted root mean square
        self.register_buffer("window", window[:, None] * window)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    @classmethod
    def read(cls, folder: Path) -> "Dists":
        """From vgg16*.pth and dists/weights.pt in the folder, at any depth; raises BadInput if they are not there."""
        names = [f"features.{layer}.{kind}" for stage in STAGES for layer in stage for kind in ("weight", "bias")]
        weights = read(folder, "dists/weights.pt", ["alpha", "beta"])
        return cls(read(folder, "vgg16*.pth", names), weights["alpha"].flatten(), weights["beta"].flatten())

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """The images, and the last activations of each stage."""
        yield images
        x = (images - self.mean) / self.deviation
        for stage in STAGES:
            if stage[0]:
                window = self.window.to(x.dtype).expand(x.shape[1], 1, 3, 3)
                x = (F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()
            for layer in stage:
                x = F.relu(F.conv2d(x, getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}"), padding=1))
            yield x

    def compare(self, originals: Iterable[Moments], features: Iterable[Tensor]) -> Tensor:
        """From the moments of the originals' features and the features of the images."""
        similarity = torch.zeros((), device=self.alpha.device)
        weights = zip(self.alpha.split(self.channels), self.beta.split(self.channels), strict=True)
        for (alpha, beta), (x, x_mean, x_variance), activations in zip(weights, originals, features, strict=True):
            y, y_mean, y_variance = moments(activations)
            covariance = (x * y).mean((2, 3))
            texture = (2 * x_mean * y_mean + EPSILON) / (x_mean.square() + y_mean.square() + EPSILON)
            structure = (2 * covariance + EPSILON) / (x_variance + y_variance + EPSILON)
            similarity = similarity + texture @ alpha + structure @ beta
        return 1 - similarity

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [moments(x) for x in self.features(originals)]
        return self.compare(wanted, self.features(images))


def random_window(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """The same window of some of the pictures, and of their originals."""
    chosen = torch.randperm(len(images))[: math.ceil(SHARE * len(images))]
    row, column = (int(torch.randint(max(0, side - WINDOW) + 1, ())) for side in images.shape[2:])
    window = (chosen, slice(None), slice(row, row + WINDOW), slice(column, column + WINDOW))
    return images[window], originals[window]


def moments(x: Tensor) -> Moments:
    """Activations [B, C, h, w] less their means, and means and variances [B, C] over positions, in float32."""
    x = x.float()
    mean = x.mean((2, 3))
    centred = x - mean[:, :, None, None]
    return centred, mean, centred.square().mean((2, 3))


def unit(x: Tensor) -> Tensor:
    """Activations [B, C, h, w] scaled to length 1 at each position."""
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def read(folder: Path, pattern: str, names: list[str]) -> dict[str, Tensor]:
    """Tensors of the first file of a pattern, in float32; raises BadInput if there is none, or it lacks some."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise BadInput(f"no {pattern} in {folder}")
    try:
        state = torch.load(found[0], map_location="cpu", weights_only=True)
        return {name: state[name].float() for name in names}
    except (EOFError, KeyError, RuntimeError, UnpicklingError) as error:
        raise BadInput(f"{found[0]} does not hold the weights that training needs") from error
