"""A clip's network in its file: differences to the shipped synthesis, tensor by tensor (bitstream/FORMAT.md §14.5)."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.bitstream.entropy import Decoder, Encoder
from nic.bitstream.fields import Reader
from nic.cells import get_groups, put_groups
from nic.errors import BadFile
from nic.loaded import entropy_tables
from nic.models.fit import EXPONENTS, Sample
from nic.models.prior import CLASSES, UNIT
from nic.models.store import Model
from nic.models.vq import GROUP, RATE_WEIGHT

__all__ = ["apply_weights", "encode_weights", "worth"]

SAMPLED = 2000  # groups of a tensor by which its class is chosen
TRIED_CLASSES = range(0, CLASSES, 3)


def encode_weights(model: Model, changes: dict[str, Tensor], steps: dict[str, int]) -> bytes:
    """The payload of WGTS for changes of some of the synthesis' parameters in steps of 2^-steps[name]."""
    encoder = Encoder(entropy_tables(model))
    head = bytearray()
    for name in sorted(dict(model.synthesis.named_parameters())):
        if name not in changes:
            head += bytes([0, 0])
            continue
        groups = to_groups(changes[name])
        chance = torch.Generator().manual_seed(0)
        some = groups[torch.randperm(len(groups), generator=chance)[:SAMPLED]]
        best = min(TRIED_CLASSES, key=lambda c: cost_in_class(model, some, c))
        classes = torch.full((len(groups),), best, device=groups.device)
        if not model.codebooks.quantize(groups, classes)[1].any():
            head += bytes([0, 0])
            continue
        head += bytes([steps[name], best])
        put_groups(model, encoder, groups, classes)
    return bytes(head) + encoder.finish()


def cost_in_class(model: Model, groups: Tensor, scale_class: int) -> float:
    """Rate and distortion in bits of groups [G, 4], fixed point, if all are of one class."""
    encoder = Encoder(entropy_tables(model))
    decoded = put_groups(model, encoder, groups, torch.full((len(groups),), scale_class, device=groups.device))
    return 8 * len(encoder.finish()) + float(((groups - decoded) / UNIT).square().sum()) / RATE_WEIGHT


def apply_weights(model: Model, payload: bytes | None) -> Model:
    """The model with the clip's own synthesis; raises BadFile for a payload that no encoder writes."""
    if payload is None:
        return model
    synthesis = copy.deepcopy(model.synthesis)
    reader = Reader(payload, "WGTS chunk")
    parameters = dict(sorted(synthesis.named_parameters()))
    heads = {name: reader.take(2) for name in parameters}
    decoder = Decoder(entropy_tables(model), reader.take(reader.remaining))
    for name, value in parameters.items():
        exponent, scale_class = heads[name]
        if (exponent, scale_class) == (0, 0):
            continue
        if exponent not in EXPONENTS or scale_class >= CLASSES:
            raise BadFile(f"damaged weights: {name} has step 2^-{exponent} and class {scale_class}")
        count = -(-value.numel() // GROUP)
        groups = get_groups(model, decoder, np.full(count, scale_class, np.uint8)).to(model.device)
        difference = groups.flatten()[: value.numel()].float() * (2.0 ** float(-exponent) / UNIT)
        value.add_(difference.view_as(value))
    decoder.finish()
    return replace(model, synthesis=synthesis)


def to_groups(change: Tensor) -> Tensor:
    """A tensor's values in order, fixed point, in groups of four, zeros at the end: [G, 4]."""
    flat = change.detach().contiguous().flatten() * UNIT
    return F.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)


@torch.inference_mode()
def worth(model: Model, samples: Sequence[Sample]) -> float:
    """The squared error of the model's synthesis over the samples, in bits."""
    return sum(float(sample.error(model.synthesis(*sample.inputs))) for sample in samples)
