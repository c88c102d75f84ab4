"""Videos in other formats: the only place that reads and writes their containers (PyAV, that is ffmpeg).

Frames are 8-bit RGB, upright and whole: how the container says that they are turned and mirrored is applied, as the
EXIF orientation is to pictures, and interlaced frames are deinterlaced, one frame from each. Audio is copied, never
decoded; a .nic file keeps it as a Matroska file of its own.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

from nic.bitstream.limits import MAX_CHUNK_LENGTH, MAX_FRAMES, max_pixels
from nic.errors import BadFile, BadInput, BadOutput, NicError, UsageError

__all__ = ["SUFFIXES", "WRITABLE", "ClipWriter", "Source", "looks_like_video"]

SUFFIXES = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv .y4m".split())
CONTAINERS = "asf,avi,flv,m4v,matroska,mov,mpeg,mpegts,mpegvideo,ogg,yuv4mpegpipe"  # playlists would open other files
# What frames become in each container: encoder, pixel format, options. Matroska is lossless, the others nearly so.
WRITABLE: dict[str, tuple[str, str, dict[str, str]]] = {
    ".mkv": ("ffv1", "bgr0", {"level": "3"}),
    ".mov": ("libx264", "yuv420p", {"crf": "10"}),
    ".mp4": ("libx264", "yuv420p", {"crf": "10"}),
}
DEINTERLACER = ("bwdif", "mode=send_frame:deint=interlaced")  # frames that are not flagged interlaced stay as they are
ASPECT_MAX = 50  # of a pixel's width over its height or the reverse; what is beyond is taken for an error
TICKS = 2**31  # longer videos get coarser timestamps; the format allows twice as many
HDR, BT2020 = (16, 18), 9  # transfer functions PQ and HLG, and primaries, as ITU-T H.273 numbers them
FAILURES = (OSError, ValueError, OverflowError, av.FFmpegError)  # what PyAV raises
CHANNELS = {1: "mono", 2: "stereo"}
UNNAMED, BT601, BT709 = 2, 5, 1  # matrices, as H.273 numbers them; swscale takes BT.601 where a frame names none
SD = (1024, 576)  # width and height up to which BT.601 is meant where a frame names no matrix, else BT.709
BEST = 0x4 | 0x2000 | 0x40000  # swscale's bicubic, full_chroma_int and accurate_rnd: else it repeats chroma samples
EARLY = Fraction(1, 10)  # seconds of audio before the first frame that are worth a word
PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"jxl ", b"jp2 ")


def looks_like_video(start: bytes) -> bool:
    """Whether a file's first 12 bytes or more are those of a video container that is no picture format, too."""
    if start[4:8] == b"ftyp":
        return start[8:12] not in PICTURE_BRANDS
    matroska, mpeg, ogg = b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"OggS"
    return start.startswith((matroska, mpeg, ogg, b"YUV4MPEG2", b"FLV\1")) or start[8:12] == b"AVI "


def part_of(target: str) -> Path:
    """Where a video is written until it is whole: beside the file ``target``, or beside that which it is a link to."""
    return Path(f"{os.path.realpath(target)}.part")


@contextmanager
def reading() -> Iterator[None]:
    """Give BadInput for whatever ffmpeg raises."""
    try:
        yield
    except NicError:
        raise
    except FAILURES as error:
        raise BadInput(f"cannot be read as a video: {reason(error)}") from error


@contextmanager
def writing(suffix: str) -> Iterator[None]:
    """Give BadOutput for whatever ffmpeg raises."""
    try:
        yield
    except FAILURES as error:
        advice = "" if suffix == ".mkv" else ": try .mkv"
        raise BadOutput(f"a {suffix} of this video cannot be written ({reason(error)}){advice}") from error


def reason(error: Exception) -> str:
    """Why ffmpeg fails, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def opened(path: str) -> Any:
    """A file, whatever its name looks like, and nothing that it refers to."""
    return av.open(f"file:{path}", options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"})


@dataclass
class Seen:
    """What decoding a file once shows; ``size`` and ``aspect`` are those of upright frames."""

    stamps: list[int]  # of the frames, in units of ``tick``, from 0
    tick: Fraction
    begin: Fraction  # seconds of the first one in the file
    size: tuple[int, int]  # width, height
    aspect: Fraction
    interlaced: bool
    notes: list[str]


def look_through(path: str, first: int, last: int | None) -> Seen:
    """Decodes a file up to frame ``last``. Raises BadInput, also for more than MAX_FRAMES from ``first`` on."""
    stamps: list[int | None] = []
    size, interlaced, notes = (0, 0), False, list[str]()
    with reading(), opened(path) as container:
        stream = video_stream(container)
        tick, aspect = stream.time_base or Fraction(1, 1000), stream.sample_aspect_ratio or Fraction(1)
        for frame in decoded(container, stream):
            stamps.append(frame.pts)
            if last is not None and len(stamps) > last:
                break
            if len(stamps) > first + MAX_FRAMES:
                raise BadInput(f"more than {MAX_FRAMES} frames: take a part with --frames")
            turned = orientation(frame)[1] % 2 == 1
            shape = (frame.height, frame.width) if turned else (frame.width, frame.height)
            if len(stamps) == 1:
                size, notes = shape, [*lost_of(frame), *lost_tracks(container, frame)]
                aspect = 1 / aspect if turned and aspect else aspect
            if shape != size:
                raise BadInput(f"frame {len(stamps) - 1} is {shape[0]}x{shape[1]}, the first {size[0]}x{size[1]}")
            interlaced = interlaced or frame.interlaced_frame
        rate = stream.average_rate or Fraction(25)
    if not stamps:
        raise BadInput("the video has no frame that can be decoded")
    if interlaced:
        notes.append("interlaced frames are deinterlaced, one frame from each")
    known = [stamp for stamp in stamps if stamp is not None]
    begin = (known[0] if known else 0) * tick
    if len(known) < len(stamps) or known != sorted(known):
        if known:
            notes.append(f"its timestamps have gaps or go back: {float(rate):.5g} frames a second are assumed")
        return Seen(list(range(len(stamps))), 1 / rate, begin, size, aspect, interlaced, notes)
    return Seen([stamp - known[0] for stamp in known], tick, begin, size, aspect, interlaced, notes)


def lost_of(frame: Any) -> list[str]:
    """What of a frame's format is not kept, one line each."""
    notes, components = [], frame.format.components
    if components[0].bits > 8:
        notes.append(f"{components[0].bits}-bit samples become 8-bit")
    if any(component.is_alpha for component in components):
        notes.append("the alpha channel is dropped")
    if getattr(frame, "color_trc", None) in HDR or getattr(frame, "color_primaries", None) == BT2020:
        notes.append("HDR or wide-gamut colours are kept as numbers, but no longer said to be such")
    return notes


def lost_tracks(container: Any, frame: Any) -> list[str]:
    """What of a file is not kept besides its pictures, one line each; ``frame``: its first."""
    notes, sounds = [], container.streams.audio
    if len(sounds) > 1:
        notes.append(f"only the first of {len(sounds)} audio tracks is kept")
    if container.streams.subtitles:
        notes.append("subtitles are dropped")
    if sounds and sounds[0].start_time is not None and frame.pts is not None:
        early = frame.pts * frame.time_base - sounds[0].start_time * sounds[0].time_base
        if early > EARLY:
            notes.append(f"{float(early):.2g} s of audio before the first frame are dropped")
    return notes


@dataclass(frozen=True)
class Source:
    """A video file, or the frames ``first`` to ``last`` of it.

    Attributes:
        width, height: of the upright frames.
        ticks: timestamps of the frames in units of ``tick`` seconds, from 0, ascending.
        aspect: width of a pixel over its height.
        interlaced: whether some frames were, and are deinterlaced.
        notes: what of the file is not kept, one line each.
    """

    path: str
    first: int
    width: int
    height: int
    ticks: tuple[int, ...]
    tick: Fraction
    aspect: Fraction
    interlaced: bool
    begin: Fraction  # seconds of the first frame in the file
    end: Fraction | None  # seconds at which the last one ends, where frames follow it
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: str, first: int = 0, last: int | None = None) -> "Source":
        """Decodes a file once, to count its frames, no further than needed. ``last`` is not included.

        Raises BadInput, and UsageError where there are no such frames.
        """
        named = f"--frames {first}:{'' if last is None else last}"
        if first < 0 or (last is not None and last <= first):
            raise UsageError(f"{named} names no frame")
        seen = look_through(path, first, last)
        if first >= len(seen.stamps):
            raise UsageError(f"{named} names no frame of {len(seen.stamps)}")
        chosen, tick, aspect = seen.stamps[first:last], seen.tick, seen.aspect
        begin, coarser = seen.begin + chosen[0] * tick, 1 + (chosen[-1] - chosen[0]) // TICKS
        ticks, tick = [0], tick * coarser
        for stamp in chosen[1:]:
            ticks.append(max(ticks[-1] + 1, (stamp - chosen[0]) // coarser))
        aspect = aspect.limit_denominator(1000) if 1 / ASPECT_MAX <= aspect <= ASPECT_MAX else Fraction(1)
        end = None if last is None or last >= len(seen.stamps) else begin + (ticks[-1] + mean_step(ticks)) * tick
        notes = tuple(seen.notes)
        return cls(path, first, *seen.size, tuple(ticks), tick, aspect, seen.interlaced, begin, end, notes)

    @property
    def identity(self) -> bytes:
        """8 bytes that tell these frames of the file, as it is now, from others. Raises BadInput."""
        with reading():
            status = os.stat(self.path)
        told = f"{status.st_size} {status.st_mtime_ns} {self.first} {self.tick} {self.ticks}"
        return hashlib.sha256(told.encode()).digest()[:8]

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """The frames [H, W, 3] uint8 from ``start`` on. Raises BadInput, also where the file has become shorter."""
        count, end = 0, self.first + len(self.ticks)
        with reading(), opened(self.path) as container:
            stream = video_stream(container)
            frames = decoded(container, stream)
            for count, frame in enumerate(deinterlaced(frames, stream) if self.interlaced else frames, 1):
                if count > self.first + start:
                    yield upright(frame)
                if count == end:
                    return
        raise BadInput(f"the video has changed: it ends after {count} frames, and there were {end} or more")

    def audio(self) -> bytes | None:
        """The first audio track of these frames' time as a Matroska file; None without one.

        Raises BadInput, also for a track that Matroska does not hold.
        """
        buffer, count = io.BytesIO(), 0
        with reading(), opened(self.path) as container:
            if not container.streams.audio:
                return None
            try:
                with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as copy:
                    for packet in audio_packets(container, container.streams.audio[0], copy, self.begin, self.end):
                        copy.mux(packet)
                        count += 1
                        if buffer.tell() > MAX_CHUNK_LENGTH:
                            raise BadInput("its audio track is too large for a .nic file: use --no-audio")
            except FAILURES as error:
                raise BadInput(f"its audio track cannot be kept ({reason(error)}): use --no-audio") from error
        return buffer.getvalue() if count else None


def mean_step(ticks: Sequence[int]) -> Fraction:
    return Fraction(ticks[-1], len(ticks) - 1) if len(ticks) > 1 else Fraction(1)


def video_stream(container: Any) -> Any:
    """The first video track that is no cover picture, to be decoded with several threads and within the limits."""
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition):
            if stream.codec_context is None:
                raise BadInput("its video codec is unknown to ffmpeg")
            if stream.width * stream.height > (limit := max_pixels()):
                raise BadInput(f"{stream.width}x{stream.height} pixels are more than {limit}, the limit here")
            stream.codec_context.options = {"max_pixels": str(limit)}  # whatever the container says
            stream.thread_type = "AUTO"
            return stream
    raise BadInput("holds no video")


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream; a packet of no bytes, by which Theora repeats a frame, lets that one last longer."""
    for packet in container.demux(stream):
        if packet.size or packet.dts is None:  # the end is marked by one without a time, too
            yield from packet.decode()


def deinterlaced(frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """As many frames in their order; those that are interlaced get every second line from what is around it."""
    graph = av.filter.Graph()
    graph.link_nodes(graph.add_buffer(template=stream), graph.add(*DEINTERLACER), graph.add("buffersink")).configure()
    for frame in chain(frames, [None]):
        graph.push(frame)
        with suppress(BlockingIOError, EOFError):
            while True:
                yield graph.pull()


def orientation(frame: Any) -> tuple[bool, int]:
    """Whether a frame is to be mirrored, left to right, and by how many quarters it is to be turned left after that."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, 0
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    mirrored = a * d < b * c
    turn = math.atan2(-b, a) if not mirrored else math.atan2(b, -a)
    return mirrored, round(turn / (math.pi / 2)) % 4


def upright(frame: Any) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of a frame as it is to be seen."""
    large = frame.width > SD[0] or frame.height > SD[1]
    if frame.colorspace == UNNAMED and large and not frame.format.is_rgb:
        frame.colorspace = BT709
    pixels = frame.to_ndarray(format="rgb24", interpolation=BEST)
    mirrored, turns = orientation(frame)
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))


def audio_packets(container: Any, source: Any, copy: Any, begin: Fraction, end: Fraction | None) -> Iterator[Any]:
    """The packets of an audio track from ``begin`` to ``end`` (seconds), for a new track of ``copy``."""
    target = copy.add_stream_from_template(source)
    if source.codec_context.channels in CHANNELS:  # of a layout that only has a number, MP4 knows nothing
        target.codec_context.layout = CHANNELS[source.codec_context.channels]
    for packet in container.demux(source):
        if packet.pts is None:
            continue
        start = packet.pts * packet.time_base
        if start < begin or (end is not None and start >= end):
            continue
        shift = int(begin / packet.time_base)
        packet.pts -= shift
        packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        packet.stream = target
        yield packet


class ClipWriter:
    """Writes frames and audio into a container; a context manager."""

    def __init__(
        self,
        path: str,
        suffix: str,
        width: int,
        height: int,
        tick: Fraction,
        aspect: Fraction,
        rate: Fraction | None = None,
    ) -> None:
        """rate: frames a second, that players are told. Raises UsageError for a suffix that is not in WRITABLE."""
        if suffix not in WRITABLE:
            raise UsageError(f"cannot write a video as {suffix or 'no suffix'!r}: use {', '.join(WRITABLE)}")
        encoder, pixels, options = WRITABLE[suffix]
        self.suffix, self.tick = suffix, tick
        self.sound: Iterator[Any] = iter(())  # packets of audio
        self.packet: Any = None  # the next one
        with writing(suffix):
            self.container = cast(Any, av.open(path, "w", format={".mkv": "matroska"}.get(suffix, suffix[1:])))
            self.stream = self.container.add_stream(encoder, rate=rate, options=options)
            self.stream.width, self.stream.height = width, height
            even = width % 2 == height % 2 == 0
            self.pixels = pixels if even or pixels == "bgr0" else "yuv444p"  # 4:2:0 needs even sides
            self.stream.pix_fmt = self.pixels
            self.stream.codec_context.time_base = tick
            self.stream.codec_context.sample_aspect_ratio = aspect
            self.shaping = av.filter.Graph()  # FFV1 takes the aspect from frames, and Matroska gets it nowhere else
            entry = self.shaping.add_buffer(
                width=width, height=height, format=av.VideoFormat(self.pixels), time_base=tick
            )
            shape = self.shaping.add("setsar", f"r={aspect}:max={2**16}")
            self.shaping.link_nodes(entry, shape, self.shaping.add("buffersink")).configure()
            if self.pixels != "bgr0":
                self.stream.codec_context.colorspace = BT601

    def __enter__(self) -> "ClipWriter":
        return self

    def add_audio(self, matroska: bytes) -> None:
        """Copies the track of ``Source.audio``, before any frame.

        Raises BadFile if it is none, and UsageError if the container cannot hold it.
        """
        try:
            # of any other format, it could name files and addresses to be read
            track = av.open(io.BytesIO(matroska), format="matroska", options={"protocol_whitelist": ""})
            sound = track.streams.audio[0]
        except (*FAILURES, IndexError) as error:
            raise BadFile(f"its audio track cannot be read ({reason(error)})") from error
        try:
            self.sound = audio_packets(track, sound, self.container, Fraction(0), None)
            self.packet = next(self.sound, None)
            self.container.start_encoding()
        except FAILURES as error:
            raise UsageError(f"the audio does not fit this container ({reason(error)}): write .mkv") from error

    def add(self, pixels: np.ndarray, tick: int) -> None:
        """Appends a frame [H, W, 3] uint8, and the audio before it."""
        with writing(self.suffix):
            self.copy_audio(tick * self.tick)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=self.pixels)
            frame.pts, frame.time_base = tick, self.tick
            self.shaping.push(frame)
            self.container.mux(self.stream.encode(self.shaping.pull()))

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            with suppress(*FAILURES):
                self.container.close()
            return
        with writing(self.suffix), self.container:
            self.container.mux(self.stream.encode(None))
            self.copy_audio(math.inf)

    def copy_audio(self, until: Fraction | float) -> None:
        """Up to a time in seconds, so that what belongs together is near each other in the file."""
        while self.packet is not None and self.packet.pts * self.packet.time_base <= until:
            self.container.mux(self.packet)
            self.packet = next(self.sound, None)
