"""The HEAD chunk: which version of the format, what picture, which model decodes it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import IntEnum

from nic.bitstream.fields import Field, Reader, pack_fields, unpack_fields
from nic.bitstream.limits import MAX_SIDE, max_pixels
from nic.errors import BadFile, BadInput, UnsupportedFile

__all__ = [
    "FORMAT_MAJOR",
    "FORMAT_MINOR",
    "HEADER_FIELDS",
    "OPTIONAL",
    "Header",
    "Kind",
    "Mode",
    "pack_header",
    "unpack_header",
]

# The version of the format, not of the package. FORMAT.md §8 says what may change with which.
FORMAT_MAJOR = 1
FORMAT_MINOR = 1

# The tags of optional chunks, by their bits in the field `blocks`, the lowest first.
OPTIONAL = ("iccp", "exif", "xmpd", "ALPH", "audi", "WGTS")


class Kind(IntEnum):
    """What the file holds."""

    IMAGE = 0
    VIDEO = 1


class Mode(IntEnum):
    """Which codec wrote the cells."""

    FIDELITY = 0
    EXTREME = 1


HEADER_FIELDS = (
    Field("major", "u8", range(1, FORMAT_MAJOR + 1), "format version; a reader refuses a higher one"),
    Field("minor", "u8", range(256), "format revision; a reader accepts a higher one"),
    Field("kind", "u8", tuple(Kind), "0 image, 1 video"),
    Field("mode", "u8", tuple(Mode), "0 fidelity, 1 extreme"),
    Field("width", "varint", range(1, MAX_SIDE + 1), "pixels"),
    Field("height", "varint", range(1, MAX_SIDE + 1), "pixels"),
    Field("channels", "u8", (1, 3), "1 grey, 3 RGB; alpha is in its own chunk"),
    Field("bit_depth", "u8", (8, 16), "bits of a sample of the original picture"),
    Field("quality", "u8", range(253), "quality index in quarters: 252 is index 63; of a video, its key frames'"),
    Field("model_id", "bytes8", None, "names the model whose integer tensors decide the symbols"),
    Field("blocks", "u8", range(256), "from minor version 1 on: the optional chunks of the file, as bits"),
)
BLOCKS_SINCE = 1  # the minor version


@dataclass(frozen=True)
class Header:
    """The picture, without its version; the fields of HEADER_FIELDS give units and ranges.

    Raises BadInput for a picture that no .nic file can hold, so that an encoder knows before it starts.
    """

    kind: Kind
    mode: Mode
    width: int
    height: int
    channels: int
    bit_depth: int
    quality: int
    model_id: bytes
    blocks: int | None = field(default=None, compare=False)  # of a file that was read, None where it does not say

    def __post_init__(self) -> None:
        for declared in HEADER_FIELDS[2:-1]:
            value = getattr(self, declared.name)
            if not declared.accepts(value):
                raise BadInput(f"{declared.name} is {value!r}; a .nic file allows {declared.allowed_text()}")
        if self.width * self.height > (limit := max_pixels()):
            raise BadInput(f"{self.width}x{self.height} pixels are more than {limit}, the limit here")

    def promises(self, tag: str) -> bool:
        """Whether the file says that it has the optional chunk `tag`."""
        return bool((self.blocks or 0) >> OPTIONAL.index(tag) & 1)


def pack_header(header: Header, tags: Iterable[str] = ()) -> bytes:
    """The payload of HEAD of a file with these optional chunks, in the lowest version that can say it."""
    values = {**asdict(header), "blocks": sum(1 << OPTIONAL.index(tag) for tag in tags), "major": FORMAT_MAJOR}
    if values["blocks"]:
        return pack_fields(HEADER_FIELDS, {**values, "minor": BLOCKS_SINCE})
    return pack_fields(HEADER_FIELDS[:-1], {**values, "minor": 0})


def unpack_header(payload: bytes) -> Header:
    """The header in the payload of HEAD.

    Raises UnsupportedFile if a newer nic is needed, BadFile if the payload breaks the format.
    """
    if payload and payload[0] > FORMAT_MAJOR:  # first of all: a later major version may lay out the rest otherwise
        raise UnsupportedFile(
            f"the file needs version {payload[0]} of the format, this nic has {FORMAT_MAJOR}: install a newer nic"
        )
    reader = Reader(payload, "HEAD chunk")
    values = unpack_fields(HEADER_FIELDS[:-1], reader)
    del values["major"]
    minor = values.pop("minor")
    if minor >= BLOCKS_SINCE:
        values |= unpack_fields(HEADER_FIELDS[-1:], reader)
    if minor <= FORMAT_MINOR and reader.remaining:  # a later minor version may append fields
        raise BadFile(f"{reader.remaining} bytes too many in the HEAD chunk")
    values |= {"kind": Kind(values["kind"]), "mode": Mode(values["mode"])}
    try:
        return Header(**values)
    except BadInput as error:
        raise BadFile(str(error)) from None
