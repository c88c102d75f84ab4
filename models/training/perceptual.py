"""LPIPS as a loss: distances between features of AlexNet, weighted by what people see.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924. The weights
are not part of nic: torchvision's AlexNet and the linear heads of the package lpips, from a folder on this machine.
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.errors import BadInput

__all__ = ["Lpips"]

# Index of a convolution among torchvision's AlexNet features, its stride and padding, and whether pooling precedes it.
LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
PERIOD = 16  # pixels between its coarsest features


class Lpips(nn.Module):
    """LPIPS 0.1 over AlexNet of two batches [B, 3, H, W] in [0, 1]: [B]."""

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
        raise BadInput(f"{found[0]} does not hold the weights that LPIPS needs") from error
