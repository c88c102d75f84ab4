"""Videos: made by code with PyAV, coded, damaged, cut, and read back."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click.testing
import numpy as np
import pytest
import skimage.data
import skimage.io
import torch
from PIL import Image

from nic import video
from nic.bitstream.clip import Clip, Group, pack_end, pack_group, pack_start, salvage_clip
from nic.bitstream.container import chunks, pack_chunk
from nic.bitstream.header import Header, Kind, Mode
from nic.cli.main import cli
from nic.errors import BadFile, BadInput, BadOutput, UsageError
from nic.loaded import load_model
from nic.media import ClipWriter, Source, looks_like_video
from nic.models import store
from nic.models.fit import Sample, exponents, fit
from nic.models.order import Layer, coding_order
from nic.models.prior import Prior
from nic.weights import apply_weights, encode_weights, worth

TICKS = (0, 40, 80, 160, 200, 240, 300, 330, 370)  # milliseconds: a variable frame rate
WIDTH, HEIGHT = 93, 71


def nic(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, [str(argument) for argument in arguments])


def pan(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """A photograph that moves by (3, 1) pixels a frame."""
    photo = skimage.data.astronaut()
    corners = [(20 + i, 150 + 3 * i) for i in range(count)]
    return [np.ascontiguousarray(photo[y : y + height, x : x + width]) for y, x in corners]


def write_clip(
    path: Path, frames: list[np.ndarray], pixels: str = "yuv444p", codec: str = "libx264", audio: bool = True
) -> Path:
    options = {"crf": "5"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        track: Any = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for frame, tick in zip(frames, TICKS, strict=False):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        for index in range(8 if audio else 0):
            sound = np.sin(np.arange(1024, dtype=np.float32) / 9 + index)[None]
            samples = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 1024 * index
            container.mux(track.encode(samples))
        if audio:
            container.mux(track.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames of odd size at a variable rate, with audio."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", pan(9))


@pytest.fixture(scope="module")
def groups(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The clip in a .nic file of three groups, with a network of its own."""
    target = tmp_path_factory.mktemp("groups") / "clip.nic"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "GROUP", 3)
        video.compress(Source.open(str(clip)), str(target), quality=30, effort=1)
    return target.read_bytes()


def frames_of(path: Path) -> list[np.ndarray]:
    return list(Source.open(str(path)).frames())


def test_round_trip(clip: Path, tmp_path: Path) -> None:
    result = nic("compress", clip, tmp_path / "clip.nic", "-q", 60, "-e", 2)
    assert result.exit_code == 0, result.output
    assert f"{WIDTH}x{HEIGHT}  9 frames" in result.stderr
    for name in ("out.mkv", "out.mp4"):
        assert nic("decompress", tmp_path / "clip.nic", tmp_path / name).exit_code == 0
        written = Source.open(str(tmp_path / name))
        assert [tick * written.tick for tick in written.ticks] == [Fraction(tick, 1000) for tick in TICKS]
        decoded = frames_of(tmp_path / name)
        assert np.mean([video.psnr(a, b) for a, b in zip(frames_of(clip), decoded, strict=True)]) > 28
        with av.open(str(tmp_path / name)) as container:  # what players go by, and ffmpeg where it converts
            assert float(container.streams.video[0].average_rate or 0) == pytest.approx(8 / 0.37, rel=0.05)
        kept = packets(tmp_path / name)
        assert kept == packets(clip)[-len(kept) :] and len(kept) >= 8  # all but what primes the decoder
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".nic-*"))


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def test_one_frame_equals_that_of_the_whole(groups: bytes, tmp_path: Path) -> None:
    file = video.read(groups)
    assert file.problems == () and len(file.groups) == 3
    everything = [pixels for _, pixels in video.decode_frames(file)]
    for frame in (0, 4, 8):
        assert np.array_equal(video.decode_one(file, frame), everything[frame])
    (tmp_path / "clip.nic").write_bytes(groups)
    assert nic("decompress", tmp_path / "clip.nic", tmp_path / "pictures" / "%03d.png").exit_code == 0
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [f"{i:03}.png" for i in range(9)]
    assert nic("decompress", tmp_path / "clip.nic", tmp_path / "four.png", "--frame", 4).exit_code == 0
    assert (tmp_path / "four.png").read_bytes() == (tmp_path / "pictures" / "004.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out.png",), "a video becomes"),
        (("out.png", "--frame", 9), "there is no frame 9"),
        (("100%.png",), "no place for one number"),
        (("out.png", "--crop", "0,0,8,8"), "for pictures"),
        (("out.gif",), "a video becomes"),
    ],
)
def test_wrong_outputs(groups: bytes, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    (tmp_path / "clip.nic").write_bytes(groups)
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / str(arguments[0]), *arguments[1:])
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == [tmp_path / "clip.nic"]


def test_info_and_verify(groups: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.nic"
    path.write_bytes(groups)
    told = json.loads(nic("info", "--json", path).stdout)
    assert (told["kind"], told["frames"], told["width"], told["group"]) == ("video", 9, WIDTH, 3)
    assert told["frames_per_second"] == pytest.approx(8 / 0.37, rel=0.01)
    parts = {part["part"]: part["bytes"] for part in told["parts"]}
    assert sum(parts.values()) == told["bytes"] == len(groups) and parts["key"] > parts["forward"] > 0
    assert nic("verify", path).stdout == f"{path}: OK\n"


def test_a_video_from_stdin(groups: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.nic").write_bytes(groups)
    assert nic("decompress", tmp_path / "clip.nic", tmp_path / "a.mkv").exit_code == 0
    runner = click.testing.CliRunner()
    for name, code in (("b.mkv", 0), ("b.png", 2)):
        assert runner.invoke(cli, ["decompress", "-", str(tmp_path / name)], input=groups).exit_code == code
    pairs = zip(frames_of(tmp_path / "a.mkv"), frames_of(tmp_path / "b.mkv"), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert not (tmp_path / "b.png").exists()


def test_part_of_a_video_without_audio(clip: Path, tmp_path: Path) -> None:
    assert nic("compress", clip, tmp_path / "clip.nic", "-e", 3, "--frames", "2:5", "--no-audio").exit_code == 0
    file = video.read((tmp_path / "clip.nic").read_bytes())
    assert file.audio is None and file.groups[0].ticks == (0, 80, 120)
    assert nic("compress", clip, tmp_path / "x.nic", "--frames", "9:").exit_code == 2


@pytest.mark.parametrize(
    "wrong", [{"quality": 101}, {"effort": 0}, {"effort": 10}, {"bpp": -1}, {"size": 0}, {"bpp": 0.1, "size": 900}]
)
def test_options_out_of_range_are_refused(clip: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        video.compress(Source.open(str(clip)), str(tmp_path / "a"), **wrong)
    assert not list(tmp_path.iterdir())


def test_size_target(clip: Path, tmp_path: Path) -> None:
    frames = Source.open(str(clip), 0, 4)
    for bpp in (0.3, 0.8):
        size = video.compress(frames, str(tmp_path / "a"), bpp=bpp, effort=1, audio=False).size
        assert size == pytest.approx(bpp * 4 * WIDTH * HEIGHT / 8, rel=0.1)


def test_forward_frames_are_near_where_much_moves(tmp_path: Path) -> None:
    """A pan that is too fast to be predicted over four frames, against a still."""
    photo = skimage.data.astronaut()
    spans = []
    for step in (0, 14):
        frames = [np.ascontiguousarray(photo[100:164, step * i : step * i + 96]) for i in range(9)]
        source = Source.open(str(write_clip(tmp_path / f"{step}.mkv", frames, audio=False)))
        encoder = video.ClipEncoder(source, load_model(store.VIDEO, "cpu"), video.EFFORTS[1])
        encoder.choose_span(100)
        spans.append(encoder.clip(100).span)
    assert spans[0] > spans[1] == 2


def test_interrupted_run_goes_on(clip: Path, groups: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No finished group is coded again, and the file is that of a run without interruption."""
    monkeypatch.setattr(video, "GROUP", 3)
    target = str(tmp_path / "clip.nic")
    coded: list[float] = []

    def stop(progress: video.Progress) -> None:
        coded.append(progress.done)
        if len(coded) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.compress(Source.open(str(clip)), target, quality=30, effort=1, progress=stop)
    assert len(salvage_clip(Path(f"{target}.part").read_bytes()).groups) == 1
    with Path(f"{target}.part").open("ab") as part:
        part.write(b"GRUP, as far as it was written")
    again: list[float] = []
    video.compress(
        Source.open(str(clip)), target, quality=30, effort=1, resume=True, progress=lambda p: again.append(p.done)
    )
    assert len(again) == 6 and again[-1] == 1
    assert Path(target).read_bytes() == groups and not Path(f"{target}.part").exists()


def test_a_part_file_of_other_settings_is_not_taken(clip: Path, tmp_path: Path, groups: bytes) -> None:
    Path(tmp_path / "clip.nic.part").write_bytes(groups)
    done = video.compress(Source.open(str(clip)), str(tmp_path / "clip.nic"), quality=10, effort=1, resume=True)
    assert any("coded anew" in note for note in done.notes)
    assert len(video.read((tmp_path / "clip.nic").read_bytes()).groups) == 1


def begin(source: Source, target: str, **options: Any) -> None:
    """Codes at effort 1, until it is interrupted behind the first group of two."""

    def stop(progress: video.Progress) -> None:
        if progress.done > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.compress(source, target, effort=1, progress=stop, **options)
    assert len(salvage_clip(Path(f"{target}.part").read_bytes()).groups) == 1


def test_a_part_file_of_another_effort_is_not_taken(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "GROUP", 2)
    target, fresh = str(tmp_path / "clip.nic"), str(tmp_path / "fresh.nic")
    begin(Source.open(str(clip), 0, 4), target)
    for name, resume in ((target, True), (fresh, False)):
        done = video.compress(Source.open(str(clip), 0, 4), name, effort=2, resume=resume)
        assert any("coded anew" in note for note in done.notes) == resume
    assert Path(target).read_bytes() == Path(fresh).read_bytes()


def test_a_replaced_file_keeps_its_mode_and_neighbours(clip: Path, tmp_path: Path) -> None:
    target, neighbour = tmp_path / "clip.nic", tmp_path / "clip.nic.finished"
    target.touch(0o600)
    neighbour.write_text("of the user")
    video.compress(Source.open(str(clip), 0, 2), str(target), effort=1)
    assert target.stat().st_mode & 0o777 == 0o600 and neighbour.read_text() == "of the user"
    assert sorted(tmp_path.iterdir()) == [target, neighbour]


def test_an_output_that_cannot_be_written_is_told_before_any_work(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stages: list[video.Progress] = []
    for target in (tmp_path / "file" / "clip.nic", "/proc/clip.nic"):
        with pytest.raises(BadOutput, match="cannot be written"):
            video.compress(Source.open(str(clip)), str(target), size=9000, effort=5, progress=stages.append)
    assert not stages


def test_a_part_file_of_other_frames_is_not_taken(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "GROUP", 2)
    target, fresh = str(tmp_path / "clip.nic"), str(tmp_path / "fresh.nic")
    begin(Source.open(str(clip), 0, 4), target, audio=False)
    for name, resume in ((target, True), (fresh, False)):
        video.compress(Source.open(str(clip), 2, 6), name, effort=1, audio=False, resume=resume)
    assert Path(target).read_bytes() == Path(fresh).read_bytes()


def places(data: bytes) -> dict[str, list[int]]:
    """Where the payloads of each tag end."""
    found: dict[str, list[int]] = {}
    for chunk in chunks(data):
        found.setdefault(chunk.tag, []).append(data.find(chunk.payload) + len(chunk.payload) - 1)
    return found


def damaged(data: bytes, tag: str, *numbers: int) -> bytes:
    """With a bit flipped in some of the chunks of a tag."""
    changed = bytearray(data)
    for number in numbers:
        changed[places(data)[tag][number]] ^= 4
    return bytes(changed)


def test_damaged_group_is_told_and_the_rest_plays(groups: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.nic").write_bytes(damaged(groups, "GRUP", 1))
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / "out.mkv")
    assert result.exit_code == 7 and "3 of 9 frames are lost" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    whole = [pixels for _, pixels in video.decode_frames(video.read(groups))]
    assert np.array_equal(np.stack(frames_of(tmp_path / "out.mkv")), np.stack(whole[:3] + whole[6:]))
    assert Source.open(str(tmp_path / "out.mkv")).ticks[3] == TICKS[6]
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / "f.png", "--frame", 4)
    assert result.exit_code == 4 and "group 1 is damaged" in result.stderr
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / "f.png", "--frame", 6)
    assert result.exit_code == 7 and "that frame is whole" in result.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "f.png")), whole[6])
    assert nic("verify", tmp_path / "clip.nic").exit_code == 4


def test_a_video_does_not_go_to_stdout(groups: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.nic").write_bytes(groups)
    result = nic("decompress", "clip.nic", "-", "--format", "mkv")
    assert result.exit_code == 2 and "stdout" in result.stderr and os.listdir() == ["clip.nic"]
    assert nic("decompress", "clip.nic", "-", "--frame", 0).stdout_bytes.startswith(b"\x89PNG")


def test_numbered_pictures_keep_their_numbers(groups: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.nic").write_bytes(damaged(groups, "GRUP", 1))
    pictures = tmp_path / "pictures"
    assert nic("decompress", tmp_path / "clip.nic", pictures / "%d.png").exit_code == 7
    assert sorted(path.name for path in pictures.iterdir()) == [f"{i}.png" for i in (0, 1, 2, 6, 7, 8)]
    for number in (0, 1, 2, 7, 8):
        (pictures / f"{number}.png").unlink()
    result = nic("decompress", tmp_path / "clip.nic", pictures / "%d.png")
    assert result.exit_code == 6 and "6.png exists" in result.stderr and len(list(pictures.iterdir())) == 1
    assert nic("decompress", "-f", tmp_path / "clip.nic", pictures / "%d.png").exit_code == 7
    (pictures / "7.png").unlink()
    (pictures / "8.png").write_bytes(b"left as it is")
    assert nic("decompress", "--resume", tmp_path / "clip.nic", pictures / "%d.png").exit_code == 7
    assert (pictures / "7.png").exists() and (pictures / "8.png").read_bytes() == b"left as it is"
    monkeypatch.setattr(video, "decode_group", None)  # not needed where all pictures of a group are there
    assert nic("decompress", "--resume", tmp_path / "clip.nic", pictures / "%d.png").exit_code == 7


def test_lost_audio_is_told(groups: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.nic").write_bytes(damaged(groups, "audi", 0))
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / "out.mkv")
    assert result.exit_code == 7 and "its audio is lost" in result.stderr


def test_a_folder_of_pictures_and_videos(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(clip, tmp_path / "in" / "a.mkv")
    Image.fromarray(pan(1)[0]).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "notes.txt").touch()
    result = nic("compress", tmp_path / "in", "-o", tmp_path / "out", "-e", 1)
    assert result.exit_code == 0 and "1 file(s) with other suffixes are left out" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mkv.nic", "a.png.nic"]


def test_resume_where_a_video_was_to_be_replaced(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "clip.nic"
    target.write_bytes(b"older")
    assert nic("compress", clip, target, "-e", 1, "--frames", ":2", "--resume").exit_code == 0
    assert target.read_bytes() == b"older"
    (tmp_path / "clip.nic.part").write_bytes(b"begun")
    assert nic("compress", clip, target, "-e", 1, "--frames", ":2", "--resume").exit_code == 0
    assert video.read(target.read_bytes()).problems == ()


@pytest.mark.parametrize("output", [("out.mkv",), ("%d.png",), ("f.png", "--frame", 0)])
def test_a_damaged_header_is_told_for_any_output(groups: bytes, tmp_path: Path, output: tuple[object, ...]) -> None:
    """Though it does not say any more that this is a video."""
    (tmp_path / "clip.nic").write_bytes(groups[:20] + b"?" + groups[21:])
    result = nic("decompress", tmp_path / "clip.nic", tmp_path / str(output[0]), *output[1:])
    assert result.exit_code == 4 and "HEAD" in result.stderr


def test_no_group_is_intact(groups: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.nic").write_bytes(damaged(groups, "GRUP", 0, 1, 2))
    for output in ("out.mkv", "%d.png"):
        result = nic("decompress", tmp_path / "clip.nic", tmp_path / output)
        assert result.exit_code == 4 and "no group" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "clip.nic"]


def with_weights(groups: bytes) -> tuple[bytes, bytes]:
    """A video with a network of its own, and the same without the chunk that holds it."""
    file = salvage_clip(groups)
    model = load_model(store.VIDEO, "cpu")
    name, value = next(iter(model.synthesis.named_parameters()))
    weights = encode_weights(model, {name: torch.full_like(value, 5)}, {name: 8})
    start = pack_start(file.header, file.clip, file.audio, weights)
    chunk = pack_chunk("WGTS", weights)
    rest = b"".join(pack_group(index, group) for index, group in file.groups.items())
    return start + rest + pack_end(), start.replace(chunk, b"") + rest + pack_end()


def test_a_lost_network_is_told(groups: bytes, tmp_path: Path) -> None:
    for data, code in zip(with_weights(groups), (0, 7), strict=True):
        (tmp_path / "clip.nic").write_bytes(data)
        for output in (("f.png", "--frame", 0), ("out.mkv",)):
            result = nic("decompress", "-f", tmp_path / "clip.nic", tmp_path / output[0], *output[1:])
            assert result.exit_code == code and ("not exact" in result.stderr) == bool(code)
        assert nic("verify", tmp_path / "clip.nic").exit_code == (4 if code else 0)


def test_a_part_file_without_its_network_is_not_taken(groups: bytes, clip: Path, tmp_path: Path) -> None:
    part = tmp_path / "clip.nic.part"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "GROUP", 3)
        encoder = video.ClipEncoder(Source.open(str(clip)), load_model(store.VIDEO, "cpu"), video.EFFORTS[1])
        for data, found in zip(with_weights(groups), (True, False), strict=True):
            file = salvage_clip(groups)
            job = video.Job(encoder, round(0.3 * 252), file.audio, part, lambda progress: None)
            first = data.index(b"GRUP")
            part.write_bytes(data[:first] + job.origin + data[first:])
            assert (job.resumed(file.header, file.clip) is not None) == found


def test_a_video_beyond_the_limits_is_refused_before_any_work(clip: Path) -> None:
    source = dataclasses.replace(Source.open(str(clip)), ticks=tuple(range(250_000)))
    assert video.ClipEncoder(source, load_model(store.VIDEO, "cpu"), video.EFFORTS[9]).length == 62
    source = dataclasses.replace(source, width=8192, height=8192)
    with pytest.raises(BadInput, match="groups are more than"):
        video.ClipEncoder(source, load_model(store.VIDEO, "cpu"), video.EFFORTS[9])


@pytest.mark.parametrize("words", [b"\0\0\0\xc0", b"\0\0\0\xc0\0\0\0\0"])  # a residual follows
def test_a_huge_claim_costs_little(words: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """16384x16384 pixels in 90 bytes, every checksum right: refused at the first cell of 256."""
    cells = 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal cells
        cells += 1
        return decode(*arguments)

    decode = Prior.decode
    monkeypatch.setattr(Prior, "decode", counted)
    header = Header(Kind.VIDEO, Mode.FIDELITY, 16384, 16384, 3, 8, 126, load_model(store.VIDEO, "cpu").id)
    start = pack_start(header, Clip(2, 2, 8, 126, 126, 126, 1, 25), None, None)
    with pytest.raises(BadFile):
        video.verify(start + pack_group(0, Group((0, 1), (words, words))) + pack_end())
    assert cells == 1


def test_groups_that_go_back_in_time_are_told(groups: bytes) -> None:
    file = salvage_clip(groups)
    late = Group(tuple(tick + 1000 for tick in file.groups[0].ticks), file.groups[0].frames)
    parts = [pack_group(index, group) for index, group in {**file.groups, 0: late}.items()]
    told = salvage_clip(pack_start(file.header, file.clip, file.audio, None) + b"".join(parts) + pack_end())
    assert told.groups.keys() == {0} and all("starts at tick" in problem for problem in told.problems)


def test_chunks_of_a_picture_are_damage_in_a_video(groups: bytes) -> None:
    """As of a file that was pasted into another one: the rest plays, and no newer nic is asked for."""
    clip_chunk = pack_chunk("CLIP", next(chunk.payload for chunk in chunks(groups) if chunk.tag == "CLIP"))
    for stranger in (pack_chunk("CELL", b"\0"), clip_chunk):
        file = salvage_clip(groups.replace(pack_end(), stranger + pack_end()))
        assert len(file.problems) == 1 and "does not belong" in file.problems[0] and len(file.groups) == 3


def test_only_sampled_groups_are_searched_for_motion(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "GROUP", 2)
    searched = []
    search_motion = video.GroupMotion.search
    monkeypatch.setattr(
        video.GroupMotion, "search", lambda *arguments: (searched.append(1), search_motion(*arguments))[1]
    )
    encoder = video.ClipEncoder(Source.open(str(clip)), load_model(store.VIDEO, "cpu"), video.EFFORTS[1])
    encoder.bytes_at(0)
    assert len(searched) == video.FIT_GROUPS


def test_a_video_is_written_to_files_only(clip: Path, tmp_path: Path) -> None:
    """And not over /dev/null, which a file of this name would replace."""
    os.mkfifo(tmp_path / "pipe")
    result = nic("compress", "-f", clip, tmp_path / "pipe", "-e", 1)
    assert result.exit_code == 6 and "is no file" in result.stderr
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_cut_file(groups: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.nic").write_bytes(groups[: places(groups)["GRUP"][2]])
    assert nic("decompress", tmp_path / "clip.nic", tmp_path / "out.mkv").exit_code == 4
    assert not (tmp_path / "out.mkv").exists()
    assert nic("decompress", tmp_path / "clip.nic", tmp_path / "out.mkv", "--partial").exit_code == 7
    assert len(frames_of(tmp_path / "out.mkv")) == 6


def test_every_changed_byte_is_noticed(groups: bytes) -> None:
    """A video with one byte changed anywhere raises a NicError or has a problem; its frames need not be decoded."""
    for position in range(0, len(groups), 53):
        damaged = bytearray(groups)
        damaged[position] ^= 0x10
        try:
            assert salvage_clip(bytes(damaged)).problems
        except (BadFile, UsageError):
            pass


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        track: Any = container.add_stream("aac", rate=16000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(track.encode(samples))
        container.mux(track.encode(None))
    return path


def broken(path: Path) -> Path:
    write_clip(path, pan(3), audio=False)
    path.write_bytes(path.read_bytes()[:400])
    return path


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_bytes(b""), lambda path: path.write_text("no video " * 20), audio_only, broken],
    ids=["empty", "text", "audio", "broken"],
)
def test_no_video(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "in.mp4")
    result = nic("compress", tmp_path / "in.mp4", tmp_path / "out.nic")
    assert result.exit_code == 3 and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "in.mp4"]


@pytest.mark.parametrize(
    ("pixels", "codec", "note"),
    [("yuv420p10le", "ffv1", "10-bit"), ("bgra", "ffv1", "alpha"), ("gray", "ffv1", ""), ("yuv420p", "mpeg4", "")],
)
def test_other_samples(tmp_path: Path, pixels: str, codec: str, note: str) -> None:
    path = write_clip(tmp_path / "in.mkv", pan(1, 64, 48), pixels, codec, audio=False)
    result = nic("compress", path, tmp_path / "out.nic", "-q", 90, "-e", 1)
    assert result.exit_code == 0 and note in result.stderr
    file = video.read((tmp_path / "out.nic").read_bytes())
    ((_, pixels_out),) = video.decode_frames(file)
    assert video.psnr(pixels_out, frames_of(path)[0]) > 28


def test_colours_that_files_do_not_tell_are_noted(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream: Any = container.add_stream("libx264", 25, {"x264-params": "transfer=smpte2084:colorprim=bt2020"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(pixels) for pixels in pan(1, 64, 48)]
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])
    assert any("HDR" in note for note in Source.open(str(tmp_path / "in.mkv")).notes)


def test_pictures_are_no_videos(tmp_path: Path, photo: np.ndarray) -> None:
    for suffix in (".avif", ".png", ".jpg", ".webp"):
        path = tmp_path / f"photo{suffix}"
        Image.fromarray(photo).save(path)
        assert not looks_like_video(path.read_bytes()[:16])


def test_writer_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mkv"):
        ClipWriter(str(tmp_path / "x"), ".avi", 8, 8, Fraction(1), Fraction(1))
    with pytest.raises(BadInput, match="No such file"):
        Source.open(str(tmp_path / "absent.mp4"))


# --- the parts


@pytest.mark.parametrize(("length", "span"), [(1, 8), (2, 8), (9, 8), (23, 8), (48, 4), (5, 1)])
def test_coding_order(length: int, span: int) -> None:
    """Every frame once, after its references; leaves are no references, and the depth is as promised."""
    order = coding_order(length, span)
    assert sorted(coded.frame for coded in order) == list(range(length))
    depth: dict[int, int] = {}
    for coded in order:
        depth[coded.frame] = 1 + max((depth[reference] for reference in coded.references), default=0)
        needed = {coded.frame} | set(coded.references)
        assert len(needed) == 1 + len(coded.references)
    referred = {reference for coded in order for reference in coded.references}
    assert all(coded.frame not in referred for coded in order if coded.layer is Layer.LEAF)
    assert all(coded.frame in referred for coded in order if coded.layer is Layer.MIDDLE)
    assert max(depth.values()) <= 1 + -(-length // span) + span.bit_length()


def test_network_of_a_clip() -> None:
    """A fit lowers rate and distortion together, and the file's network is the fitted one within its steps."""
    model = load_model(store.VIDEO, "cpu")
    quality = torch.tensor([20.0])
    pixels = torch.from_numpy(np.stack(pan(2, 64, 64))).permute(0, 3, 1, 2) / 255
    samples = []
    for image in pixels.split(1):
        latents = torch.round(model.analysis(image, quality))
        samples.append(Sample(latents, image, torch.full_like(image, 0.5), 64, 64, quality, 0.005 * 255**2 / 3))
    scale = 200.0
    steps = exponents(model.synthesis, samples, scale)
    changes = fit(model.synthesis, samples, steps, scale, 20)
    payload = encode_weights(model, changes, steps)
    fitted = apply_weights(model, payload)
    before, after = scale * worth(model, samples), scale * worth(fitted, samples)
    assert after + 8 * len(payload) < before
    base = dict(model.synthesis.named_parameters())
    for name, value in fitted.synthesis.named_parameters():
        if name in changes:
            error = (value - base[name]) * 2.0 ** steps[name] - changes[name]
            assert error.abs().max() < 1.5
        else:
            assert torch.equal(value, base[name])


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_network_is_fitted_in_bfloat16_only_where_that_is_fast(
    fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    model = load_model(store.VIDEO, "cpu")
    black = torch.zeros(1, 3, 64, 64)
    sample = Sample(torch.zeros(1, model.config.latent, 4, 4), black, black, 64, 64, torch.ones(1), 1.0)
    seen: list[torch.dtype] = []
    hook = model.synthesis.up.register_forward_hook(lambda _conv, _inputs, output: seen.append(output.dtype))
    fit(model.synthesis, [sample], {"patch.bias": 8}, 1.0, 1)
    hook.remove()
    assert seen == [dtype]


def test_forged_network_is_refused() -> None:
    model = load_model(store.VIDEO, "cpu")
    count = len(list(model.synthesis.parameters()))
    assert apply_weights(model, None) is model
    for payload in (
        b"",
        b"\1",
        bytes([30, 0]) * count,
        bytes([8, 64]) * count,
        bytes(2 * count) + b"1234",
        b"\0\1" * count,
    ):
        with pytest.raises(BadFile):
            apply_weights(model, payload)


def test_residuals_are_written_clip_by_clip(clip: Path, tmp_path: Path) -> None:
    for name in ("astronaut", "coffee"):
        (tmp_path / name).mkdir()
        skimage.io.imsave(tmp_path / name / "photo.png", getattr(skimage.data, name)(), check_contrast=False)
    both = ["--photos", tmp_path / "astronaut", "--photos", tmp_path / "coffee"]
    options = ["--passes", 1, "--moving", 1, "-o", tmp_path / "out"]
    assert nic("train", "residuals", clip, *both, *options).exit_code == 0
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*/*.png"))
    assert found == [f"0-clip-0/train/{i:05}.png" for i in range(8)] + [
        f"moving-000/train/{i:05}.png" for i in range(16)
    ]
    again = nic("train", "residuals", clip, *both, *options)
    assert (again.exit_code, again.output) == (0, "")
    one = nic("train", "residuals", clip, *both[:2], *options)
    assert (one.exit_code, "two pictures" in one.stderr) == (2, True)
    (tmp_path / "text.mkv").write_text("no video")
    wrong = nic("train", "residuals", tmp_path / "text.mkv", "-o", tmp_path / "out")
    assert (wrong.exit_code, "text.mkv: cannot be read as a video" in wrong.stderr) == (3, True)
