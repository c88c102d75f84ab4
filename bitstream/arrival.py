"""The front of a .nic file whose end is not there: still coming in, or cut off."""

from collections.abc import Iterator

from nic.bitstream.container import SIGNATURE, Chunk, chunks
from nic.bitstream.fields import Reader
from nic.bitstream.header import Header, unpack_header
from nic.errors import BadFile, NicError

__all__ = ["Arrival", "cut_cell"]

CHUNK_MIN = 9  # bytes: the tag, one of length, no payload, the CRC


class Arrival:
    """Collects a file's bytes in `data` and finds the cells at its front, up to the first defect if there is one.

    What is found is not checked against the rest of the file: `unpack` or `salvage` of `data` has the last word.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._position = len(SIGNATURE)  # of the next chunk
        self._header: Header | None = None

    def feed(self, block: bytes) -> Iterator[tuple[Header, int, bytes]]:
        """The header, index and words of each cell that is complete with these bytes."""
        self.data += block
        try:
            while chunk := self._next_chunk():
                if chunk.tag == "DONE" or (chunk.tag == "HEAD" and self._header):
                    raise BadFile(f"{chunk.tag} is not where it belongs, or the last")
                if chunk.tag == "HEAD":
                    self._header = unpack_header(chunk.payload)
                elif chunk.tag == "CELL" and self._header:
                    reader = Reader(chunk.payload, "CELL chunk")
                    index = reader.varint()
                    yield self._header, index, reader.take(reader.remaining)
        except NicError:
            self._position = 2**64  # nothing after the end or a defect is taken for a cell

    def cut_cell(self) -> tuple[int, bytes] | None:
        """The index of the cell whose chunk is not complete yet, and its words so far; None if there is no such."""
        reader = Reader(bytes(self.data[self._position :]), "file")
        try:
            if reader.take(4) != b"CELL":
                return None
            reader.varint()
            return reader.varint(), reader.take(reader.remaining // 4 * 4)
        except BadFile:
            return None

    def _next_chunk(self) -> Chunk | None:
        start = self._position
        if start + CHUNK_MIN > len(self.data):
            return None
        reader = Reader(bytes(self.data[start + 4 : start + CHUNK_MIN]), "file")
        length = reader.varint()
        end = start + 4 + reader.position + length + 4
        if end > len(self.data):
            return None
        self._position = end
        return next(chunks(SIGNATURE + self.data[start:end]))


def cut_cell(data: bytes) -> tuple[int, bytes] | None:
    """The index of the cell in which a file, intact until then, is cut off, and the words there are of it.

    No checksum vouches for them.
    """
    arrival = Arrival()
    for _ in arrival.feed(data):
        pass
    return arrival.cut_cell()
