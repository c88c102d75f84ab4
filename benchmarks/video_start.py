"""What starting from the shipped network is worth to a video.

    python benchmarks/video_start.py CLIP

One group of frames is coded at one quality. Then the synthesis is fitted to its latents twice, with as much time on the
processor: from the shipped weights, as nic does it, and from random weights, all of them in float. Prints PSNR over
time, and the bits of both networks, the second one's at 6 bits a weight.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

from nic import video
from nic.frames import CodedFrame, GroupMotion, encode_group
from nic.loaded import load_model
from nic.media import Source
from nic.models import store
from nic.models.fit import Sample, exponents, fit, is_fast_in_bfloat16
from nic.models.order import Place
from nic.models.transforms import Synthesis
from nic.weights import apply_weights, encode_weights

FRAMES, QUALITY, BITS_A_WEIGHT = 24, 30, 6


def samples_of(path: str) -> tuple[store.Model, list[Sample], int]:
    """The model, its samples of the group, and the bits of the group's frames."""
    source = Source.open(path, 0, FRAMES)
    frames = list(source.frames())
    model = load_model(store.VIDEO, "cpu")
    encoder = video.ClipEncoder(source, model, video.EFFORTS[1])
    level = round(QUALITY / 100 * video.LEVELS)
    samples: list[Sample] = []

    def keep(place: Place, frame: CodedFrame) -> None:
        if sample := encoder.sample(frames[place.frame], frame, video.above(level, place.layer), 0):
            samples.append(sample)

    motion = GroupMotion.search(model, frames, encoder.span)
    coded = encode_group(model, frames, motion, lambda layer: video.above(level, layer), 0, keep)
    return model, samples, sum(8 * len(frame.words) for frame in coded)


@torch.inference_mode()
def psnr(synthesis: torch.nn.Module, samples: list[Sample]) -> float:
    errors = []
    for sample in samples:
        error = sample.error(synthesis(*sample.inputs)) / sample.bits
        errors.append(float(error) / (3 * sample.height * sample.width))
    return float(np.mean([-10 * np.log10(error) for error in errors]))


def from_scratch(model: store.Model, samples: list[Sample], seconds: float) -> Iterator[tuple[float, float]]:
    """Seconds of processor time and PSNR, after 1/8, 1/4, 1/2 and all of ``seconds``."""
    torch.manual_seed(0)
    synthesis = Synthesis(model.config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(synthesis.parameters(), 2e-3)
    start, told, number = time.process_time(), seconds / 8, 0
    while (spent := time.process_time() - start) < seconds:
        sample = samples[number % len(samples)]
        with torch.autocast("cpu", torch.bfloat16, enabled=is_fast_in_bfloat16(model.device)):
            images = synthesis(*sample.inputs)
        optimizer.zero_grad()
        (sample.error(images) / sample.bits / sample.images.numel()).backward()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent / seconds) + 1e-5
        optimizer.step()
        number += 1
        if spent >= told:
            yield spent, psnr(synthesis, samples)
            told *= 2
    yield seconds, psnr(synthesis, samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", metavar="CLIP")
    parser.add_argument("seconds", type=float, nargs="?", default=60, help="of the processor, for each [%(default)s]")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    model, samples, bits = samples_of(arguments.clip)
    weights = sum(parameter.numel() for parameter in model.synthesis.parameters())
    print(f"{arguments.clip}, {FRAMES} frames, quality {QUALITY}, {model.id.hex()}: {bits} bits of frames")
    print(f"shipped network     {0:6.1f} s  {psnr(model.synthesis, samples):.2f} dB  0 bits")
    scale = 1.0
    steps = exponents(model.synthesis, samples, scale)
    start = time.process_time()
    fit(model.synthesis, samples[:4], steps, scale, 1)
    epochs = max(1, int(seconds / ((time.process_time() - start) / 4 * len(samples))))
    start = time.process_time()
    payload = encode_weights(model, fit(model.synthesis, samples, steps, scale, epochs), steps)
    spent = time.process_time() - start
    fitted = apply_weights(model, payload)
    changed = sum(dict(model.synthesis.named_parameters())[name].numel() for name in steps)
    per_weight = 8 * len(payload) / changed
    value = psnr(fitted.synthesis, samples)
    print(
        f"fitted, {epochs} epochs  {spent:6.1f} s  {value:.2f} dB  {8 * len(payload)} bits, {per_weight:.2f} a weight"
    )
    for spent, value in from_scratch(model, samples, seconds):
        print(f"from random weights {spent:6.1f} s  {value:.2f} dB  {BITS_A_WEIGHT * weights} bits")


if __name__ == "__main__":
    main()
