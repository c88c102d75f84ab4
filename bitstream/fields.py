"""Declared fields: one declaration gives a field's bytes, its checks and its row in FORMAT.md."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nic.errors import BadFile, UnsupportedFile

__all__ = ["Field", "Reader", "markdown_table", "pack_fields", "pack_varint", "unpack_fields"]

VARINT_BITS = 32  # so that a varint takes at most 5 bytes and a length fits any integer type

_SIZE_BYTES = {"u8": "1", "varint": "1–5", "bytes8": "8"}


@dataclass(frozen=True)
class Field:
    """One field of a structure.

    `allowed` is a range of integers, or a tuple that enumerates them (a later version may add more, so a reader that
    meets another value says "unsupported", not "damaged"), or None for raw bytes.
    """

    name: str
    type: Literal["u8", "varint", "bytes8"]
    allowed: range | tuple[int, ...] | None
    meaning: str

    def accepts(self, value: int | bytes) -> bool:
        """Whether a writer may store `value`."""
        if self.allowed is None:
            return isinstance(value, bytes) and len(value) == 8
        return value in self.allowed

    def allowed_text(self) -> str:
        """The allowed values in words: `1..65535`, or `8, 16`."""
        if self.allowed is None:
            return "any"
        if isinstance(self.allowed, range):
            return f"{self.allowed[0]}..{self.allowed[-1]}"
        return ", ".join(str(int(value)) for value in self.allowed)


class Reader:
    """Reads `data` front to back. A read past its end raises BadFile that names `what` was being read."""

    def __init__(self, data: bytes, what: str) -> None:
        self.position = 0
        self._data = data
        self._what = what

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.remaining:
            end = f"the {self._what} ends after {len(self._data):,} bytes"
            raise BadFile(f"truncated: {end}; {count} expected at offset {self.position}")
        self.position += count
        return self._data[self.position - count : self.position]

    def varint(self) -> int:
        """The next canonical unsigned LEB128 integer, 0..2^32-1."""
        start = self.position
        value = 0
        for shift in range(0, VARINT_BITS, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (byte == 0 and shift > 0) or value >= 1 << VARINT_BITS:
                    break
                return value
        raise BadFile(f"damaged {self._what}: no canonical 32-bit varint at offset {start}")


def pack_varint(value: int) -> bytes:
    """`value` in 0..2^32-1 as the shortest unsigned LEB128: 7 bits a byte, least significant first."""
    if not 0 <= value < 1 << VARINT_BITS:
        raise ValueError(f"{value} does not fit a {VARINT_BITS}-bit varint")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def pack_fields(fields: Iterable[Field], values: Mapping[str, Any]) -> bytes:
    """The bytes of `fields`, one after another. Raises ValueError for a value that is not allowed."""
    return b"".join(_pack_field(field, values[field.name]) for field in fields)


def unpack_fields(fields: Iterable[Field], reader: Reader) -> dict[str, Any]:
    """The values of `fields` by name; what `pack_fields` wrote.

    Raises UnsupportedFile for an unknown enumerated value, BadFile for one out of range or for missing bytes.
    """
    values: dict[str, Any] = {}
    for field in fields:
        value = _unpack_field(field, reader)
        if not field.accepts(value):
            problem = f"{field.name} is {value!r}, and this nic reads only {field.allowed_text()}"
            if isinstance(field.allowed, tuple):
                raise UnsupportedFile(f"{problem}: a newer nic is needed")
            raise BadFile(problem)
        values[field.name] = value
    return values


def markdown_table(fields: Iterable[Field]) -> str:
    """The table that FORMAT.md shows for `fields`."""
    lines = ["| Field | Type | Bytes | Allowed | Meaning |", "|---|---|---|---|---|"]
    for field in fields:
        row = (f"`{field.name}`", field.type, _SIZE_BYTES[field.type], field.allowed_text(), field.meaning)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _pack_field(field: Field, value: Any) -> bytes:
    if not field.accepts(value):
        raise ValueError(f"{field.name} must be {field.allowed_text()}, not {value!r}")
    match field.type:
        case "u8":
            return bytes([value])
        case "varint":
            return pack_varint(value)
        case "bytes8":
            return bytes(value)


def _unpack_field(field: Field, reader: Reader) -> int | bytes:
    match field.type:
        case "u8":
            return reader.take(1)[0]
        case "varint":
            return reader.varint()
        case "bytes8":
            return reader.take(8)
