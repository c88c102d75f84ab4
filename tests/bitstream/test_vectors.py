"""The files of tests/vectors/format give what their README promises."""

from pathlib import Path

import pytest

from nic.bitstream.container import NicFile, salvage, unpack
from nic.bitstream.header import Header, Kind, Mode
from nic.errors import BadFile, NicError, UnsupportedFile, UsageError

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

SALVAGED = {  # the cells, and what the problems say
    "bad_truncated": ({0: b""}, ["without an intact DONE"]),
    "bad_trailing": ({0: b""}, ["1 bytes in or after DONE"]),
    "bad_crc": ({}, ["CRC mismatch in chunk CELL", "cell 0 is missing"]),
    "bad_two_cells": ({0: b""}, ["index 1"]),
    "bad_swapped_cells": ({0: b"a", 1: b"bb", 2: b"", 3: b"dddd"}, ["cell 1 comes after cell 2"]),
    "bad_missing_cell": ({0: b"a", 2: b"", 3: b"dddd"}, ["cell 1 is missing"]),
    "bad_repeated_cell": ({0: b"a", 1: b"bb", 2: b"", 3: b"dddd"}, ["cell 1 comes twice"]),
    "bad_cell_twice": ({0: b"a", 2: b"", 3: b"dddd"}, ["cell 1 comes twice", "cell 1 comes in 2 versions that differ"]),
    "bad_cell_index": ({0: b"a", 1: b"bb", 2: b""}, ["index 4", "cell 3 is missing"]),
    "bad_late_alpha": ({0: b""}, ["ALPH"]),
    "bad_long_varint": ({}, ["varint", "cell 0 is missing"]),
    "bad_bomb": ({0: b""}, ["inflates to more"]),
}

BAD = {
    "bad_newer_major": (UnsupportedFile, "version 2"),
    "bad_video": (UsageError, "holds a video"),
    "bad_unknown_critical": (UnsupportedFile, "NEWC"),
    "bad_text_mode": (BadFile, "as text"),
    "bad_truncated": (BadFile, "truncated"),
    "bad_trailing": (BadFile, "after DONE"),
    "bad_crc": (BadFile, "CRC mismatch in chunk CELL"),
    "bad_two_cells": (BadFile, "index 1; there are 1 cells"),
    "bad_swapped_cells": (BadFile, "cell 1 comes after cell 2"),
    "bad_missing_cell": (BadFile, "cell 1 is missing"),
    "bad_repeated_cell": (BadFile, "cell 1 comes twice"),
    "bad_cell_twice": (BadFile, "cell 1 comes twice"),
    "bad_cell_index": (BadFile, "index 4; there are 4 cells"),
    "bad_late_alpha": (BadFile, "ALPH"),
    "bad_long_varint": (BadFile, "varint"),
    "bad_pixels": (BadFile, "16385x16384"),
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


@pytest.mark.parametrize("name", BAD)
def test_salvage_of_bad_vector(name: str) -> None:
    data = (VECTORS / f"{name}.nic").read_bytes()
    if name not in SALVAGED:
        with pytest.raises(BAD[name][0], match=BAD[name][1]):
            salvage(data)
        return
    cells, told = SALVAGED[name]
    salvaged = salvage(data)
    assert salvaged.cells == cells
    assert len(salvaged.problems) == len(told)
    assert all(part in problem for part, problem in zip(told, salvaged.problems, strict=True))


def test_every_vector_is_tested_and_described() -> None:
    names = {path.stem for path in VECTORS.glob("*.nic")}
    assert names == GOOD.keys() | BAD.keys()
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"| `{name}.nic` |" not in readme] == []
