"""How long a codec takes on one picture and how much memory, and how many operations nic's networks need.

Linux and macOS. The part that runs in the measured process imports nothing that a codec does not need.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from nic.bench.results import Row

__all__ = ["macs", "measure"]

# A small process between this one and the measured one, because Linux starts a child's peak memory at its parent's.
LAUNCHER = [sys.executable, "-S", "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]
SIDE = 512  # pixels, for macs
LEAST = 1.0  # seconds of calls: processors are slow to wake, and their clocks coarse


def measure(image: Path, codec: str, setting: float, runs: int) -> "list[Row]":
    """Rows of one codec: codec, setting, bytes, step ("load", "encode", "decode"), wall_s, cpu_s, peak_mb.

    Encoding and decoding are each measured in a fresh process, with as many threads as the codec takes.
    wall_s, cpu_s: medians of ``runs`` calls, or of as many as a second holds, after one that warms up, the latter of
    all threads and child processes; those of "load" are what imports, the making of the codec and its first encoding
    take beyond the median encoding.
    peak_mb: peak resident memory in 10^6 bytes of the process or, if larger, of one of its child processes, with the
    interpreter, the decoded picture and all that was loaded; "load" has that of encoding.
    """
    from nic.bench.measure import open_rgb  # the measured process imports this module, and not all of that

    with TemporaryDirectory() as folder:
        file, plain = Path(folder) / "file", Path(folder) / "plain.png"
        open_rgb(image, quick=False).save(plain)
        encoding, decoding = (run_child(step, plain, codec, setting, runs, file) for step in ("encode", "decode"))
        size = file.stat().st_size
    steps = {"load": (encoding["load"], encoding["peak_mb"])}
    steps |= {"encode": (encoding["call"], encoding["peak_mb"]), "decode": (decoding["call"], decoding["peak_mb"])}
    same = {"codec": codec, "setting": setting, "bytes": size}
    return [
        same | {"step": step, "wall_s": round(wall, 4), "cpu_s": round(cpu, 4), "peak_mb": round(peak)}
        for step, ((wall, cpu), peak) in steps.items()
    ]


def run_child(*arguments: object) -> dict[str, Any]:
    """What ``child`` returns, from a fresh process."""
    command = [*LAUNCHER, sys.executable, "-P", "-m", "nic.bench.speed", *map(str, arguments)]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def child(step: str, path: str, name: str, setting: str, runs: str, file: str) -> dict[str, Any]:
    """Runs one step; "encode" writes the file that "decode" reads. load and call: wall-clock and processor seconds."""
    image = Image.open(path)
    image.load()
    clocks = [clock()]
    codec = import_module("nic.bench.codecs").load(name)
    call: Callable[[], Any] = partial(codec.encode, image, float(setting))
    if step == "decode":
        call = partial(codec.decode, Path(file).read_bytes(), image.size)
    while len(clocks) < 2 + int(runs) or clocks[-1][0] - clocks[1][0] < LEAST:
        output = call()
        clocks.append(clock())
    if step == "encode":
        Path(file).write_bytes(output)
    spans = [(after[0] - before[0], after[1] - before[1]) for before, after in zip(clocks, clocks[1:], strict=False)]
    typical = [median(column) for column in zip(*spans[1:], strict=True)]
    load = [first - usual for first, usual in zip(spans[0], typical, strict=True)]
    return {"load": load, "call": typical, "peak_mb": peak_mb()}


def clock() -> tuple[float, float]:
    """Wall-clock seconds, and processor seconds of this process and its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mb() -> float:
    """Peak resident memory in 10^6 bytes, of this process or the largest of its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024
    return max(usage.ru_maxrss for usage in usages) * unit / 1e6


def macs() -> "list[Row]":
    """Size of each part of the default model: part, parameters, kmac_per_pixel (thousands of multiply-accumulates).

    Counted by PyTorch's FlopCounterMode, which counts convolutions and matrix products, not products of single
    elements (gains, gates, activations). One pass of each part over a picture whose sides are multiples of 64: the
    prior is its hyper-synthesis and all four steps, as it is trained; coding runs the same products over integers.
    An encoding runs all parts, and several passes at efforts above 1; a decoding runs prior and synthesis.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nic.models import store
    from nic.models.codec import ImageCodec
    from nic.models.prior import STEPS

    with torch.device("meta"):
        model = ImageCodec(store.load(store.DEFAULT).config)
        images, quality = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1)
        y = model.analysis(images, quality)
        z = model.hyper_analysis(y)

        def prior() -> None:
            features = model.prior.features(z, quality)
            for step in range(STEPS):
                model.prior.step(step, features, y)

        parts: dict[str, tuple[torch.nn.Module, Callable[[], object]]] = {
            "analysis": (model.analysis, lambda: model.analysis(images, quality)),
            "hyper-analysis": (model.hyper_analysis, lambda: model.hyper_analysis(y)),
            "prior": (model.prior, prior),
            "synthesis": (model.synthesis, lambda: model.synthesis(y, quality)),
        }
        rows = []
        for part, (module, call) in parts.items():
            with FlopCounterMode(display=False) as counter:
                call()
            kmac = counter.get_total_flops() / 2 / SIDE**2 / 1000
            parameters = sum(parameter.numel() for parameter in module.parameters())
            rows.append({"part": part, "parameters": parameters, "kmac_per_pixel": round(kmac, 3)})
    return rows


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:])))
