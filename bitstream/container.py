"""A whole .nic file: the signature, then chunks of tag, length, payload and CRC-32 (FORMAT.md §3 to §5)."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from nic.bitstream.fields import Reader, pack_varint
from nic.bitstream.header import Header, pack_header, unpack_header
from nic.bitstream.limits import MAX_CHUNK_LENGTH, MAX_CHUNKS, MAX_METADATA_LENGTH
from nic.errors import BadFile, BadInput, UnsupportedFile

__all__ = ["SIGNATURE", "Chunk", "NicFile", "cell_grid", "chunks", "pack", "unpack"]

# As PNG's, each byte has its job: 0x89 shows a lost eighth bit and is no text, NIC is for people, CR LF and the last LF
# show a conversion of line ends in either direction, 0x1A stops a DOS listing.
SIGNATURE = b"\x89NIC\r\n\x1a\n"

CELL_SIZE = 1024  # pixels a side: 64 latent positions of 16 pixels; padding the picture to 64 never adds a cell


@dataclass(frozen=True)
class Chunk:
    """One chunk: `tag` is four ASCII letters, the first one upper case if readers must understand the chunk."""

    tag: str
    payload: bytes

    @property
    def critical(self) -> bool:
        """Whether a reader that does not know the tag must refuse the file."""
        return self.tag[0].isupper()


@dataclass(frozen=True)
class NicFile:
    """What a file says. `cells` are entropy-coded, in raster order; the optional blocks are as the input had them."""

    header: Header
    cells: tuple[bytes, ...]
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    alpha: bytes | None = None  # a greyscale PNG file of the picture's size


def cell_grid(header: Header) -> tuple[int, int]:
    """The cells of a picture as (rows, columns)."""
    return -(-header.height // CELL_SIZE), -(-header.width // CELL_SIZE)


def pack(file: NicFile) -> bytes:
    """The bytes of `file`. Raises BadInput if a block is larger than the format allows."""
    rows, columns = cell_grid(file.header)
    if len(file.cells) != rows * columns:
        raise ValueError(f"{len(file.cells)} cells given for a grid of {rows}×{columns}")
    parts = [SIGNATURE, _pack_chunk("HEAD", pack_header(file.header))]
    for tag, block in (("iccp", file.icc), ("exif", file.exif), ("xmpd", file.xmp)):
        if block is not None:
            parts.append(_pack_chunk(tag, _deflate(tag, block)))
    if file.alpha is not None:
        parts.append(_pack_chunk("ALPH", file.alpha))
    parts += [_pack_chunk("CELL", cell) for cell in file.cells]
    parts.append(_pack_chunk("DONE", b""))
    return b"".join(parts)


def unpack(data: bytes) -> NicFile:
    """The file in `data`; what `pack` wrote.

    Allocates no more than `data` holds and MAX_METADATA_LENGTH for each metadata block. Raises BadFile for damage and
    broken rules, UnsupportedFile for what only a newer nic can read.
    """
    stream = chunks(data)
    head = next(stream)
    if head.tag != "HEAD":
        raise BadFile(f"the first chunk is {head.tag}, not HEAD")
    header = unpack_header(head.payload)
    blocks: dict[str, bytes] = {}
    cells: list[bytes] = []
    for chunk in stream:
        match chunk.tag:
            case "CELL":
                cells.append(chunk.payload)
            case "iccp" | "exif" | "xmpd" | "ALPH":
                if chunk.tag in blocks or cells:
                    raise BadFile(f"chunk {chunk.tag} comes twice or after the first CELL")
                blocks[chunk.tag] = chunk.payload if chunk.tag == "ALPH" else _inflate(chunk)
            case "HEAD":
                raise BadFile("a second HEAD chunk")
            case "DONE":
                pass
            case _ if chunk.critical:
                raise UnsupportedFile(f"chunk {chunk.tag} is unknown to this nic: install a newer nic")
    rows, columns = cell_grid(header)
    if len(cells) != rows * columns:
        raise BadFile(f"{len(cells)} cells in the file, {rows * columns} in a picture of its size")
    return NicFile(header, tuple(cells), blocks.get("iccp"), blocks.get("exif"), blocks.get("xmpd"), blocks.get("ALPH"))


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of `data` up to DONE, which is the last one, whether or not this nic knows their tags.

    Raises BadFile for a wrong signature, truncation, a CRC mismatch, an impossible tag or length, or bytes after DONE.
    """
    if not data.startswith(SIGNATURE):
        raise _signature_error(data)
    reader = Reader(data, "file")
    reader.take(len(SIGNATURE))
    for _ in range(MAX_CHUNKS):
        chunk = _read_chunk(data, reader)
        if chunk.tag == "DONE" and (chunk.payload or reader.remaining):
            raise BadFile(f"{len(chunk.payload) + reader.remaining} bytes in or after DONE, the empty last chunk")
        yield chunk
        if chunk.tag == "DONE":
            return
    raise BadFile(f"more than {MAX_CHUNKS} chunks")


def _read_chunk(data: bytes, reader: Reader) -> Chunk:
    start = reader.position
    tag = reader.take(4)
    if not tag.isalpha():
        raise BadFile(f"damaged file: no chunk tag at offset {start}")
    length = reader.varint()
    if length > MAX_CHUNK_LENGTH:
        raise BadFile(f"chunk {tag.decode()} claims {length} bytes; the limit is {MAX_CHUNK_LENGTH}")
    payload = reader.take(length)
    computed = zlib.crc32(memoryview(data)[start : reader.position])
    (stored,) = struct.unpack("<I", reader.take(4))
    if computed != stored:
        raise BadFile(f"damaged file: CRC mismatch in chunk {tag.decode()} at offset {start}")
    return Chunk(tag.decode(), payload)


def _pack_chunk(tag: str, payload: bytes) -> bytes:
    if len(payload) > MAX_CHUNK_LENGTH:
        raise BadInput(f"{len(payload)} bytes for chunk {tag}; the limit is {MAX_CHUNK_LENGTH}")
    framed = tag.encode() + pack_varint(len(payload)) + payload
    return framed + struct.pack("<I", zlib.crc32(framed))


def _deflate(tag: str, block: bytes) -> bytes:
    if len(block) > MAX_METADATA_LENGTH:
        raise BadInput(f"{len(block)} bytes of metadata for chunk {tag}; the limit is {MAX_METADATA_LENGTH}")
    return zlib.compress(block, 9)


def _inflate(chunk: Chunk) -> bytes:
    inflater = zlib.decompressobj()
    try:
        block = inflater.decompress(chunk.payload, MAX_METADATA_LENGTH + 1)
    except zlib.error as error:
        raise BadFile(f"chunk {chunk.tag} is no zlib stream: {error}") from None
    if len(block) > MAX_METADATA_LENGTH:
        raise BadFile(f"chunk {chunk.tag} inflates to more than {MAX_METADATA_LENGTH} bytes")
    if not inflater.eof or inflater.unused_data:
        raise BadFile(f"chunk {chunk.tag} is not exactly one zlib stream")
    return block


def _signature_error(data: bytes) -> BadFile:
    if not data:
        return BadFile("empty file")
    if SIGNATURE.startswith(data):
        return BadFile("truncated file: it ends inside its signature")
    if b"NIC" in data[:6]:
        return BadFile("damaged signature: the file was transferred or converted as text; copy it again as binary")
    return BadFile("not a .nic file")
