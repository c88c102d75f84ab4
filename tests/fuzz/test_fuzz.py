"""What must hold for any bytes at all, on files that a fuzzer found to matter; fuzz.py looks for more of them.

Each target has a folder of such files: small ones that together reach every branch, and every one that ever failed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from nic import codec, video
from nic.bitstream.clip import ClipFile, pack_end, pack_group, pack_start, salvage_clip
from nic.bitstream.container import holds_video, pack, salvage, unpack
from nic.bitstream.header import Mode
from nic.describe import describe
from nic.errors import NicError
from nic.pixels import Picture

FOLDER = Path(__file__).parent
PIXELS = 2**14  # larger pictures only take longer
FRAMES = 6  # of 64x64 pixels; longer videos as well
Data = TypeVar("Data")
Result = TypeVar("Result")


def container(data: bytes) -> None:
    """What is intact is the same to all that read the container, and what is written is what was read."""
    (clip_container if holds_video(data) else picture_container)(data)


def decode(data: bytes) -> None:
    """Pixels come only from an intact file, or with problems told; they are the same by every way."""
    (decode_clip if holds_video(data) else decode_picture)(data)


def picture_container(data: bytes) -> None:
    """`unpack`, `salvage` and `describe` agree on what is intact, and `pack` writes what `unpack` reads."""
    file, salvaged, description = (attempt(read, data) for read in (unpack, salvage, describe))
    assert isinstance(description, NicError) == isinstance(salvaged, NicError)
    if isinstance(salvaged, NicError) or isinstance(description, NicError):
        assert isinstance(file, NicError)
        return
    assert isinstance(file, NicError) == bool(salvaged.problems)
    assert description["problems"] == list(salvaged.problems)
    assert all(line and "\n" not in line for line in salvaged.problems)
    if not isinstance(file, NicError):
        assert not salvaged.truncated and salvaged.cells == dict(enumerate(file.cells))
        assert unpack(pack(file)) == file


def clip_container(data: bytes) -> None:
    """`salvage_clip` and `describe` agree on what is intact, and what is packed is read back."""
    file, description = attempt(salvage_clip, data), attempt(describe, data)
    if isinstance(file, NicError) or isinstance(description, NicError):
        assert isinstance(description, NicError) and isinstance(file, NicError)
        return
    assert description["problems"] == list(file.problems)
    assert all(line and "\n" not in line for line in file.problems)
    if not file.problems:
        parts = [pack_start(file.header, file.clip, file.audio, file.weights), pack_end()]
        parts[1:1] = [pack_group(index, file.groups[index]) for index in range(file.clip.groups)]
        assert salvage_clip(b"".join(parts)) == file and not file.truncated


def decode_picture(data: bytes) -> None:
    """A picture comes only from an intact file, or with problems told; it is the same by every way."""
    salvaged = attempt(salvage, data)
    if not isinstance(salvaged, NicError) and salvaged.header.width * salvaged.header.height > PIXELS:
        return
    picture, recovered, error = (attempt(way, data) for way in (codec.decompress, codec.recover, codec.verify))
    assert isinstance(picture, NicError) == isinstance(error, NicError)
    if isinstance(picture, Picture):
        assert isinstance(recovered, codec.Recovered) and not recovered.problems
        assert np.array_equal(recovered.picture.pixels, picture.pixels)
    streamed = attempt(codec.recover_stream, (data[: len(data) // 2], data[len(data) // 2 :]))
    assert type(streamed) is type(recovered)
    if isinstance(recovered, codec.Recovered):
        assert not isinstance(salvaged, NicError) and isinstance(streamed, codec.Recovered)
        assert np.array_equal(streamed.picture.pixels, recovered.picture.pixels)
        assert streamed.problems == recovered.problems
        assert recovered.picture.pixels.shape[:2] == (salvaged.header.height, salvaged.header.width)
        assert isinstance(picture, NicError) == bool(recovered.problems)


def decode_clip(data: bytes) -> None:
    """All frames come only from an intact file, those of intact groups with problems told, or one alone."""
    file = attempt(video.read, data)
    if isinstance(file, NicError):
        assert isinstance(attempt(video.verify, data), NicError)
        return
    header, clip = file.header, file.clip
    if -(-header.width // 64) * -(-header.height // 64) * clip.frames > FRAMES:
        return
    error = attempt(video.verify, data)
    frames = attempt(lambda file: list(video.decode_frames(file)), file)
    assert isinstance(error, NicError) == (bool(file.problems) or isinstance(frames, NicError))
    if isinstance(frames, list):
        numbers = [index * clip.group + place for index in file.groups for place in range(clip.length(index))]
        assert len(frames) == len(numbers) and (file.problems or len(numbers) == clip.frames)
        ticks = [tick for tick, _ in frames]
        assert ticks == sorted(set(ticks))
        assert all(pixels.shape == (header.height, header.width, 3) for _, pixels in frames)
        if frames:
            assert np.array_equal(video.decode_one(file, numbers[-1]), frames[-1][1])


TARGETS: dict[str, Callable[[bytes], None]] = {"container": container, "decode": decode}


def attempt(function: Callable[[Data], Result], data: Data) -> Result | NicError:
    try:
        return function(data)
    except NicError as error:
        assert str(error) and "\n" not in str(error)
        return error


@pytest.mark.parametrize(
    ("target", "path"),
    [(target, path) for target in TARGETS for path in sorted((FOLDER / target).iterdir())],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_what_the_fuzzer_found(target: str, path: Path) -> None:
    TARGETS[target](path.read_bytes())


def test_the_corpus_reaches_pixels_of_every_kind_and_every_kind_of_refusal() -> None:
    files = [path.read_bytes() for path in sorted((FOLDER / "decode").iterdir())]
    outcomes = [attempt(codec.recover, data) for data in files if not holds_video(data)]
    kinds = {type(outcome).__name__ for outcome in outcomes}
    assert {"Recovered", "BadFile", "UnsupportedFile", "UnknownModel"} <= kinds
    assert any(isinstance(outcome, codec.Recovered) and outcome.problems for outcome in outcomes)
    pictures = [data for data in files if isinstance(attempt(codec.recover, data), codec.Recovered)]
    assert {salvage(data).header.mode for data in pictures} == set(Mode)
    clips = [attempt(video.read, data) for data in files if holds_video(data)]
    assert {type(clip).__name__ for clip in clips} == {"ClipFile", "BadFile"}
    assert {bool(clip.problems) for clip in clips if isinstance(clip, ClipFile) and clip.groups} == {False, True}
