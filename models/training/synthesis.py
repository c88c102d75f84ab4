"""``nic train synthesis``: a model's synthesis alone, on latents as the encoder's search leaves them.

All else stays as it is. The search moves latents to where the synthesis needs them, which training of the whole codec
does not know of; and a post-filter can be added, which in a model of videos sees predictions, too. A synthesis that has
all its parts learns behind the adaptive filters that the encoder has sent.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nic.errors import BadInput, UsageError
from nic.models import store
from nic.models.adaptive import AdaptiveFilter
from nic.models.config import ImageConfig, TrainConfig
from nic.models.prior import UNIT
from nic.models.training.loop import Training
from nic.models.training.soap import optimizers_of, with_filter_apart
from nic.models.training.start import new_weight, take_over
from nic.models.transforms import GREY, Synthesis, lambda_of

__all__ = ["SIDE", "Row", "Shard", "train", "write_shard"]

SIDE = 256  # pixels of a crop
SLOW = 0.05  # learning rate of all else, which has learned before, relative to a new post-filter's


class Row(NamedTuple):
    """A picture: its latents [M, SIDE/16, SIDE/16] int16 in fixed point, pixels [SIDE, SIDE, 3] uint8, quality level.

    filter: an ``AdaptiveFilter.to_array``. prediction: [3, SIDE, SIDE] float16 in [0, 1] that its latents add to, of a
    video's frame.
    """

    latents: np.ndarray
    filter: np.ndarray
    pixels: np.ndarray
    level: np.uint8
    prediction: np.ndarray | None


@dataclass(frozen=True)
class Shard:
    """Rows as arrays, stacked."""

    latents: np.ndarray
    filter: np.ndarray
    pixels: np.ndarray
    level: np.ndarray
    prediction: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Shard":
        columns = zip(Row._fields, zip(*rows, strict=True), strict=True)
        return cls(**{name: np.stack(column) for name, column in columns if column[0] is not None})


def write_shard(path: Path, shard: Shard, coded_by: bytes) -> None:
    """Writes pictures that were coded by a model of this id into a safetensors file."""
    arrays = {name: array for name, array in vars(shard).items() if array is not None}
    store.write_tensors(arrays, path, {"coded by": coded_by.hex()})


def read_shard(path: Path, coded_by: bytes) -> Shard:
    """What ``write_shard`` wrote; raises BadInput for any other file, and for one that another model has coded."""
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("coded by") == coded_by.hex():
                return Shard(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise BadInput(f"{path} is damaged: remove it, and run nic train latents again") from error
    raise BadInput(f"{path} was not coded by model {coded_by.hex()}: make others with nic train latents")


class Batch(NamedTuple):
    """Images [B, 3, SIDE, SIDE] in [0, 1], and what they were coded as.

    latents: [B, M, h, w] in steps. quality: [B] in [0, 63]. prediction: images or GREY.
    """

    images: Tensor
    latents: Tensor
    filters: list[AdaptiveFilter]
    quality: Tensor
    prediction: Tensor | float


class Searched:
    """All rows of a folder of shards."""

    def __init__(self, folder: Path, model: store.Model) -> None:
        """Raises BadInput where there are none, or those of another model."""
        shards = [read_shard(path, model.id) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            raise BadInput(f"no latents in {folder}: make some with nic train latents")
        self.places = [(shard, row) for shard in shards for row in range(len(shard.level))]
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Starts another sequence of batches."""
        self.random = np.random.default_rng(seed)

    def batch(self, count: int, device: torch.device) -> Batch:
        chosen = [self.places[place] for place in self.random.integers(len(self.places), size=count)]

        def column(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(shard, name)[row] for shard, row in chosen])).to(device)

        latents = (column("latents").float() / UNIT).contiguous(memory_format=torch.channels_last)
        images = column("pixels").permute(0, 3, 1, 2).float() / 255
        filters = [AdaptiveFilter.from_array(shard.filter[row]) for shard, row in chosen]
        prediction = GREY if chosen[0][0].prediction is None else column("prediction").float()
        return Batch(images, latents, filters, column("level") / 4, prediction)


def train(
    config: ImageConfig,
    options: TrainConfig,
    latents: Path,
    weights: Path,
    run: Path,
    minutes: float,
    device: str = "cpu",
    bfloat16: bool = False,
) -> None:
    """Trains for ``minutes`` of wall-clock and puts the synthesis into the weight file; ``run`` as in ``Training.fit``.

    config: that of the weights, which may add a post-filter; UsageError if it differs in anything else. latents: the
    folder of ``nic train latents``. bfloat16: the precision of convolutions.
    """
    training = Training(run, minutes, options, device, bfloat16)
    model = store.load_from(weights, "cpu")
    if not isinstance(model, store.Model):
        raise UsageError(f"{weights} is of the extreme mode: use nic train extreme --synthesis-only")
    added = {name: getattr(config, name) for name in ("filter", "filter_blocks")}
    if dataclasses.replace(model.config, **added) != config:
        raise UsageError(f"{weights} is of another config: it may only lack a post-filter")
    searched = Searched(latents, model)
    synthesis, known = Synthesis(config), model.synthesis.state_dict()
    fresh = {name: new_weight(name, value) for name, value in synthesis.state_dict().items() if name not in known}
    take_over(synthesis, known | fresh, weights)
    synthesis.to(training.device, memory_format=torch.channels_last)
    learning = with_filter_apart(synthesis)
    if fresh:
        learning = [(part, factor) for (part, _), factor in zip(learning, (SLOW, 1.0), strict=True)]

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = searched.batch(options.batch, training.device)
        images = synthesis(batch.latents, batch.quality, batch.prediction).float()
        if not fresh:
            images = torch.cat([adapt(image[None]) for adapt, image in zip(batch.filters, images, strict=True)])
        mse = (images - batch.images).square().mean(dim=(1, 2, 3))
        return (lambda_of(batch.quality, config).sqrt() * 255**2 * mse).mean(), {"mse": mse}

    training.fit(synthesis, optimizers_of(learning, options), loss, searched.seed, config)
    if training.first:
        store.put_network(weights, "synthesis", synthesis, config)
    training.close()
