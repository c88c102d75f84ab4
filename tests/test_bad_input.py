"""Whatever is wrong with a file: one line, an exit code, no output, little memory, and never a wrong picture."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nic import codec
from nic.bitstream.container import NicFile, cell_grid, pack, unpack
from nic.bitstream.header import Header, Kind, Mode
from nic.encoder import encode_alpha
from nic.errors import BadFile, NicError, UnknownModel
from nic.loaded import load_model
from nic.pixels import Picture

MEMORY = 1536 * 2**20  # bytes


@pytest.fixture(scope="module")
def small(photo: np.ndarray) -> bytes:
    return codec.compress(Picture(photo[:40, :48]), quality=20).data


def test_every_truncation_is_refused(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(NicError):
            codec.decompress(small[:length])


@pytest.mark.parametrize("mask", [0x01, 0x10, 0xFF])
def test_every_flipped_byte_is_refused(small: bytes, mask: int) -> None:
    for offset in range(len(small)):
        damaged = bytearray(small)
        damaged[offset] ^= mask
        with pytest.raises(NicError):
            codec.decompress(bytes(damaged))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cell=st.binary(max_size=200))
def test_any_other_cell_is_refused_or_is_the_only_one_of_its_symbols(small: bytes, cell: bytes) -> None:
    """A payload with a right checksum, but not from an encoder: it decodes only if an encoder could have written it."""
    file = unpack(small)
    forged = pack(NicFile(file.header, (cell,)))
    try:
        codec.verify(forged)
    except BadFile:
        return
    assert len(cell) % 4 == 0


def test_swapped_cells_are_refused(photo: np.ndarray) -> None:
    """Cells of a picture at another quality have right checksums in a file where they do not belong."""
    one, other = (unpack(codec.compress(Picture(photo), quality=quality).data) for quality in (20, 60))
    with pytest.raises(BadFile):
        codec.verify(pack(NicFile(one.header, other.cells)))


def test_alpha_that_does_not_fit_is_refused(photo: np.ndarray, ramp: np.ndarray) -> None:
    file = unpack(codec.compress(Picture(photo, ramp), quality=20).data)
    for alpha in (encode_alpha(ramp[:10]), b"no PNG", (file.alpha or b"")[:99]):
        with pytest.raises(BadFile, match="alpha"):
            codec.decompress(pack(NicFile(file.header, file.cells, alpha=alpha)))


def test_alpha_may_be_as_large_as_the_picture(
    photo: np.ndarray, ramp: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's own limit, here below half of the picture's pixels, would call it a decompression bomb."""
    data = codec.compress(Picture(photo, ramp), quality=20, effort=1).data
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", ramp.size // 3)
    assert np.array_equal(codec.decompress(data).alpha, ramp)


def test_unknown_model_is_named(small: bytes) -> None:
    file = unpack(small)
    header = dataclasses.replace(file.header, model_id=b"12345678")
    with pytest.raises(UnknownModel, match="3132333435363738"):
        codec.decompress(pack(NicFile(header, file.cells)))


# A small process between this one and nic, because Linux starts a child's peak memory at its parent's.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def run_nic(*arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Runs ``nic`` and returns its result and its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, sys.executable, "-P", "-m", "nic", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    *lines, peak = done.stdout.splitlines(keepends=True)
    done.stdout = "".join(lines)
    return done, 1024 * int(peak)


def test_a_huge_claim_costs_no_memory(tmp_path: Path) -> None:
    """16384x16384 pixels in 3 kB, every checksum right: refused at the first cell, before anything is allocated."""
    model = load_model("fidelity", "cpu")
    header = Header(Kind.IMAGE, Mode.FIDELITY, 16384, 16384, 3, 8, 126, model.id)
    rows, columns = cell_grid(header)
    source, target = tmp_path / "huge.nic", tmp_path / "huge.png"
    source.write_bytes(pack(NicFile(header, (b"",) * (rows * columns))))
    done, memory = run_nic("decompress", str(source), str(target))
    assert done.returncode == 4 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not target.exists() and memory < MEMORY


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 4), (b"just some text\n" * 9, 4), (bytes(range(256)) * 8, 4), (b"\x89NIC\r\n\x1a\n" + b"\xff" * 99, 4)],
    ids=["empty", "text", "bytes", "signature only"],
)
def test_what_is_no_nic_file(content: bytes, code: int, tmp_path: Path) -> None:
    source, target = tmp_path / "x.nic", tmp_path / "x.png"
    source.write_bytes(content)
    done, _ = run_nic("decompress", str(source), str(target))
    assert done.returncode == code and not target.exists()
    assert done.stderr.startswith("nic: ") and len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize(("limit", "code"), [("1920", 0), ("1919", 4), ("many", 2), ("0", 2)])
def test_pixels_can_be_limited_further(
    limit: str, code: int, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48x40 pixels are 1920."""
    source = tmp_path / "x.nic"
    source.write_bytes(small)
    monkeypatch.setenv("NIC_MAX_PIXELS", limit)
    done, _ = run_nic("info", str(source))
    assert done.returncode == code and bool(done.stderr) == (code != 0)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1
