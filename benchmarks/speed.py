"""How long one photograph takes: nic, JPEG and WebP at equal bytes, on two processor cores.

    python benchmarks/speed.py IMAGE -o benchmarks/results

Writes speed.csv and prints it. Rows of "process" are whole processes, with the start of Python and the loading of
models: the `nic` command, and a line of Pillow for the others. Rows of "call" are calls in a running process with
the models loaded. Times are medians. Linux only.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch
from coders import CODERS, at_size, decode, encode
from PIL import Image
from report import RESULTS, Row, provenance, write_csv

from nic import codec

CORES = 2
QUALITY = 50  # of nic; the others get the quality that comes nearest to its bytes
NIC = [sys.executable, "-P", "-m", "nic"]
PILLOW = [
    sys.executable,
    "-c",
    "import json, sys; from PIL import Image; Image.open(sys.argv[1]).save(sys.argv[2], **json.loads(sys.argv[3]))",
]
# A small process between this one and the timed one, because Linux starts a child's peak memory at its parent's.
LAUNCHER = [
    sys.executable,
    "-S",
    "-c",
    """import os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))""",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a PNG photograph")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    parser.add_argument("-n", "--runs", type=int, default=7, help="timed runs of each step [%(default)s]")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    torch.set_num_threads(CORES)
    image = Image.open(arguments.image).convert("RGB")
    files = {"nic": (QUALITY, encode(image, "nic", QUALITY))}
    files |= {coder: at_size(image, coder, len(files["nic"][1])) for coder in ("JPEG", "WebP")}
    rows = []
    for coder, (quality, data) in files.items():
        measured = time_calls(image, coder, quality, data, arguments.runs)
        measured += time_processes(arguments.image, coder, quality, arguments.runs)
        rows += [{"codec": coder, "quality": quality, "bytes": len(data), **row} for row in measured]
    compare(rows)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items() if value is not None))
    run = {"machine": f"{len(os.sched_getaffinity(0))} cores of {processor()}", **provenance()}
    write_csv(arguments.output / "speed.csv", [row | run for row in rows])


def time_calls(image: Image.Image, coder: str, quality: int, data: bytes, runs: int) -> list[Row]:
    """Pillow image to bytes, and back. The synthesis of nic is what its decoding takes beyond reading all symbols."""
    times = {"encode": time_call(runs, encode, image, coder, quality), "decode": time_call(runs, decode, data)}
    if coder == "nic":
        symbols = time_call(runs, codec.verify, data)
        synthesis = [whole - part for whole, part in zip(times["decode"], symbols, strict=True)]
        times |= {"decode: prior and entropy coder": symbols, "decode: synthesis": synthesis}
    return [to_row("call", step, *seconds) for step, seconds in times.items()]


def time_processes(photo: Path, coder: str, quality: int, runs: int) -> list[Row]:
    """PNG file to compressed file, and back to PNG."""
    with tempfile.TemporaryDirectory() as folder:
        file, png = f"{folder}/photo.{coder.lower()}", f"{folder}/decoded.png"
        if coder == "nic":
            encoding = [*NIC, "compress", "--quiet", "--force", "-q", str(quality), str(photo), file]
            decoding = [*NIC, "decompress", "--quiet", "--force", file, png]
        else:
            encoding = [*PILLOW, str(photo), file, json.dumps({"quality": quality, **CODERS[coder]})]
            decoding = [*PILLOW, file, png, "{}"]
        return [
            to_row("process", step, *medians(run_process(command) for _ in range(runs)))
            for step, command in (("encode", encoding), ("decode", decoding))
        ]


def run_process(command: list[str]) -> tuple[float, float, float]:
    """Wall-clock seconds, user and system seconds, and peak resident MB of one process."""
    launched = subprocess.run([*LAUNCHER, *command], stdout=subprocess.PIPE, text=True, check=True)
    wall, cpu, kibibytes = map(float, launched.stdout.split())
    return wall, cpu, kibibytes * 1024 / 1e6


def time_call(runs: int, function: Callable[..., object], *arguments: object) -> list[float]:
    """Wall-clock and processor seconds of a call, after one that warms up."""
    function(*arguments)
    clocks = []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        function(*arguments)
        clocks.append((time.perf_counter() - wall, time.process_time() - cpu))
    return medians(clocks)


def medians(rows: Iterable[tuple[float, ...]]) -> list[float]:
    """The median of each column."""
    return [median(column) for column in zip(*rows, strict=True)]


def to_row(where: str, step: str, wall: float, cpu: float, memory: float | None = None) -> Row:
    return {
        "where": where,
        "step": step,
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "peak_mb": memory and round(memory),
    }


def compare(rows: list[Row]) -> None:
    """Adds the wall-clock time as a multiple of JPEG's, where JPEG has such a step."""
    jpeg = {(row["where"], row["step"]): row["wall_s"] for row in rows if row["codec"] == "JPEG"}
    for row in rows:
        reference = jpeg.get((row["where"], row["step"]))
        row["times_jpeg"] = reference and round(row["wall_s"] / reference, 1)


def processor() -> str:
    """The processor's name, where Linux tells it, and its architecture."""
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{name[1]}, {platform.machine()}" if name else platform.machine()


if __name__ == "__main__":
    main()
