"""A whole .nic file: the signature, then chunks of tag, length, payload and CRC-32 (FORMAT.md §3 to §5 and §10)."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nic.bitstream.fields import Reader, pack_varint
from nic.bitstream.header import Header, Kind, pack_header, unpack_header
from nic.bitstream.limits import MAX_CHUNK_LENGTH, MAX_CHUNKS, MAX_METADATA_LENGTH
from nic.errors import BadFile, BadInput, UnsupportedFile, UsageError

__all__ = [
    "SIGNATURE",
    "Chunk",
    "Contents",
    "NicFile",
    "Salvaged",
    "cell_grid",
    "chunks",
    "holds_video",
    "noted",
    "pack",
    "pack_chunk",
    "read_head",
    "salvage",
    "scan",
    "unpack",
]

# As PNG's, each byte has its job: 0x89 shows a lost eighth bit and is no text, NIC is for people, CR LF and the last LF
# show a conversion of line ends in either direction, 0x1A stops a DOS listing.
SIGNATURE = b"\x89NIC\r\n\x1a\n"

CELL_SIZE = 1024  # pixels a side: 64 latent positions of 16 pixels; padding the picture to 64 never adds a cell

# The optional fields of NicFile by the tags of their chunks.
BLOCKS = {"iccp": "icc", "exif": "exif", "xmpd": "xmp", "ALPH": "alpha"}

DEFLATED = ("iccp", "exif", "xmpd")

KNOWN_TAGS = re.compile(rb"HEAD|iccp|exif|xmpd|ALPH|CELL|CLIP|audi|WGTS|GRUP|DONE")

SEARCH = 8  # how many times a file's size `salvage` may run through CRC in vain


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
    """What a file says. `cells` are the coder's words in raster order; the optional blocks are as in the input."""

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
        raise ValueError(f"{len(file.cells)} cells given for a grid of {rows}x{columns}")
    blocks = {tag: block for tag, name in BLOCKS.items() if (block := getattr(file, name)) is not None}
    parts = [SIGNATURE, pack_chunk("HEAD", pack_header(file.header, blocks))]
    parts += [pack_chunk(tag, _deflate(tag, block) if tag in DEFLATED else block) for tag, block in blocks.items()]
    parts += [pack_chunk("CELL", pack_varint(index) + words) for index, words in enumerate(file.cells)]
    parts.append(pack_chunk("DONE", b""))
    return b"".join(parts)


def unpack(data: bytes) -> NicFile:
    """The file in `data`; what `pack` wrote.

    Allocates no more than `data` holds and MAX_METADATA_LENGTH for each metadata block. Raises BadFile for damage and
    broken rules, UnsupportedFile for what only a newer nic can read.
    """
    stream = chunks(data)
    header = read_head(next(stream))
    contents = picture_contents(header)
    for chunk in stream:
        contents.add(chunk)
    cells = tuple(contents.part(index) for index in range(contents.count))
    return NicFile(header, cells, **{name: contents.block(tag) for tag, name in BLOCKS.items()})


@dataclass(frozen=True)
class Salvaged:
    """What is intact in a file. The optional blocks are None also where they are damaged."""

    header: Header
    cells: dict[int, bytes]  # the coder's words, by the cell's index
    problems: tuple[str, ...]  # one line each; there are none if and only if `unpack` accepts the file
    truncated: bool  # no intact DONE was reached
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    alpha: bytes | None = None


def salvage(data: bytes) -> Salvaged:
    """What is intact in a file that may be damaged or cut; for an intact file, what `unpack` gives.

    After damage it goes on at the next intact chunk of a known tag, until an intact DONE or the HEAD of another file.
    Of chunks that come twice it keeps one if they are equal, else none. Cells are intact as far as their CRC tells.

    At most SEARCH + 2 = 10 times the size of `data` run through CRC, however hostile it is; memory is as for `unpack`.
    Raises BadFile if the signature or HEAD is not intact, and UnsupportedFile as `unpack` does.
    """
    stream = scan(data)
    head = next(stream)
    if isinstance(head, BadFile):
        raise head
    header = read_head(head)
    contents, problems = picture_contents(header), list[str]()
    truncated = collect(stream, head, contents, problems)
    blocks = dict[str, bytes | None]()
    for tag, name in BLOCKS.items():
        with noted(problems):
            blocks[name] = contents.block(tag)
    cells = dict[int, bytes]()
    for index in range(contents.count):
        with noted(problems):
            cells[index] = contents.part(index)
    return Salvaged(header, cells, tuple(problems), truncated, **blocks)


def collect(stream: Iterator[Chunk | BadFile], head: Chunk, contents: "Contents", problems: list[str]) -> bool:
    """Puts intact chunks of a `scan` into `contents` and defects into `problems`; returns whether DONE is missing."""
    truncated = True
    for found in stream:
        if isinstance(found, BadFile):
            problems.append(str(found).rpartition(": ")[2])  # without "truncated: "
        elif found.tag == "HEAD" and found.payload != head.payload:
            problems.append("the HEAD of another file follows; nothing is read from there on")
            break
        else:
            truncated = found.tag != "DONE"
            with noted(problems):
                contents.add(found)
    return truncated


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of `data` up to DONE, which is the last one, whether or not this nic knows their tags.

    Raises BadFile for a wrong signature, truncation, a CRC mismatch, an impossible tag or length, or bytes after DONE.
    """
    for found in scan(data):
        if isinstance(found, BadFile):
            raise found
        yield found


def holds_video(data: bytes) -> bool:
    """Whether `data` starts as a .nic file of a video does; False for anything else, damaged or not."""
    try:
        return read_head(next(chunks(data))).kind == Kind.VIDEO
    except (BadFile, UnsupportedFile):
        return False


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Takes down a BadFile in `problems`."""
    try:
        yield
    except BadFile as error:
        problems.append(str(error))


def read_head(head: Chunk) -> Header:
    """The header in a file's first chunk; raises BadFile or UnsupportedFile."""
    if head.tag != "HEAD":
        raise BadFile(f"the first chunk is {head.tag}, not HEAD")
    return unpack_header(head.payload)


def picture_contents(header: Header) -> "Contents":
    """For the chunks of a picture. Raises UsageError if the file holds a clip."""
    if header.kind != Kind.IMAGE:
        raise UsageError("the file holds a video, not a picture: decompress it to .mkv or .mp4, or one --frame of it")
    rows, columns = cell_grid(header)
    return Contents(header, "CELL", "cell", rows * columns, tuple(BLOCKS))


class Contents:
    """The chunks after HEAD, each in its place: ``count`` numbered parts of one tag, before them the optional blocks.

    ``name`` is what messages call a part.
    """

    def __init__(self, header: Header, tag: str, name: str, count: int, blocks: tuple[str, ...]) -> None:
        self.header, self.count = header, count
        self._tag, self._name, self._tags = tag, name, blocks
        self._parts: dict[int, list[bytes]] = {}  # the payload behind the index of every chunk that has this index
        self._blocks: dict[str, list[bytes]] = {}  # the payload of every chunk that has this tag

    def add(self, chunk: Chunk) -> None:
        """Put `chunk` in its place.

        Raises BadFile if it must not come here; its bytes are kept even so, if they say where they belong. Raises
        UnsupportedFile for an unknown critical chunk.
        """
        match chunk.tag:
            case self._tag:
                self._add_part(chunk.payload)
            case tag if tag in self._tags:
                payloads = self._blocks.setdefault(chunk.tag, [])
                payloads.append(chunk.payload)
                if len(payloads) > 1 or self._parts:
                    raise BadFile(f"chunk {chunk.tag} comes twice or after the first {self._tag}")
            case "DONE":
                pass
            case _ if chunk.critical and KNOWN_TAGS.fullmatch(chunk.tag.encode()):
                raise BadFile(f"a chunk {chunk.tag} that does not belong there")
            case _ if chunk.critical:
                raise UnsupportedFile(f"chunk {chunk.tag} is unknown to this nic: install a newer nic")

    def part(self, index: int) -> bytes:
        """What a part holds. Raises BadFile if it is missing, or comes in versions that differ."""
        if index not in self._parts:
            raise BadFile(f"{self._name} {index} is missing")
        return _the_only(self._parts[index], f"{self._name} {index}")

    def block(self, tag: str) -> bytes | None:
        """An optional block, inflated if the file deflates it; None if there is none.

        Raises BadFile for one that the header promises and is missing, for versions that differ, and for metadata that
        are no zlib stream or inflate to too much.
        """
        if tag not in self._blocks:
            if self.header.promises(tag):
                raise BadFile(f"chunk {tag} is missing")
            return None
        payload = _the_only(self._blocks[tag], f"chunk {tag}")
        return _inflate(tag, payload) if tag in DEFLATED else payload

    def _add_part(self, payload: bytes) -> None:
        reader = Reader(payload, f"{self._tag} chunk")
        index = reader.varint()
        if index >= self.count:
            raise BadFile(f"a {self._tag} chunk has index {index}; there are {self.count} {self._name}s")
        last = max(self._parts, default=0)
        versions = self._parts.setdefault(index, [])
        versions.append(reader.take(reader.remaining))
        if len(versions) > 1:
            raise BadFile(f"{self._name} {index} comes twice")
        if index < last:
            raise BadFile(f"{self._name} {index} comes after {self._name} {last}")


def scan(data: bytes) -> Iterator[Chunk | BadFile]:
    """The intact chunks of `data` up to DONE, and an error for each stretch that is none and each rule broken.

    Where no intact chunk starts, the next place is looked for where one does whose tag is known. False starts may run
    SEARCH times the size of `data` through CRC, and each counts as at least 1 / MAX_CHUNKS of it, so that there are at
    most SEARCH * MAX_CHUNKS. Raises BadFile for a wrong signature.
    """
    if not data.startswith(SIGNATURE):
        raise _signature_error(data)
    reader = Reader(data, "file")
    reader.take(len(SIGNATURE))
    count, lost, allowance = 0, False, SEARCH * len(data)
    while reader.remaining and allowance > 0:
        start = reader.position
        try:
            chunk = _read_chunk(data, reader)
        except BadFile as error:
            if not lost:
                yield error
            lost = True
            allowance -= max(reader.position - start, len(data) // MAX_CHUNKS)
            tag = KNOWN_TAGS.search(data, start + 1)
            reader.position = tag.start() if tag else len(data)
            continue
        count, lost = count + 1, False
        if count > MAX_CHUNKS:
            yield BadFile(f"more than {MAX_CHUNKS} chunks")
            return
        yield chunk
        if chunk.tag == "DONE":
            if chunk.payload or reader.remaining:
                yield BadFile(f"{len(chunk.payload) + reader.remaining} bytes in or after DONE, the empty last chunk")
            return
    if reader.remaining:
        yield BadFile(f"nothing is read from offset {reader.position} on, after too many false starts of chunks")
    yield BadFile(f"truncated: the file ends after {len(data):,} bytes, without an intact DONE")


def _read_chunk(data: bytes, reader: Reader) -> Chunk:
    start = reader.position
    tag = reader.take(4)
    if not tag.isalpha():
        raise BadFile(f"damaged file: no chunk tag at offset {start}")
    length = reader.varint()
    if length > MAX_CHUNK_LENGTH:
        raise BadFile(f"chunk {tag.decode()} claims {length} bytes; the limit is {MAX_CHUNK_LENGTH}")
    if length + 4 > reader.remaining:
        claim = f"chunk {tag.decode()} at offset {start}, which claims {length}"
        raise BadFile(f"truncated: the file ends after {len(data):,} bytes, inside {claim}")
    payload = reader.take(length)
    computed = zlib.crc32(memoryview(data)[start : reader.position])
    (stored,) = struct.unpack("<I", reader.take(4))
    if computed != stored:
        raise BadFile(f"damaged file: CRC mismatch in chunk {tag.decode()} at offset {start}")
    return Chunk(tag.decode(), payload)


def pack_chunk(tag: str, payload: bytes) -> bytes:
    """The bytes of a chunk; raises BadInput for a payload that is too long."""
    if len(payload) > MAX_CHUNK_LENGTH:
        raise BadInput(f"{len(payload)} bytes for chunk {tag}; the limit is {MAX_CHUNK_LENGTH}")
    framed = tag.encode() + pack_varint(len(payload)) + payload
    return framed + struct.pack("<I", zlib.crc32(framed))


def _deflate(tag: str, block: bytes) -> bytes:
    if len(block) > MAX_METADATA_LENGTH:
        raise BadInput(f"{len(block)} bytes of metadata for chunk {tag}; the limit is {MAX_METADATA_LENGTH}")
    return zlib.compress(block, 9)


def _the_only(versions: list[bytes], what: str) -> bytes:
    if any(version != versions[0] for version in versions):
        raise BadFile(f"{what} comes in {len(versions)} versions that differ")
    return versions[0]


def _inflate(tag: str, payload: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        block = inflater.decompress(payload, MAX_METADATA_LENGTH + 1)
    except zlib.error as error:
        raise BadFile(f"chunk {tag} is no zlib stream: {error}") from None
    if len(block) > MAX_METADATA_LENGTH:
        raise BadFile(f"chunk {tag} inflates to more than {MAX_METADATA_LENGTH} bytes")
    if not inflater.eof or inflater.unused_data:
        raise BadFile(f"chunk {tag} is not exactly one zlib stream")
    return block


def _signature_error(data: bytes) -> BadFile:
    if not data:
        return BadFile("empty file")
    if SIGNATURE.startswith(data):
        return BadFile("truncated file: it ends inside its signature")
    if b"NIC" in data[:6]:
        return BadFile("damaged signature: the file was transferred or converted as text; copy it again as binary")
    return BadFile("not a .nic file")
