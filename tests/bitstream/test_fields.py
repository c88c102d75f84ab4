"""Bytes of single fields."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.bitstream.fields import Field, Reader, pack_fields, pack_varint, unpack_fields
from nic.errors import BadFile, UnsupportedFile


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16383, "ff7f"),
        (16384, "808001"),
        (2**32 - 1, "ffffffff0f"),
    ],
)
def test_varint_bytes(value: int, encoded: str) -> None:
    assert pack_varint(value).hex() == encoded
    assert Reader(bytes.fromhex(encoded), "test").varint() == value


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.binary(max_size=3))
def test_varint_law(value: int, rest: bytes) -> None:
    reader = Reader(pack_varint(value) + rest, "test")
    assert reader.varint() == value
    assert reader.remaining == len(rest)


@pytest.mark.parametrize("encoded", ["", "80", "8000", "ff00", "ffffffff10", "ffffffff8f00", "8080808000"])
def test_varint_rejects_truncated_long_and_large(encoded: str) -> None:
    with pytest.raises(BadFile):
        Reader(bytes.fromhex(encoded), "test").varint()


@pytest.mark.parametrize("value", [-1, 2**32])
def test_varint_refuses_to_write_what_does_not_fit(value: int) -> None:
    with pytest.raises(ValueError, match="varint"):
        pack_varint(value)


FIELDS = (
    Field("count", "varint", range(1, 1000), ""),
    Field("choice", "u8", (3, 5), ""),
    Field("name", "bytes8", None, ""),
)


def test_fields_bytes() -> None:
    values = {"count": 300, "choice": 5, "name": b"abcdefgh"}
    packed = pack_fields(FIELDS, values)
    assert packed == b"\xac\x02\x05abcdefgh"
    assert unpack_fields(FIELDS, Reader(packed, "test")) == values


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 1000}, {"choice": 4}, {"name": b"short"}, {"name": "eightchr"}]
)
def test_fields_refuse_to_write_what_is_not_allowed(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        pack_fields(FIELDS, {"count": 1, "choice": 3, "name": bytes(8), **wrong})


def test_fields_out_of_range_are_bad_and_unknown_choices_unsupported() -> None:
    with pytest.raises(BadFile, match=r"count is 0.*1\.\.999"):
        unpack_fields(FIELDS, Reader(b"\0\3" + bytes(8), "test"))
    with pytest.raises(UnsupportedFile, match="choice is 4.*newer nic"):
        unpack_fields(FIELDS, Reader(b"\1\4" + bytes(8), "test"))
    with pytest.raises(BadFile, match="truncated: the test"):
        unpack_fields(FIELDS, Reader(b"\1\3" + bytes(7), "test"))
