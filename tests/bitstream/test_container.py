"""Laws of whole files: what is packed is unpacked, and every damage is a NicError."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.bitstream import container, limits
from nic.bitstream.clip import Clip, Group, pack_end, pack_group, pack_start, salvage_clip
from nic.bitstream.container import SIGNATURE, Chunk, NicFile, cell_grid, chunks, pack, unpack
from nic.bitstream.fields import pack_varint
from nic.bitstream.header import HEADER_FIELDS, Header, Kind, Mode, pack_header, unpack_header
from nic.errors import BadFile, BadInput, NicError, UnsupportedFile

PHOTO = Header(Kind.IMAGE, Mode.FIDELITY, 768, 512, 3, 8, 128, b"model id")
SMALL_FILE = pack(NicFile(PHOTO, (b"cell",), exif=b"II*\0", alpha=b"png"))

headers = st.builds(
    Header,
    kind=st.just(Kind.IMAGE),
    mode=st.sampled_from(Mode),
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    channels=st.sampled_from([1, 3]),
    bit_depth=st.sampled_from([8, 16]),
    quality=st.integers(0, 252),
    model_id=st.binary(min_size=8, max_size=8),
)


@st.composite
def files(draw: st.DrawFn) -> NicFile:
    header = draw(headers)
    rows, columns = cell_grid(header)
    cells = draw(st.lists(st.binary(max_size=200), min_size=rows * columns, max_size=rows * columns))
    blocks = {name: draw(st.none() | st.binary(max_size=20)) for name in ("icc", "exif", "xmp", "alpha")}
    return NicFile(header, tuple(cells), **blocks)


@settings(max_examples=60, deadline=None)
@given(files())
def test_unpack_restores_what_pack_wrote(file: NicFile) -> None:
    assert unpack(pack(file)) == file


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_a_bad_file(garbage: bytes, signed: bool) -> None:
    with pytest.raises(BadFile):
        unpack(SIGNATURE * signed + garbage)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_every_changed_byte_is_noticed(mask: int) -> None:
    for position in range(len(SMALL_FILE)):
        damaged = bytearray(SMALL_FILE)
        damaged[position] ^= mask
        with pytest.raises(NicError):
            unpack(bytes(damaged))


def test_every_truncation_is_called_one() -> None:
    for length in range(1, len(SMALL_FILE)):
        with pytest.raises(BadFile, match="truncated"):
            unpack(SMALL_FILE[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (SMALL_FILE.replace(b"\r\n", b"\n"), "text"),
        (SMALL_FILE.replace(b"\n", b"\r\n"), "text"),
        (bytes(byte & 0x7F for byte in SMALL_FILE), "text"),
        (SMALL_FILE.decode("latin-1").encode(), "text"),
        (b"\x89PNG\r\n\x1a\n", "not a .nic file"),
        (b"GIF89a", "not a .nic file"),
    ],
)
def test_wrong_signatures_say_what_happened(data: bytes, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        unpack(data)


def test_overhead_of_a_photo() -> None:
    largest = dataclasses.replace(PHOTO, width=16383, height=16383)
    assert len(pack_header(largest)) == 19
    cell = bytes(2**21 - 1)
    assert len(pack(NicFile(PHOTO, (cell[:-1],)))) - len(cell[:-1]) <= 57


def test_files_without_optional_chunks_stay_those_of_version_1_0() -> None:
    head = next(chunks(pack(NicFile(PHOTO, (b"cell",))))).payload
    assert head[1] == 0 and unpack_header(head).blocks is None


def test_an_optional_chunk_that_is_promised_must_come() -> None:
    promising = ("HEAD", pack_header(PHOTO, ["exif", "ALPH"]))
    assert unpack_header(promising[1]).blocks == 2 + 8
    assert unpack(assemble(promising, EXIF, ALPHA, CELL, DONE)).alpha == ALPHA[1]
    with pytest.raises(BadFile, match="chunk exif is missing"):
        unpack(assemble(promising, ALPHA, CELL, DONE))
    with pytest.raises(BadFile, match="truncated"):
        unpack_header(promising[1][:-1])


def test_chunks_lists_a_file() -> None:
    assert [(chunk.tag, len(chunk.payload)) for chunk in chunks(SMALL_FILE)] == [
        ("HEAD", 20),
        ("exif", 12),
        ("ALPH", 3),
        ("CELL", 5),
        ("DONE", 0),
    ]


def assemble(*parts: tuple[str, bytes]) -> bytes:
    """A file of any chunks in any order, each with its right CRC."""
    framed = [tag.encode() + pack_varint(len(payload)) + payload for tag, payload in parts]
    return SIGNATURE + b"".join(chunk + zlib.crc32(chunk).to_bytes(4, "little") for chunk in framed)


HEAD, CELL, DONE = ("HEAD", pack_header(PHOTO)), ("CELL", b"\0"), ("DONE", b"")
EXIF, ALPHA, NOTE = ("exif", zlib.compress(b"")), ("ALPH", b""), ("note", b"?")


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD, CELL, DONE),
        (HEAD, ALPHA, EXIF, CELL, DONE),
        (HEAD, NOTE, NOTE, CELL, NOTE, DONE),
    ],
)
def test_accepted_orders(parts: tuple[tuple[str, bytes], ...]) -> None:
    assert unpack(assemble(*parts)).cells == (b"",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((CELL, DONE), "first chunk is CELL"),
        ((DONE,), "first chunk is DONE"),
        ((NOTE, HEAD, CELL, DONE), "first chunk is note"),
        ((HEAD, HEAD, CELL, DONE), "HEAD that does not belong"),
        ((HEAD, EXIF, EXIF, CELL, DONE), "exif comes twice"),
        ((HEAD, CELL, EXIF, DONE), "after the first CELL"),
        ((HEAD, CELL, ALPHA, DONE), "after the first CELL"),
        ((HEAD, DONE), "cell 0 is missing"),
        ((HEAD, CELL, CELL, DONE), "cell 0 comes twice"),
        ((HEAD, ("CELL", b"\1"), DONE), "index 1; there are 1 cells"),
        ((HEAD, ("CELL", b""), DONE), "CELL chunk ends"),
        ((HEAD, ("CELL", b"\x80\0"), DONE), "varint"),
        ((HEAD, CELL), "truncated"),
        ((HEAD, CELL, DONE, NOTE), "after DONE"),
        ((HEAD, CELL, ("DONE", b"x")), "in or after DONE"),
        ((HEAD, *[NOTE] * limits.MAX_CHUNKS), "more than 4096 chunks"),
        ((HEAD, ("ex1f", b"")), "no chunk tag"),
    ],
)
def test_refused_orders(parts: tuple[tuple[str, bytes], ...], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        unpack(assemble(*parts))


def test_unknown_critical_chunk_is_unsupported() -> None:
    assert Chunk("NEWC", b"").critical and not Chunk("nEWC", b"").critical
    with pytest.raises(UnsupportedFile, match="NEWC"):
        unpack(assemble(HEAD, ("NEWC", b""), CELL, DONE))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"no zlib", "no zlib stream"),
        (zlib.compress(b"exif") + b"\0", "exactly one"),
        (zlib.compress(b"exif")[:-1], "exactly one"),
        (zlib.compress(bytes(limits.MAX_METADATA_LENGTH + 1)), "inflates to more"),
    ],
)
def test_metadata_streams_that_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        unpack(assemble(HEAD, ("exif", payload), CELL, DONE))


def test_metadata_of_the_greatest_length() -> None:
    longest = NicFile(PHOTO, (b"",), xmp=bytes(limits.MAX_METADATA_LENGTH))
    assert unpack(pack(longest)) == longest
    with pytest.raises(BadInput, match="xmpd"):
        pack(dataclasses.replace(longest, xmp=bytes(limits.MAX_METADATA_LENGTH + 1)))


def test_length_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFile, match="claims 1073741825 bytes"):
        unpack(assemble(HEAD) + b"CELL" + pack_varint(limits.MAX_CHUNK_LENGTH + 1))


@pytest.mark.parametrize(
    ("size", "grid"),
    [((1, 1), (1, 1)), ((1024, 1024), (1, 1)), ((1025, 1024), (1, 2)), ((1, 65535), (64, 1)), ((4096, 65535), (64, 4))],
)
def test_cell_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    header = dataclasses.replace(PHOTO, width=size[0], height=size[1])
    assert cell_grid(header) == grid
    latent_w, latent_h = (-(-side // 64) * 4 for side in size)
    assert (-(-latent_h // 64), -(-latent_w // 64)) == grid
    assert grid[0] * grid[1] < limits.MAX_CHUNKS // 2


def test_pack_wants_every_cell() -> None:
    with pytest.raises(ValueError, match="0 cells"):
        pack(NicFile(PHOTO, ()))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": 65536},
        {"width": 16385, "height": 16384},
        {"channels": 4},
        {"bit_depth": 12},
        {"quality": 253},
        {"model_id": b"short"},
        {"kind": 2},
    ],
)
def test_header_refuses_pictures_that_no_file_can_hold(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        dataclasses.replace(PHOTO, **change)


@pytest.mark.parametrize("change", [{"mode": Mode.EXTREME}, {"channels": 1}, {"bit_depth": 16}])
def test_a_video_is_of_fidelity_mode_in_8_bit_rgb(change: dict[str, Any]) -> None:
    video, clip = dataclasses.replace(PHOTO, kind=Kind.VIDEO), Clip(1, 1, 8, 0, 0, 0, 1, 25)
    whole = pack_start(video, clip, None, None) + pack_group(0, Group((0,), (b"",))) + pack_end()
    assert salvage_clip(whole).problems == ()
    wrong = dataclasses.replace(video, **change)
    with pytest.raises(BadInput, match="fidelity mode and three channels of 8 bits"):
        pack_start(wrong, clip, None, None)
    head = container.pack_chunk("HEAD", pack_header(wrong))
    with pytest.raises(BadFile, match="fidelity mode and three channels of 8 bits"):
        salvage_clip(SIGNATURE + head + whole[len(SIGNATURE) + len(head) :])


def test_header_fields_are_those_of_the_declaration() -> None:
    assert [field.name for field in HEADER_FIELDS] == ["major", "minor", *(f.name for f in dataclasses.fields(Header))]


def test_versions_of_the_header() -> None:
    payload = pack_header(PHOTO)
    assert isinstance(unpack_header(payload).mode, Mode)
    assert unpack_header(payload[:1] + b"\x02" + payload[2:] + b"\0a field of version 1.2") == PHOTO
    with pytest.raises(BadFile, match="too many"):
        unpack_header(payload + b"\0")
    with pytest.raises(BadFile, match="major is 0"):
        unpack_header(b"\0" + payload[1:])
    with pytest.raises(UnsupportedFile, match="version 7"):
        unpack_header(b"\x07")


def test_container_needs_neither_numpy_nor_torch() -> None:
    """`nic info` reads headers; it must not wait for either."""
    sources = Path(container.__file__).parent
    for name in ("container", "header", "fields", "limits"):
        text = (sources / f"{name}.py").read_text(encoding="utf-8")
        assert "numpy" not in text and "torch" not in text
