"""What is odd about videos in other formats, on their way in and out."""

import io
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
import skimage.data

from nic import video
from nic.errors import BadFile, BadInput, BadOutput, UsageError
from nic.media import TICKS, ClipWriter, Source

WIDTH, HEIGHT = 128, 96


def still(index: int) -> np.ndarray:
    """A photograph that moves by 8 pixels a frame."""
    photo = skimage.data.astronaut()
    return np.ascontiguousarray(photo[50 : 50 + HEIGHT, 100 + 8 * index : 100 + WIDTH + 8 * index])


def psnr(frames: list[np.ndarray], others: list[np.ndarray]) -> float:
    return float(np.mean([video.psnr(a, b) for a, b in zip(frames, others, strict=True)]))


def woven(count: int) -> list[np.ndarray]:
    """Frames of two fields each, the upper one first, taken one after another."""
    frames = [still(2 * index) for index in range(count)]
    for index, frame in enumerate(frames):
        frame[1::2] = still(2 * index + 1)[1::2]
    return frames


def flagged(frames: list[np.ndarray]) -> Iterator[Any]:
    """Frames for an encoder that codes fields."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format="yuv420p", time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    for tick, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = tick, Fraction(1, 25)
        graph.push(frame)
        yield graph.pull()


def write_interlaced(path: Path, codec: str, frames: list[np.ndarray]) -> str:
    options = {"flags": "+ildct+ilme"} | ({"crf": "1"} if codec == "libx264" else {"qmin": "1", "q": "1"})
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        for frame in flagged(frames):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_plain(path: Path, frames: list[np.ndarray], tick: Fraction = Fraction(1, 25), step: int = 1) -> str:
    height, width, _ = frames[0].shape
    with ClipWriter(str(path), path.suffix, width, height, tick, Fraction(1)) as writer:
        for index, pixels in enumerate(frames):
            writer.add(pixels, index * step)
    return str(path)


@pytest.mark.parametrize(("name", "codec"), [("a.mpg", "mpeg2video"), ("a.ts", "libx264"), ("a.mkv", "mpeg4")])
def test_interlaced_frames_are_deinterlaced(tmp_path: Path, name: str, codec: str) -> None:
    """One frame from each, at its time, nearer to what the camera saw than both fields in one."""
    fields = woven(6)
    source = Source.open(write_interlaced(tmp_path / name, codec, fields))
    assert [tick * source.tick for tick in source.ticks] == [Fraction(index, 25) for index in range(6)]
    assert any("deinterlaced" in note for note in source.notes)
    frames, whole = list(source.frames()), [still(2 * index) for index in range(6)]
    assert psnr(frames, whole) > psnr(fields, whole) + 8
    part = Source.open(source.path, 2, 5)
    assert all(np.array_equal(a, b) for a, b in zip(part.frames(1), frames[3:5], strict=True))


def test_one_interlaced_frame(tmp_path: Path) -> None:
    source = Source.open(write_interlaced(tmp_path / "a.mkv", "libx264", woven(1)))
    assert len(list(source.frames())) == len(source.ticks) == 1


def test_progressive_frames_are_left_as_they_are(tmp_path: Path) -> None:
    frames = [still(index) for index in range(3)]
    source = Source.open(write_plain(tmp_path / "a.mkv", frames))
    assert not source.interlaced and source.notes == ()
    assert all(np.array_equal(a, b) for a, b in zip(source.frames(), frames, strict=True))


def test_timestamps_too_fine_for_the_format(tmp_path: Path) -> None:
    step = 2**28  # a second
    path = write_plain(tmp_path / "a.mov", [still(0)[:8, :8]] * 12, Fraction(1, step), step)
    source = Source.open(path)
    assert source.ticks[-1] <= TICKS
    assert [float(tick * source.tick) for tick in source.ticks] == pytest.approx(range(12), abs=1e-6)
    video.compress(source, str(tmp_path / "a.nic"), quality=0, effort=1)
    assert video.read((tmp_path / "a.nic").read_bytes()).groups[0].ticks == source.ticks


@pytest.mark.parametrize(
    ("written", "read"),
    [(Fraction(16, 15), Fraction(16, 15)), (Fraction(65535), Fraction(1)), (Fraction(1, 65535), Fraction(1))],
)
def test_pixel_aspect(tmp_path: Path, written: Fraction, read: Fraction) -> None:
    path = str(tmp_path / "a.mp4")
    with ClipWriter(path, ".mp4", 64, 64, Fraction(1, 25), written) as writer:
        writer.add(np.zeros((64, 64, 3), np.uint8), 0)
    assert Source.open(path).aspect == read


def test_a_video_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    source = Source.open(write_plain(tmp_path / "a.mkv", [still(index) for index in range(9)]))
    data = Path(source.path).read_bytes()
    Path(source.path).write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match="changed|cannot be read"):
        video.compress(source, str(tmp_path / "a.nic"), quality=0, effort=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mkv"]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_damaged_video_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    """Never anything but a NicError, and never fewer frames than were counted."""
    path = tmp_path / f"a{suffix}"
    data = Path(write_plain(path, [still(index) for index in range(9)])).read_bytes()
    chance = np.random.default_rng(0)
    counts = []
    for _ in range(40):
        damaged = np.frombuffer(data, np.uint8)[: chance.integers(len(data) // 2, 2 * len(data))].copy()
        damaged[chance.integers(len(damaged), size=chance.integers(3))] ^= 0x55
        path.write_bytes(damaged.tobytes())
        try:
            source = Source.open(str(path))
            counts.append(len(list(source.frames())))
            assert counts[-1] == len(source.ticks)
        except BadInput as error:
            assert "\n" not in str(error)
    assert 9 in counts and (min(counts) < 9 or len(counts) < 40)


def test_a_size_that_changes(tmp_path: Path) -> None:
    """Refused, unless the frames asked for come before: no more than those are decoded."""
    large = write_interlaced(tmp_path / "a.ts", "libx264", [still(0)] * 9)
    with av.open(str(tmp_path / "b.ts"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(still(0)[:48, :64].copy(), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "both.ts").write_bytes(Path(large).read_bytes() + (tmp_path / "b.ts").read_bytes())
    with pytest.raises(BadInput, match="64x48, the first 128x96"):
        Source.open(str(tmp_path / "both.ts"))
    part = Source.open(str(tmp_path / "both.ts"), 0, 3)
    assert len(part.ticks) == 3 and part.end is not None
    for first, last in ((3, 3), (-1, None), (3, 2)):
        with pytest.raises(UsageError, match="no frame"):
            Source.open(str(tmp_path / "both.ts"), first, last)


@pytest.mark.parametrize("playlist", ["ffconcat version 1.0\nfile {0}\n", "#EXTM3U\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n"])
def test_playlists_are_no_videos(tmp_path: Path, playlist: str) -> None:
    """A file from a stranger opens no other files."""
    write_plain(tmp_path / "secret.mp4", [still(0)])
    (tmp_path / "a.mp4").write_text(playlist.format("secret.mp4"))
    with pytest.raises(BadInput):
        Source.open(str(tmp_path / "a.mp4"))


def test_pixels_are_limited_before_a_frame_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plain(tmp_path / "a.mkv", [still(0)])
    monkeypatch.setenv("NIC_MAX_PIXELS", str(WIDTH * HEIGHT))
    assert len(list(Source.open(path).frames())) == 1
    monkeypatch.setenv("NIC_MAX_PIXELS", str(WIDTH * HEIGHT - 1))
    with pytest.raises(BadInput, match="128x96"):
        Source.open(path)


def test_names_that_look_like_protocols(tmp_path: Path) -> None:
    path = Path(write_plain(tmp_path / "a.mkv", [still(0)])).rename(tmp_path / "http:b.mkv")
    assert len(Source.open(str(path)).ticks) == 1


@pytest.mark.parametrize(
    ("suffix", "width", "tick", "ticks"),
    [
        (".mkv", 16, Fraction(1, 2**32 - 1), [0]),
        (".mov", 16, Fraction(2**32 - 1), [0]),
        (".mp4", 17000, Fraction(1, 25), [0]),
        (".mp4", 16, Fraction(1, 25), [0, 1, 2**32 - 1]),
        (".mkv", 16, Fraction(1, 25), [5, 4]),
    ],
)
def test_what_a_container_cannot_hold(
    tmp_path: Path, suffix: str, width: int, tick: Fraction, ticks: list[int]
) -> None:
    with (
        pytest.raises(BadOutput, match=suffix),
        ClipWriter(str(tmp_path / "a"), suffix, width, 2, tick, Fraction(1)) as writer,
    ):
        for time in ticks:
            writer.add(np.zeros((2, width, 3), np.uint8), time)


def sound(seconds: int, codec: str = "pcm_s16le") -> bytes:
    sample_format, kind = ("u8", np.uint8) if codec == "pcm_u8" else ("s16", np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        track: Any = container.add_stream(codec, rate=8000, layout="mono")
        for index in range(seconds):
            silence = np.zeros((1, 8000), kind)
            samples = av.AudioFrame.from_ndarray(silence, format=sample_format, layout="mono")
            samples.sample_rate, samples.pts = 8000, 8000 * index
            container.mux(track.encode(samples))
        container.mux(track.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_audio_lies_beside_its_frames(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"a{suffix}")
    with ClipWriter(path, suffix, WIDTH, HEIGHT, Fraction(1), Fraction(1)) as writer:
        writer.add_audio(sound(40))
        for tick in range(40):
            writer.add(still(0), tick)
    reached = {"audio": 0.0, "video": 0.0}
    with av.open(path) as container:
        for packet in container.demux():
            if packet.dts is not None:
                reached[packet.stream.type] = float(packet.dts * (packet.time_base or 0))
                assert abs(reached["audio"] - reached["video"]) < 4
    assert min(reached.values()) > 35


def test_stereo_of_no_named_layout_fits_mp4(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        track: Any = container.add_stream("pcm_s16le", rate=8000, layout="stereo")
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="stereo")
        samples.sample_rate = 8000
        container.mux(track.encode(samples))
        container.mux(track.encode(None))
    audio = Source.open(str(tmp_path / "a.avi")).audio()
    assert audio
    with ClipWriter(str(tmp_path / "b.mp4"), ".mp4", 16, 16, Fraction(1, 25), Fraction(1)) as writer:
        writer.add_audio(audio)
        writer.add(np.zeros((16, 16, 3), np.uint8), 0)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.channels == 2


def test_audio_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "secret.mkv").write_bytes(sound(1))
    names_a_file = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mkv'\n".encode()
    for track, error in ((sound(1, "pcm_u8"), UsageError), (b"audio", BadFile), (names_a_file, BadFile)):
        with (
            pytest.raises(error, match=r"write \.mkv" if error is UsageError else "audio track cannot be read"),
            ClipWriter(str(tmp_path / "a"), ".mp4", 16, 16, Fraction(1), Fraction(1)) as writer,
        ):
            writer.add_audio(track)


def test_audio_that_cannot_be_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "a.avi")
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        track: Any = container.add_stream("pcm_mulaw", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(av.VideoFrame.from_ndarray(still(0), format="rgb24")))
        container.mux(track.encode(samples))
        container.mux([*stream.encode(None), *track.encode(None)])
    source = Source.open(path)
    with pytest.raises(BadInput, match="--no-audio"):
        source.audio()
    assert len(list(source.frames())) == 1


def ffmpeg(*arguments: object, given: bytes = b"") -> bytes:
    """What the program ffmpeg writes to stdout."""
    program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    command = [program, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=given, check=True, capture_output=True).stdout


def as_shown(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The frames of a video as the program ffmpeg shows them."""
    exact = "scale=flags=accurate_rnd+full_chroma_int+bicubic"
    return np.frombuffer(
        ffmpeg("-i", path, "-vf", exact, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"), np.uint8
    ).reshape(shape)


@pytest.mark.parametrize(
    "told",
    [
        "-display_rotation 90",
        "-display_rotation 180",
        "-display_rotation 270",
        "-display_hflip",
        "-display_vflip",
        "-display_rotation 90 -display_hflip",
    ],
)
def test_turned_and_mirrored_frames_become_upright(tmp_path: Path, told: str) -> None:
    """As ffmpeg shows them; the shape of pixels turns, too."""
    plain, other = tmp_path / "plain.mp4", tmp_path / "other.mp4"
    pixels = np.ascontiguousarray(still(0)[1:, 1:])  # odd sides: 4:4:4, whose chroma does not depend on the direction
    with ClipWriter(str(plain), ".mp4", WIDTH - 1, HEIGHT - 1, Fraction(1, 25), Fraction(2)) as writer:
        writer.add(pixels, 0)
    ffmpeg(*told.split(), "-i", plain, "-c", "copy", other)
    source = Source.open(str(other))
    (frame,) = source.frames()
    sideways = "90" in told or "270" in told
    assert source.aspect == (Fraction(1, 2) if sideways else 2) and (source.width < source.height) == sideways
    assert np.abs(frame - as_shown(other, frame.shape).astype(int)).max() <= 2


def test_lossless_video_tells_its_pixel_aspect(tmp_path: Path) -> None:
    with ClipWriter(str(tmp_path / "a.mkv"), ".mkv", WIDTH, HEIGHT, Fraction(1, 25), Fraction(16, 15)) as writer:
        writer.add(still(0), 0)
    ffmpeg("-i", tmp_path / "a.mkv", tmp_path / "a.mp4")
    assert Source.open(str(tmp_path / "a.mp4")).aspect == Fraction(16, 15)


COLOURS = [
    (255, 255, 255),
    (255, 255, 0),
    (0, 255, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 255),
    (40, 90, 200),
]


def bars(width: int, height: int) -> np.ndarray:
    return np.repeat(np.array([COLOURS], np.uint8), width // len(COLOURS), axis=1).repeat(height, axis=0)


def colour_error(frame: np.ndarray) -> int:
    """The largest error of a sample in the middle of a bar."""
    _, width, _ = frame.shape
    middles = frame[::16, width // 16 :: width // 8].astype(int)
    return int(np.abs(middles - np.array(COLOURS)).max())


@pytest.mark.parametrize(
    ("size", "matrix", "named", "full"),
    [
        ((128, 96), "bt709", "bt709", False),
        ((128, 96), "bt709", "bt709", True),
        ((128, 96), "bt601", "smpte170m", False),
        ((128, 96), "bt2020", "bt2020nc", False),
        ((128, 96), "bt601", "unknown", False),
        ((1280, 96), "bt709", "unknown", False),
    ],
)
def test_colours_are_read(tmp_path: Path, size: tuple[int, int], matrix: str, named: str, full: bool) -> None:
    """Of every matrix and range; where none is named, small frames have BT.601, large ones BT.709."""
    made_as = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-i", "-"]
    scale = f"scale=out_color_matrix={matrix}:out_range={'pc' if full else 'tv'}:flags=accurate_rnd+full_chroma_int"
    told = ["-colorspace", named, "-color_range", "pc" if full else "tv"]
    path = tmp_path / "a.mkv"
    ffmpeg(*made_as, "-vf", f"{scale},format=yuv420p", *told, "-c:v", "ffv1", path, given=bars(*size).tobytes())
    assert colour_error(next(Source.open(str(path)).frames())) <= 4


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_colours_are_written(tmp_path: Path, suffix: str) -> None:
    path = Path(write_plain(tmp_path / f"a{suffix}", [bars(128, 96)]))
    assert colour_error(as_shown(path, (96, 128, 3))) <= 4


def test_chroma_is_interpolated(tmp_path: Path) -> None:
    photo = skimage.data.astronaut()
    made_as = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "512x512", "-i", "-"]
    scale = "scale=flags=accurate_rnd+full_chroma_int+bicubic,format=yuv420p"
    ffmpeg(*made_as, "-vf", scale, "-c:v", "ffv1", tmp_path / "a.mkv", given=photo.tobytes())
    assert psnr(list(Source.open(str(tmp_path / "a.mkv")).frames()), [photo]) > 40.5


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "pcm_s16le"), ("a.ts", "mp2")])
def test_audio_of_a_part_keeps_its_time(tmp_path: Path, name: str, codec: str) -> None:
    """A click 1.5 s after the first frame, in a transport stream that begins at 1.4 s, too."""
    click, rate = np.zeros((1, 3 * 48_000), np.int16), 48_000
    click[:, rate * 3 // 2 :][:, :200] = 20_000
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        track: Any = container.add_stream(codec, rate=rate, layout="mono")
        for tick in range(75):
            frame = av.VideoFrame.from_ndarray(still(0), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
            samples = av.AudioFrame.from_ndarray(click[:, 1920 * tick : 1920 * (tick + 1)].copy(), "s16", "mono")
            samples.sample_rate, samples.pts = rate, 1920 * tick
            container.mux(track.encode(samples))
        container.mux([*stream.encode(None), *track.encode(None)])
    for first, last in ((0, None), (25, 50)):
        audio = Source.open(str(tmp_path / name), first, last).audio()
        assert audio
        heard, times = [], []
        with av.open(io.BytesIO(audio)) as container:
            for frame in container.decode(audio=0):
                samples = frame.to_ndarray().reshape(-1).astype(float)
                heard.append(samples)
                times.append(float(frame.time or 0) + np.arange(len(samples)) / rate)
        samples, seconds = np.concatenate(heard), np.concatenate(times)
        loud = seconds[np.abs(samples) > np.abs(samples).max() / 2]
        assert loud[0] == pytest.approx(1.5 - first / 25, abs=0.03)
        assert seconds[-1] == pytest.approx((last or 75) / 25 - first / 25, abs=0.1)


def test_timestamps_that_go_back(tmp_path: Path) -> None:
    """Of two transport streams, one behind the other."""
    one = Path(write_interlaced(tmp_path / "a.ts", "libx264", [still(0)] * 6)).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    source = Source.open(str(tmp_path / "two.ts"))
    assert [tick * source.tick for tick in source.ticks] == [Fraction(index, 25) for index in range(12)]
    assert any("25 frames a second are assumed" in note for note in source.notes)
    assert len(list(source.frames())) == 12


def test_a_codec_that_ffmpeg_does_not_know(tmp_path: Path) -> None:
    data = Path(write_plain(tmp_path / "a.mp4", [still(0)])).read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace(b"avc1", b"zqc1"))
    with pytest.raises(BadInput, match="codec is unknown"):
        Source.open(str(tmp_path / "b.mp4"))


def test_frames_that_theora_repeats_last_longer(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=5:d=1", "-vf", "fps=25", "-c:v", "libtheora", tmp_path / "a.ogv")
    source = Source.open(str(tmp_path / "a.ogv"))
    assert 5 <= len(source.ticks) == len(list(source.frames())) < 25
    assert Fraction(3, 5) <= source.ticks[-1] * source.tick < 1


def test_tracks_that_are_not_kept_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    write_plain(tmp_path / "a.mp4", [still(0)] * 3)
    tone = ["-f", "lavfi", "-i", "sine=d=1"]
    inputs = ["-itsoffset", "0.5", "-i", tmp_path / "a.mp4", *tone, *tone, "-i", tmp_path / "a.srt"]
    maps = ["-map", "0", "-map", "1", "-map", "2", "-map", "3"]
    ffmpeg(*inputs, *maps, "-c:v", "copy", "-c:s", "mov_text", tmp_path / "b.mp4")
    told = " ".join(Source.open(str(tmp_path / "b.mp4")).notes)
    assert "first of 2 audio tracks" in told and "subtitles" in told and "0.5 s of audio before" in told
