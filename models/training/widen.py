"""Starting a codec from the weights of one with fewer latents, or for other rates."""

import math

import torch
from torch import Tensor, nn

from nic.models.config import ImageConfig
from nic.models.prior import GROUP

__all__ = ["widened"]

NEW_ROWS = 0.1  # what new latents keep of their random weights, so that they start with few bits
NEW_SCALE = -2.0  # and what the context predicts of their scale: 16 classes below the middle, a deviation of 0.25


@torch.no_grad()
def widened(state: dict[str, Tensor], old: ImageConfig, model: nn.Module, new: ImageConfig) -> dict[str, Tensor]:
    """The state of ``model`` (config ``new``) that computes what ``state`` (config ``old``) does.

    Every chunk of channels gets its share of the new latents, behind its old ones; the synthesis and the context
    start by ignoring them. Tables over quality are resampled to the new trade-offs, and continued in a straight line
    beyond the old ones. The configs may differ in ``latent``, ``lambda_min`` and ``lambda_max`` only.
    """
    latents = chunkwise(old.latent, new.latent)
    groups = chunkwise(old.latent // GROUP, new.latent // GROUP)
    width = torch.arange(old.prior)
    places = {
        old.latent: latents,
        old.prior + old.latent: torch.cat([width, old.prior + latents]),  # what the context reads
        old.latent + old.latent // GROUP: torch.cat([latents, new.latent + groups]),  # what the head predicts
    }
    result = {}
    for name, fresh in model.state_dict().items():
        value = state[name]
        if name.endswith("knots"):
            value = resampled(value, old, new)
        fresh = fresh.clone()
        axes = [axis for axis in range(value.ndim) if value.shape[axis] != fresh.shape[axis]]
        for axis in axes:
            place = places[value.shape[axis]].to(value.device)
            fresh = fresh * NEW_ROWS if axis == 0 else torch.zeros_like(fresh)
            if name.startswith("prior.head") and name.endswith("bias"):
                fresh[new.latent :] = NEW_SCALE
            value = fresh.index_copy(axis, place, value)
        result[name] = value
    return result


def chunkwise(old: int, new: int) -> Tensor:
    """Where old channels go among the new ones: int [old], in four chunks."""
    index = torch.arange(old)
    return index // (old // 4) * (new // 4) + index % (old // 4)


def resampled(knots: Tensor, old: ImageConfig, new: ImageConfig) -> Tensor:
    """Knots [K, C], log-spaced in lambda over the old range, at the new range's K positions."""
    count = len(knots)
    low, high = math.log(old.lambda_min), math.log(old.lambda_max)
    wanted = torch.linspace(math.log(new.lambda_min), math.log(new.lambda_max), count, dtype=torch.float64)
    position = ((wanted - low) / (high - low) * (count - 1)).to(knots)
    left = position.floor().long().clamp(0, count - 2)
    return torch.lerp(knots[left], knots[left + 1], (position - left)[:, None])
