"""What a training run starts from: another run, shipped weights, or a smaller codec's."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.errors import BadInput, UsageError
from nic.models import store
from nic.models.codec import ImageCodec
from nic.models.config import ImageConfig
from nic.models.prior import UNIT, QualityTable
from nic.models.training.data import Photos
from nic.models.training.loop import read_checkpoint
from nic.models.transforms import LATENT, QUALITY_INDICES
from nic.models.vq import GROUP

__all__ = ["fit_linear", "new_weight", "read_start", "take_over", "widened"]

NEW_ROWS = 0.1  # what new latents keep of their random weights, so that they start with few bits
GROWING = (
    "latent",
    "linear",
    "trunk_blocks",
    "deep_blocks",
    "prior_blocks",
    "filter",
    "filter_blocks",
)  # in which it may start from a smaller one
LAST_LAYERS = ("leave", "contract", "linear")  # of what adds to something
CROPS = 400  # of 256x256, on which a linear transform is fitted
RIDGE = 1e-5  # of a pixel's own energy, added to it
NEW_SCALE = -2.0  # and what the context predicts of their scale: 16 classes below the middle, a deviation of 0.25


def read_start(path: Path) -> tuple[dict[str, Tensor], ImageConfig]:
    """A codec's float weights and config: the averaged ones of a checkpoint (.pt), or those of a weight file.

    Raises BadInput or UnknownModel for a file that is neither, or of another codec.
    """
    if path.suffix == ".pt":
        checkpoint, config = read_checkpoint(path, ImageConfig)
        return checkpoint["average"], config
    metadata, arrays = store.read_weights(path)
    if metadata["mode"] not in (store.FIDELITY, store.VIDEO):
        raise BadInput(f"{path} is of mode {metadata['mode']}: training starts from one of fidelity mode or of videos")
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("codebooks.")}
    return dict(to_float(tensors)), ImageConfig(**json.loads(metadata["config"]))


def to_float(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A weight file's tensors as training names them: the prior's integers divided by their scales."""
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        scale = torch.exp2(tensors[f"{layer}.shift"]) if f"{layer}.shift" in tensors else None
        if kind == "table":
            yield f"{layer}.knots", value[:: (len(value) - 1) // (QualityTable.KNOTS - 1)] / UNIT
        elif scale is None:
            yield name, value
        elif kind == "weight":
            yield name, value / scale[:, None, None, None]
        elif kind == "bias":
            yield name, value / scale / UNIT


@torch.no_grad()
def widened(state: dict[str, Tensor], old: ImageConfig, model: nn.Module, new: ImageConfig) -> dict[str, Tensor]:
    """The state of ``model`` (config ``new``), on its device, that computes what ``state`` (config ``old``) does.

    Every chunk of channels gets its share of the new latents, behind its old ones; the synthesis and the context
    start by ignoring them. Blocks that the old codec lacks start as the identity. Tables over quality are resampled to
    the new trade-offs, and continued in a straight line beyond the old ones. Raises UsageError for configs that differ
    in anything else.
    """
    free = {name: getattr(new, name) for name in (*GROWING, "lambda_min", "lambda_max")}
    if dataclasses.replace(old, **free) != new or any(getattr(old, name) > getattr(new, name) for name in GROWING):
        raise UsageError(
            "the codec to start from has other sizes than the config: it may only have fewer latents or blocks"
        )
    latents = chunkwise(old.latent, new.latent)
    places = {  # in layers of the prior that have more than latents
        "enter": torch.cat([torch.arange(old.prior), old.prior + latents]),
        "head": torch.cat([latents, new.latent + latents]),
    }
    result = {}
    for name, fresh in model.state_dict().items():
        if name not in state:
            result[name] = new_weight(name, fresh)
            continue
        value = state[name].to(fresh.device)
        if name.endswith("knots"):
            value = resampled(value, old, new)
        fresh = fresh.clone()
        axes = [axis for axis in range(value.ndim) if value.shape[axis] != fresh.shape[axis]]
        for axis in axes:
            place = places.get(name.split(".")[1], latents).to(fresh.device)
            fresh = fresh * NEW_ROWS if axis == 0 else torch.zeros_like(fresh)
            if name.startswith("prior.head") and name.endswith("bias"):
                fresh[new.latent :] = NEW_SCALE
            value = fresh.index_copy(axis, place, value)
        result[name] = value
    return result


@torch.no_grad()
def fit_linear(model: ImageCodec, old: ImageConfig, photos: Photos) -> None:
    """Gives the latents that ``old`` lacks the linear transform that explains most of what the others leave.

    Reduced-rank regression of 16x16 blocks of what the unquantized latents leave at the highest quality on the blocks
    themselves. Its components go to the new latents in groups of four, to each chunk of channels in turn.
    """
    analysis, synthesis, device = model.analysis, model.synthesis, photos.pixels.device
    assert analysis.linear and synthesis.linear
    highest = torch.full((1,), QUALITY_INDICES - 1.0, device=device)
    products, crossed = (torch.zeros(769, size, dtype=torch.float64, device=device) for size in (769, 768))
    for _ in range(CROPS):
        images = photos.crops(1, 256)
        rest = images - synthesis(analysis(images, highest), highest)
        x, rest = (F.pixel_unshuffle(part, LATENT)[0].flatten(1).double() for part in (images - 0.5, rest))
        x = torch.cat([x, torch.ones_like(x[:1])])
        products, crossed = products + x @ x.T, crossed + x @ rest.T
    products.diagonal().mul_(1 + RIDGE)
    predictor = torch.linalg.solve(products, crossed)
    count, latent = model.config.latent - old.latent, model.config.latent
    basis = torch.linalg.eigh(predictor.T @ products @ predictor)[1].flip(1)[:, :count]
    component = torch.arange(count, device=device)
    group = component // GROUP
    places = group % 4 * (latent // 4) + old.latent // 4 + group // 4 * GROUP + component % GROUP
    rows = (predictor @ basis).T.float()
    analysis.latent.weight[places] = 0
    analysis.latent.bias[places] = 0
    analysis.linear.weight[places, :, 0, 0], analysis.linear.bias[places] = rows[:, :-1], rows[:, -1]
    synthesis.linear.weight[:, places, 0, 0] = basis.float()
    for gain, sign in ((analysis.gain, 1), (synthesis.gain, -1)):
        line = torch.linspace(*model.config.log_gains, gain.KNOTS, device=device)
        gain.knots[:, places] = sign * line[:, None]


def take_over(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads the weights that a checkpoint has for a module; raises UsageError where their sizes are others."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{path} is of another config than this run") from error


def with_new_weights(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state that lacks weights of a module, with those that it starts with."""
    return {name: state.get(name, new_weight(name, fresh)) for name, fresh in module.state_dict().items()} | state


def new_weight(name: str, fresh: Tensor) -> Tensor:
    """What a weight starts with that an old codec lacks: new blocks, linear transform and filter add nothing yet."""
    return torch.zeros_like(fresh) if name.split(".")[-2] in LAST_LAYERS else fresh


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
