"""What a clip adds to the picture codec: frames predicted from decoded ones, and the network fitted to the clip.

A frame is its prediction plus what the synthesis makes of the frame's own latents. The prediction warps one or two
decoded frames along coarse flow fields, bilinearly interpolated to pixels, and blends them (flow-guided aggregation as
in FFNeRV: Lee et al., arXiv 2212.12294, section 3.2). Key frames are predicted as mid-grey, so that they are pictures
like any other. The synthesis is the clip's own: the shipped weights plus a coded difference (HNeRV: Chen et al.,
arXiv 2304.02633, stores all of them).

Flows decide pixels only, never symbols: they are integers in the file and floats from here on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models.transforms import LATENT

__all__ = ["GREY", "Motion", "predict", "search", "warp", "worth_of"]

FLOW_STEP = 2.0  # pixels that a quantization step of flow stands for
GREY = 0.5
SMOOTH = 1 / 255  # mean absolute difference that a pixel of flow off the neighbours' mean must win
BLEND_GAIN = 0.85  # of its squared error that a block must get below if it leaves the mean of both references
COUNTED = 0.5  # share of what motion spoils that is not mended by the way; measured
RESIDUAL_BITS = 0.2  # bits a sample for a residual of e times the energy; 0.72 if samples were independent; measured
LEAST_WORTH = 1e-6  # bits: motion may be anything where nothing shows it


@dataclass(frozen=True)
class Motion:
    """How a frame moves against its references, in quantization steps.

    flow: [1, 4, h, w], x and y for the first reference, then for the second, one vector a block; 0 where there is none.
    blend: [1, 1, h, w], -1 to 1: the weight of the first reference is (1 + blend) / 2.
    """

    flow: Tensor
    blend: Tensor


def warp(frame: Tensor, flow: Tensor, mode: str = "bicubic") -> Tensor:
    """frame [1, C, H, W] fetched at each pixel plus its flow [1, 2, H, W] in pixels (x, y); borders repeat."""
    height, width = frame.shape[2:]
    rows = torch.arange(height, device=frame.device)[:, None] + flow[0, 1]
    columns = torch.arange(width, device=frame.device) + flow[0, 0]
    places = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], dim=-1)
    return F.grid_sample(frame, places[None], mode=mode, padding_mode="border", align_corners=True)


def predict(references: list[Tensor], motion: Motion) -> Tensor:
    """The prediction [1, 3, H, W] from 0, 1 or 2 decoded frames of that size."""
    height, width = (LATENT * side for side in motion.flow.shape[2:])
    if not references:
        return motion.flow.new_full((1, 3, height, width), GREY)
    flow = F.interpolate(motion.flow * FLOW_STEP, scale_factor=LATENT, mode="bilinear")
    warped = [warp(frame, part).clamp(0, 1) for frame, part in zip(references, flow.split(2, dim=1), strict=False)]
    if len(warped) == 1:
        return warped[0]
    blend = F.interpolate(motion.blend, scale_factor=LATENT, mode="bilinear")
    return torch.lerp(warped[1], warped[0], (0.5 + blend / 2).clamp(0, 1))


def luma(frame: Tensor, shrink: int = 1) -> Tensor:
    grey = frame.mean(dim=1, keepdim=True)
    return F.avg_pool2d(grey, shrink) if shrink > 1 else grey


@torch.no_grad()
def search_flow(current: Tensor, reference: Tensor) -> Tensor:
    """Flow [1, 2, H/16, W/16] in pixels from a frame to a reference, both [1, 3, H, W]; block matching.

    Coarse to fine: every offset within 20 pixels at a quarter of the size, then offsets around the best and around
    those of neighbouring blocks, to half a pixel. A smooth field is preferred, because it is cheap.
    """
    flow = current.new_zeros(1, 2, current.shape[2] // LATENT, current.shape[3] // LATENT)
    for shrink, radius, step in ((4, 5, 4.0), (2, 1, 2.0), (1, 1, 1.0), (1, 1, 0.5)):
        now, then = luma(current, shrink), luma(reference, shrink)
        smooth = F.avg_pool2d(F.pad(flow, (1, 1, 1, 1), mode="replicate"), 3, 1)
        offsets = [(x * step, y * step) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)]
        candidates = [flow + flow.new_tensor(offset)[:, None, None] for offset in offsets]
        candidates += [torch.zeros_like(flow), smooth, *(flow.roll(s, axis) for s in (1, -1) for axis in (2, 3))]
        best, found = torch.full_like(flow[:, :1], torch.inf), flow
        for candidate in candidates:
            at_pixels = candidate.repeat_interleave(LATENT // shrink, 2).repeat_interleave(LATENT // shrink, 3)
            error = F.avg_pool2d((warp(then, at_pixels / shrink, "bilinear") - now).abs(), LATENT // shrink)
            error = error + SMOOTH * (candidate - smooth).abs().sum(dim=1, keepdim=True).clamp(max=8)
            better = error < best
            best, found = torch.where(better, error, best), torch.where(better, candidate, found)
        flow = found
    return flow


@torch.no_grad()
def search(current: Tensor, references: list[Tensor]) -> Motion:
    """The motion of a frame [1, 3, H, W] against 0, 1 or 2 frames of that size."""
    blocks = current.shape[2] // LATENT, current.shape[3] // LATENT
    motion = Motion(current.new_zeros(1, 4, *blocks), current.new_zeros(1, 1, *blocks))
    for flow, frame in zip(motion.flow.split(2, dim=1), references, strict=False):
        flow.copy_(search_flow(current, frame) / FLOW_STEP)
    if len(references) == 2:
        errors = []
        for blend in (0, 1, -1):
            tried = Motion(motion.flow, torch.full_like(motion.blend, blend))
            error = (predict(references, tried) - current).square().mean(dim=1, keepdim=True)
            errors.append(F.avg_pool2d(error, LATENT) / (BLEND_GAIN if blend else 1))
        motion.blend.copy_(current.new_tensor([0.0, 1.0, -1.0])[torch.stack(errors).argmin(dim=0)])
    return motion


@torch.no_grad()
def worth_of(current: Tensor, references: list[Tensor], motion: Motion, bits_per_error: float) -> Motion:
    """What a step off each number of ``motion`` costs in bits; x steps cost x squared times that.

    It is the energy of what a step changes in the prediction, taken from the slopes of the frame itself, times the bits
    of a squared error in [0, 1]. Those are ``bits_per_error`` where errors stay, and fewer where the error is large
    anyway, because a residual will follow: its bits grow with the logarithm of its energy only.
    """
    if not references:
        return motion
    flow = F.interpolate(motion.flow * FLOW_STEP, scale_factor=LATENT, mode="bilinear")
    warped = [warp(frame, part) for frame, part in zip(references, flow.split(2, dim=1), strict=False)]
    first = F.interpolate(0.5 + motion.blend / 2, scale_factor=LATENT, mode="bilinear")
    shares = [first, 1 - first] if len(references) == 2 else [torch.ones_like(first)]
    prediction = sum(share * image for share, image in zip(shares, warped, strict=True))
    reach = round(FLOW_STEP)
    wide = F.pad(current, (reach, reach, reach, reach), mode="replicate")
    across = (wide[:, :, reach:-reach, 2 * reach :] - wide[:, :, reach:-reach, : -2 * reach]) / 2
    down = (wide[:, :, 2 * reach :, reach:-reach] - wide[:, :, : -2 * reach, reach:-reach]) / 2
    changes = [share * slope for share in shares for slope in (across, down)]
    changes += [torch.zeros_like(current)] * (4 - len(changes)) + [(warped[0] - warped[-1]) / 2]
    squares = torch.cat([change.square().sum(dim=1, keepdim=True) for change in changes], dim=1)
    energy = LATENT**2 * F.avg_pool2d(squares, 2 * LATENT, LATENT, LATENT // 2)  # where a block's number has a say
    error = F.avg_pool2d((prediction - current).square().mean(dim=1, keepdim=True), LATENT)
    worth = COUNTED * energy / (1 / bits_per_error + error / RESIDUAL_BITS)
    return Motion(*worth.clamp(min=LEAST_WORTH).split((4, 1), dim=1))
