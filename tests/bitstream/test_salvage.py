"""What is intact in a damaged file is salvaged, everything wrong is told, and no file takes long."""

import dataclasses
import random
import time
import zlib
from collections.abc import Sequence
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.bitstream import container, limits
from nic.bitstream.container import SIGNATURE, NicFile, Salvaged, chunks, pack, salvage, unpack
from nic.bitstream.fields import pack_varint
from nic.bitstream.header import Header, Kind, Mode, pack_header
from nic.errors import BadFile, UnsupportedFile

HEADER = Header(Kind.IMAGE, Mode.FIDELITY, 3000, 2000, 3, 8, 128, b"model id")
OTHER_HEADER = dataclasses.replace(HEADER, quality=9)
CELLS = tuple(random.Random(index).randbytes(40 * index) for index in range(6))
FILE = NicFile(HEADER, CELLS, icc=b"profile", exif=b"II*\0", xmp=b"<x/>" * 9, alpha=b"\x89PNG" * 30)
DATA = pack(FILE)


def split(data: bytes) -> list[bytes]:
    """The chunks of an intact file, as they stand in it."""
    parts, start = [], len(SIGNATURE)
    for chunk in chunks(data):
        end = start + 4 + len(pack_varint(len(chunk.payload))) + len(chunk.payload) + 4
        parts.append(data[start:end])
        start = end
    return parts


def framed(tag: bytes, payload: bytes) -> bytes:
    chunk = tag + pack_varint(len(payload)) + payload
    return chunk + zlib.crc32(chunk).to_bytes(4, "little")


def joined(parts: Sequence[bytes]) -> bytes:
    return SIGNATURE + b"".join(parts)


HEAD, *BLOCKS = split(DATA)[:5]
CELL_CHUNKS = split(DATA)[5:-1]
DONE = split(DATA)[-1]
NAMES = ("icc", "exif", "xmp", "alpha")
FIRST_CELL = 5  # its place among the chunks
PLACES = st.integers(1, FIRST_CELL + len(CELLS))  # of all chunks but HEAD


def salvaged_with_problems(data: bytes) -> Salvaged:
    """Salvages a file that `unpack` must refuse."""
    with pytest.raises(BadFile):
        unpack(data)
    salvaged = salvage(data)
    assert salvaged.header == HEADER
    assert salvaged.problems and all(line and "\n" not in line for line in salvaged.problems)
    return salvaged


def assert_all_but(salvaged: Salvaged, *lost: int) -> None:
    """Every chunk is salvaged but those at the places `lost`."""
    assert salvaged.cells == {i: words for i, words in enumerate(CELLS) if i + FIRST_CELL not in lost}
    for place, name in enumerate(NAMES, 1):
        assert getattr(salvaged, name) == (None if place in lost else getattr(FILE, name))
    assert salvaged.truncated == (FIRST_CELL + len(CELLS) in lost)


def test_intact_file() -> None:
    assert salvage(DATA) == Salvaged(HEADER, dict(enumerate(CELLS)), (), False, *(getattr(FILE, n) for n in NAMES))


@pytest.mark.parametrize("place", range(1, FIRST_CELL + len(CELLS) + 1))
def test_dropped_chunk(place: int) -> None:
    parts = split(DATA)
    salvaged = salvaged_with_problems(joined(parts[:place] + parts[place + 1 :]))
    assert_all_but(salvaged, place)


@settings(max_examples=300, deadline=None)
@given(PLACES, st.data())
def test_damaged_chunk(place: int, draw: st.DataObject) -> None:
    """Any other bytes in place of a part of a chunk, longer or shorter."""
    parts = split(DATA)
    chunk = parts[place]
    start = draw.draw(st.integers(0, len(chunk) - 1))
    end = draw.draw(st.integers(start, len(chunk)))
    damaged = chunk[:start] + draw.draw(st.binary(max_size=20)) + chunk[end:]
    if chunk in damaged:
        return
    parts[place] = damaged
    assert_all_but(salvaged_with_problems(joined(parts)), place)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_byte(mask: int) -> None:
    starts = [len(SIGNATURE)]
    for part in split(DATA):
        starts.append(starts[-1] + len(part))
    for offset in range(starts[1], len(DATA)):
        place = sum(start <= offset for start in starts) - 1
        damaged = bytearray(DATA)
        damaged[offset] ^= mask
        assert_all_but(salvaged_with_problems(bytes(damaged)), place)


def test_every_truncation_after_head() -> None:
    ends = [DATA.index(part) + len(part) for part in CELL_CHUNKS]
    for length in range(len(SIGNATURE) + len(HEAD), len(DATA)):
        salvaged = salvaged_with_problems(DATA[:length])
        assert salvaged.truncated
        assert salvaged.cells == {i: words for i, words in enumerate(CELLS) if ends[i] <= length}
        assert f"the file ends after {length:,} bytes" in salvaged.problems[0]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(len(CELLS))))
def test_cells_in_any_order(order: list[int]) -> None:
    data = joined([HEAD, *BLOCKS, *(CELL_CHUNKS[index] for index in order), DONE])
    if order == sorted(order):
        assert unpack(data) == FILE
    else:
        assert_all_but(salvaged_with_problems(data))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, FIRST_CELL + len(CELLS) - 1), st.integers(1, FIRST_CELL + len(CELLS)))
def test_chunk_that_comes_twice(place: int, copy: int) -> None:
    parts = split(DATA)
    parts.insert(copy, parts[place])
    assert_all_but(salvaged_with_problems(joined(parts)))


@pytest.mark.parametrize("at", [0, 1, 2, -1])
def test_of_versions_that_differ_none_is_taken(at: int) -> None:
    other = framed(b"CELL", b"\x02" + b"other")
    parts = [*CELL_CHUNKS, CELL_CHUNKS[2]]
    parts.insert(at, other)
    salvaged = salvaged_with_problems(joined([HEAD, *BLOCKS, *parts, DONE]))
    assert_all_but(salvaged, FIRST_CELL + 2)
    assert "cell 2 comes in 3 versions that differ" in salvaged.problems


def test_blocks_that_differ_or_do_not_inflate_are_damaged() -> None:
    bomb = framed(b"exif", zlib.compress(bytes(limits.MAX_METADATA_LENGTH + 1)))
    blocks = [BLOCKS[0], bomb, framed(b"xmpd", b"no zlib"), BLOCKS[3], framed(b"ALPH", b"another")]
    salvaged = salvaged_with_problems(joined([HEAD, *blocks, *CELL_CHUNKS, DONE]))
    assert_all_but(salvaged, 2, 3, 4)
    assert all(any(f"chunk {tag} " in line for line in salvaged.problems) for tag in ("exif", "xmpd", "ALPH"))


def test_problems_of_a_damaged_alpha_and_cell() -> None:
    parts = split(DATA)
    for place in (4, FIRST_CELL + 3):
        parts[place] = parts[place][:-1] + bytes([parts[place][-1] ^ 1])
    data = joined(parts)
    offsets = [data.index(parts[place]) for place in (4, FIRST_CELL + 3)]
    assert salvage(data).problems == (
        f"CRC mismatch in chunk ALPH at offset {offsets[0]}",
        f"CRC mismatch in chunk CELL at offset {offsets[1]}",
        "chunk ALPH is missing",
        "cell 3 is missing",
    )


def test_nothing_is_read_after_done() -> None:
    """A file written over a longer one without cutting it leaves chunks of the old picture behind."""
    old = [framed(b"CELL", pack_varint(index) + b"old") for index in range(6)]
    assert_all_but(
        salvaged_with_problems(joined([HEAD, *BLOCKS, *CELL_CHUNKS, DONE, *old, framed(b"NEWC", b""), DONE]))
    )


def test_nothing_is_read_after_the_head_of_another_picture() -> None:
    other = pack(NicFile(OTHER_HEADER, (b"other",) * len(CELLS)))
    salvaged = salvaged_with_problems(DATA[: -len(DONE)] + other)
    assert_all_but(salvaged, FIRST_CELL + len(CELLS))


def test_impossible_cells_are_told() -> None:
    wrong = [framed(b"CELL", payload) for payload in (b"", b"\x06", b"\x80\x00", b"\xff" * 9)]
    salvaged = salvaged_with_problems(joined([HEAD, *BLOCKS, *CELL_CHUNKS, *wrong, DONE]))
    assert_all_but(salvaged)
    assert len(salvaged.problems) == 4


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", BadFile),
        (b"\x88" + DATA[1:], BadFile),
        (DATA[: len(SIGNATURE)], BadFile),
        (DATA[: len(SIGNATURE) + len(HEAD) - 1], BadFile),
        (joined([HEAD[:-1] + b"?", *CELL_CHUNKS, DONE]), BadFile),
        (joined([*CELL_CHUNKS, DONE]), BadFile),
        (joined([framed(b"HEAD", b"\x02" + pack_header(HEADER)[1:]), DONE]), UnsupportedFile),
        (joined([HEAD, *CELL_CHUNKS, framed(b"NEWC", b""), DONE]), UnsupportedFile),
    ],
)
def test_files_of_which_nothing_can_be_salvaged(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        salvage(data)


def test_too_many_chunks() -> None:
    salvaged = salvaged_with_problems(
        joined([HEAD, *BLOCKS, *CELL_CHUNKS, *[framed(b"note", b"")] * limits.MAX_CHUNKS, DONE])
    )
    assert salvaged.cells == dict(enumerate(CELLS)) and salvaged.truncated
    assert salvaged.problems == ("more than 4096 chunks",)


def salvage_or_error(data: bytes) -> None:
    """`unpack` and `salvage` agree on what is intact, and raise nothing but their errors."""
    try:
        file: NicFile | None = unpack(data)
    except (BadFile, UnsupportedFile):
        file = None
    try:
        salvaged = salvage(data)
    except (BadFile, UnsupportedFile):
        assert file is None
        return
    assert (file is not None) == (not salvaged.problems)
    if file is not None:
        assert salvaged.cells == dict(enumerate(file.cells)) and not salvaged.truncated


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*split(DATA), *(framed(t, b"\1") for t in (b"DONE", b"note", b"CELL")), b"?"])))
def test_any_chunks_after_head(parts: list[bytes]) -> None:
    salvage_or_error(joined([HEAD, *parts]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 9), st.binary(max_size=9)), min_size=1))
def test_any_mutations(mutations: list[tuple[int, int, bytes]]) -> None:
    data = DATA
    for offset, count, replacement in mutations:
        data = data[:offset] + replacement + data[offset + count :]
    salvage_or_error(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(garbage: bytes) -> None:
    for start in (b"", SIGNATURE, SIGNATURE + HEAD):
        salvage_or_error(start + garbage)


@pytest.mark.parametrize(
    "false_start", [b"CELL", b"CELL\xff\x7f", b"CELL\xff\xff\x3f", b"CELL\xff\xff\xff\x01", b"DONE\0"]
)
def test_hostile_false_starts_take_bounded_time(false_start: bytes) -> None:
    size = 2**23
    data = joined([HEAD]) + false_start * (size // len(false_start)) + CELL_CHUNKS[0]
    tested = 0

    def crc32(part: memoryview) -> int:
        nonlocal tested
        tested += len(part)
        return zlib.crc32(part)

    start = time.perf_counter()
    with mock.patch.object(container, "zlib", mock.Mock(wraps=zlib, crc32=crc32)):
        salvaged = salvage(data)
    assert time.perf_counter() - start < 10
    assert tested <= (container.SEARCH + 2) * len(data)
    assert salvaged.truncated and len(salvaged.problems) < 20
