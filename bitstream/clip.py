"""A .nic file that holds a video: groups of frames instead of cells (FORMAT.md §14)."""

from dataclasses import asdict, dataclass
from fractions import Fraction

from nic.bitstream.container import SIGNATURE, Contents, collect, noted, pack_chunk, read_head, scan
from nic.bitstream.fields import Field, Reader, pack_fields, pack_varint, unpack_fields
from nic.bitstream.header import Header, Kind, Mode, pack_header
from nic.bitstream.limits import MAX_FRAMES, MAX_GROUP, MAX_GROUP_PIXELS, MAX_GROUPS
from nic.errors import BadFile, BadInput, UsageError

__all__ = [
    "CLIP_FIELDS",
    "Clip",
    "ClipFile",
    "Group",
    "pack_end",
    "pack_group",
    "pack_origin",
    "pack_start",
    "salvage_clip",
]

TICKS_MAX = 2**32 - 1
BLOCKS = {"audi": "audio", "WGTS": "weights"}

CLIP_FIELDS = (
    Field("frames", "varint", range(1, MAX_FRAMES + 1), "frames of the video"),
    Field("group", "varint", range(1, MAX_GROUP + 1), "frames of a group; the last group may have fewer"),
    Field("span", "u8", range(1, MAX_GROUP), "frames from one forward frame to the next, §14.3"),
    Field("forward", "u8", range(253), "quality index of forward frames, in quarters"),
    Field("middle", "u8", range(253), "the same of frames between two others that are references themselves"),
    Field("leaf", "u8", range(253), "the same of frames that no other refers to"),
    Field("tick_num", "varint", range(1, TICKS_MAX + 1), "a tick of the timestamps is `tick_num / tick_den` seconds"),
    Field("tick_den", "varint", range(1, TICKS_MAX + 1), "see `tick_num`"),
    Field("aspect_num", "varint", range(1, 65536), "width of a pixel over its height: `aspect_num / aspect_den`"),
    Field("aspect_den", "varint", range(1, 65536), "see `aspect_num`"),
)


@dataclass(frozen=True)
class Clip:
    """What the CLIP chunk says; the fields of CLIP_FIELDS give units and ranges."""

    frames: int
    group: int
    span: int
    forward: int
    middle: int
    leaf: int
    tick_num: int
    tick_den: int
    aspect_num: int = 1
    aspect_den: int = 1

    @property
    def groups(self) -> int:
        return -(-self.frames // self.group)

    def length(self, index: int) -> int:
        """Frames of a group."""
        return min(self.group, self.frames - index * self.group)


@dataclass(frozen=True)
class Group:
    """Timestamps of a group's frames as they are shown, in ticks and ascending; their words as they are coded."""

    ticks: tuple[int, ...]
    frames: tuple[bytes, ...]


@dataclass(frozen=True)
class ClipFile:
    """What is intact in a file. ``audio`` is a Matroska file; ``weights`` is None where the network is the shipped one.

    ``problems`` has one line for each defect: none if and only if the file keeps every rule.
    """

    header: Header
    clip: Clip
    groups: dict[int, Group]
    problems: tuple[str, ...]
    truncated: bool  # no intact DONE was reached
    audio: bytes | None = None
    weights: bytes | None = None

    @property
    def rate(self) -> Fraction | None:
        """Frames a second, on average up to the last one that is intact; None where that takes two frames."""
        last = max(self.groups, default=0)
        end = self.groups[last].ticks[-1] if self.groups else 0
        count = last * self.clip.group + self.clip.length(last) - 1
        return Fraction(count * self.clip.tick_den, end * self.clip.tick_num) if end else None

    @property
    def network_lost(self) -> bool:
        """Whether there was a WGTS that is not intact: without it, frames are only like those of the encoder."""
        return self.weights is None and self.header.promises("WGTS")

    @property
    def audio_lost(self) -> bool:
        """Whether there was a track that is not intact."""
        return self.audio is None and self.header.promises("audi")


def pack_start(header: Header, clip: Clip, audio: bytes | None, weights: bytes | None) -> bytes:
    """Everything before the first group. Raises BadInput for a video that no file can hold."""
    check(header, clip, BadInput)
    blocks = {tag: block for tag, block in (("audi", audio), ("WGTS", weights)) if block is not None}
    parts = [SIGNATURE, pack_chunk("HEAD", pack_header(header, blocks))]
    parts.append(pack_chunk("CLIP", pack_fields(CLIP_FIELDS, asdict(clip))))
    parts += [pack_chunk(tag, block) for tag, block in blocks.items()]
    return b"".join(parts)


def pack_group(index: int, group: Group) -> bytes:
    """The chunk of a group."""
    parts = [pack_varint(index), pack_varint(group.ticks[0])]
    parts += [pack_varint(b - a) for a, b in zip(group.ticks, group.ticks[1:], strict=False)]
    for words in group.frames:
        parts += [pack_varint(len(words) // 4), words]
    return pack_chunk("GRUP", b"".join(parts))


def pack_origin(identity: bytes) -> bytes:
    """An ancillary chunk for files that are not finished: what tells their source from others."""
    return pack_chunk("from", identity)


def pack_end() -> bytes:
    """What ends a file."""
    return pack_chunk("DONE", b"")


def salvage_clip(data: bytes) -> ClipFile:
    """What is intact in a file that may be damaged or cut; for an intact file, all of it and no problems.

    Work and memory are bounded as for `nic.bitstream.container.salvage`. Raises BadFile if the signature, HEAD or CLIP
    is not intact, UnsupportedFile for what only a newer nic can read, UsageError if it holds a picture.
    """
    stream = scan(data)
    head, clip_chunk = next(stream), next(stream, None)
    if isinstance(head, BadFile):
        raise head
    header = read_head(head)
    if header.kind != Kind.VIDEO:
        raise UsageError("the file holds a picture, not a video")
    if isinstance(clip_chunk, BadFile):
        raise clip_chunk
    if clip_chunk is None or clip_chunk.tag != "CLIP":
        raise BadFile("the second chunk of a video is not CLIP")
    clip = unpack_clip(header, clip_chunk.payload)
    contents, problems = Contents(header, "GRUP", "group", clip.groups, tuple(BLOCKS)), list[str]()
    truncated = collect(stream, head, contents, problems)
    blocks = dict[str, bytes | None]()
    for tag, name in BLOCKS.items():
        with noted(problems):
            blocks[name] = contents.block(tag)
    groups, last = dict[int, Group](), -1
    for index in range(clip.groups):
        with noted(problems):
            group = unpack_group(contents.part(index), clip.length(index), index)
            if group.ticks[0] <= last:
                raise BadFile(f"group {index} starts at tick {group.ticks[0]}, but those before end at {last}")
            groups[index], last = group, group.ticks[-1]
    return ClipFile(header, clip, groups, tuple(problems), truncated, **blocks)


def unpack_clip(header: Header, payload: bytes) -> Clip:
    """The clip in the payload of CLIP; raises BadFile."""
    reader = Reader(payload, "CLIP chunk")
    clip = Clip(**unpack_fields(CLIP_FIELDS, reader))
    if reader.remaining:
        raise BadFile(f"{reader.remaining} bytes too many in the CLIP chunk")
    check(header, clip, BadFile)
    return clip


def check(header: Header, clip: Clip, error: type[BadFile | BadInput]) -> None:
    """Raises ``error`` for a video beyond the limits."""
    pixels = header.width * header.height * min(clip.group, clip.frames)
    if pixels > MAX_GROUP_PIXELS:
        raise error(f"{pixels} pixels in a group are more than the {MAX_GROUP_PIXELS} of a .nic file")
    if clip.groups > MAX_GROUPS:
        raise error(f"{clip.groups} groups are more than the {MAX_GROUPS} of a .nic file")
    if (header.mode, header.channels, header.bit_depth) != (Mode.FIDELITY, 3, 8):
        raise error("a video has fidelity mode and three channels of 8 bits")


def unpack_group(payload: bytes, length: int, index: int) -> Group:
    """The group of so many frames behind the index in the payload of GRUP; raises BadFile."""
    reader = Reader(payload, f"group {index}")
    ticks = [reader.varint()]
    for _ in range(length - 1):
        step = reader.varint()
        if step == 0:
            raise BadFile(f"two frames of group {index} have one timestamp")
        ticks.append(ticks[-1] + step)
    frames = tuple(reader.take(4 * reader.varint()) for _ in range(length))
    if reader.remaining or ticks[-1] > TICKS_MAX:
        raise BadFile(f"group {index} has {reader.remaining} bytes too many, or a timestamp beyond 2^32")
    return Group(tuple(ticks), frames)
