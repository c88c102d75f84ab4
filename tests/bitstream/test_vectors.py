"""The files of tests/vectors/format give what their README promises."""

from pathlib import Path

import pytest

from nic.bitstream.container import NicFile, unpack
from nic.bitstream.header import Header, Kind, Mode
from nic.errors import BadFile, NicError, UnsupportedFile

VECTORS = Path(__file__).parents[1] / "vectors" / "format"

ONE_PIXEL = Header(Kind.IMAGE, Mode.FIDELITY, 1, 1, 1, 8, 128, bytes.fromhex("0123456789abcdef"))
FOUR_CELLS = Header(Kind.IMAGE, Mode.EXTREME, 1025, 1025, 3, 16, 252, bytes.fromhex("fedcba9876543210"))

GOOD = {
    "minimal": NicFile(ONE_PIXEL, (b"",)),
    "metadata": NicFile(
        ONE_PIXEL, (bytes.fromhex("ffffffdf02f87ffc"),), icc=b"profile", exif=b"II*\0", xmp=b"<x/>", alpha=b"\x89PNG"
    ),
    "four_cells": NicFile(FOUR_CELLS, (b"a", b"bb", b"", b"dddd")),
    "newer_minor": NicFile(ONE_PIXEL, (b"",)),
}

BAD = {
    "bad_newer_major": (UnsupportedFile, "version 2"),
    "bad_video": (UnsupportedFile, "kind is 1"),
    "bad_unknown_critical": (UnsupportedFile, "NEWC"),
    "bad_text_mode": (BadFile, "as text"),
    "bad_truncated": (BadFile, "truncated"),
    "bad_trailing": (BadFile, "after DONE"),
    "bad_crc": (BadFile, "CRC mismatch in chunk CELL"),
    "bad_two_cells": (BadFile, "2 cells"),
    "bad_late_alpha": (BadFile, "ALPH"),
    "bad_long_varint": (BadFile, "varint"),
    "bad_pixels": (BadFile, "16385×16384"),
    "bad_bomb": (BadFile, "inflates"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_vector(name: str) -> None:
    assert unpack((VECTORS / f"{name}.nic").read_bytes()) == GOOD[name]


@pytest.mark.parametrize("name", BAD)
def test_bad_vector(name: str) -> None:
    error, message = BAD[name]
    with pytest.raises(NicError, match=message) as caught:
        unpack((VECTORS / f"{name}.nic").read_bytes())
    assert caught.type is error


def test_every_vector_is_tested_and_described() -> None:
    names = {path.stem for path in VECTORS.glob("*.nic")}
    assert names == GOOD.keys() | BAD.keys()
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"| `{name}.nic` |" not in readme] == []
