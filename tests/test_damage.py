"""Damaged and cut files: what is intact is decoded exactly, the rest filled in and told; and parts of pictures."""

import contextlib
import dataclasses
import functools
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import click.testing
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import nic
from nic import codec, decoder, video
from nic.bitstream.arrival import cut_cell
from nic.bitstream.clip import ClipFile, Group, pack_end, pack_group, pack_start
from nic.bitstream.container import SIGNATURE, NicFile, chunks, pack, salvage, unpack
from nic.bitstream.fields import pack_varint
from nic.cli.main import cli
from nic.decoder import PictureDecoder
from nic.errors import BadFile, NicError, UsageError
from nic.loaded import load_model
from nic.media import ClipWriter, Source
from nic.models.store import ExtremeModel, Model
from nic.pixels import Picture
from nic.weights import encode_weights
from nic.windows import Slices, halo

CELL = 1024  # pixels a side
Contents = TypeVar("Contents")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A photograph of two by three cells, the lower and right ones narrow: [1100, 2112, 3]."""
    return np.tile(skimage.data.astronaut(), (4, 6, 1))[250:1350, 200:2312].copy()


@pytest.fixture(scope="module")
def file(pixels: np.ndarray) -> bytes:
    return codec.compress(Picture(pixels), quality=15, effort=1).data


@pytest.fixture(scope="module")
def whole(file: bytes) -> np.ndarray:
    return codec.decompress(file).pixels


def damage(file: bytes, cell: int) -> bytes:
    """Flips a bit in the middle of a cell's payload."""
    payload = [chunk.payload for chunk in chunks(file) if chunk.tag == "CELL"][cell]
    offset = file.index(payload) + len(payload) // 2
    return file[:offset] + bytes([file[offset] ^ 4]) + file[offset + 1 :]


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize("cell", range(6))
def test_intact_cells_are_exact_and_the_lost_one_is_plausible(
    cell: int, file: bytes, whole: np.ndarray, pixels: np.ndarray
) -> None:
    damaged = damage(file, cell)
    with pytest.raises(BadFile):
        codec.decompress(damaged)
    result = codec.recover(damaged)
    assert result.concealed == 1 and not result.truncated
    assert "CRC" in result.problems[0]
    top, left = CELL * (cell // 3), CELL * (cell % 3)
    margin = 16 * halo(load_model("fidelity", "cpu"))  # of pixels that depend on latents of the lost cell
    changed = (result.picture.pixels != whole).any(axis=2)
    changed[max(0, top - margin) : top + CELL + margin, max(0, left - margin) : left + CELL + margin] = False
    assert not changed.any()
    lost = result.picture.pixels[top : top + CELL, left : left + CELL].astype(float)
    original = pixels[top : top + CELL, left : left + CELL].astype(float)
    assert np.square(lost - original).mean() < 1.3 * original.var()  # about as good as their mean


def test_intact_file_is_recovered_as_it_is(file: bytes, whole: np.ndarray) -> None:
    result = codec.recover(file)
    assert np.array_equal(result.picture.pixels, whole)
    assert (result.problems, result.concealed, result.truncated) == ((), 0, False)


def test_swapped_dropped_and_repeated_cells_are_found(file: bytes, whole: np.ndarray) -> None:
    parts = raw_chunks(file)
    places = [place for place, part in enumerate(parts) if part.startswith(b"CELL")]
    first, second = places[:2]
    swapped = [*parts[:first], parts[second], parts[first], *parts[second + 1 :]]
    dropped = [part for place, part in enumerate(parts) if place != second]
    repeated = [*parts[:second], parts[first], *parts[second:]]
    for wrong, concealed in ((swapped, 0), (dropped, 1), (repeated, 0)):
        data = SIGNATURE + b"".join(wrong)
        with pytest.raises(BadFile):
            codec.decompress(data)
        result = codec.recover(data)
        assert result.problems and result.concealed == concealed
        assert concealed or np.array_equal(result.picture.pixels, whole)


def blocks_of(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """The same bytes as they may come through a pipe."""
    start = 0
    while start < len(data):
        end = start + chance.choice([1, 5, 200, 5000])
        yield data[start:end]
        start = end


def test_a_stream_is_decoded_while_it_comes_in(file: bytes, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode_cell = decoder.decode_cell
    monkeypatch.setattr(decoder, "decode_cell", lambda *args: (decoded.append(args[2]), decode_cell(*args))[1])

    def blocks() -> Iterator[bytes]:
        cut = file.index(codec.unpack(file).cells[4])
        yield from blocks_of(file[:cut], random.Random(0))
        assert len(decoded) == 4
        yield file[cut:]

    result = codec.recover_stream(blocks())
    assert np.array_equal(result.picture.pixels, whole) and not result.problems
    assert decoded == list(codec.unpack(file).cells)


def test_nothing_is_read_behind_a_second_header(file: bytes) -> None:
    head, *others = raw_chunks(file)
    cells = [chunk for chunk in others if chunk[:4] == b"CELL"]
    for more, index in ((b"", 1), (head, None)):
        found = cut_cell(SIGNATURE + head + cells[0] + more + cells[1][:-20])
        assert (found[0] if found else None) == index


def test_a_damaged_stream_gives_what_the_damaged_file_gives(photo: np.ndarray, ramp: np.ndarray) -> None:
    file = codec.compress(Picture(np.tile(photo[:1], (1, 27, 1)), np.tile(ramp[:1], (1, 27))), quality=0, effort=1).data
    intact = codec.unpack(file)
    forged = pack(NicFile(intact.header, (intact.cells[0], b"1234", intact.cells[2])))
    twice = forged.removesuffix(file[-9:]) + b"".join(raw_chunks(file)[2:])
    outcomes = []
    for seed in range(24):
        chance = random.Random(seed)
        data = [file, forged, twice][seed] if seed < 3 else damaged(file, chance)
        whole = outcome(codec.recover, data)
        assert whole == outcome(codec.recover_stream, blocks_of(data, chance))
        outcomes.append(whole)
    assert {True, False} == {outcome.startswith("Recovered") for outcome in outcomes}


def outcome(recover: Callable[..., codec.Recovered], data: object) -> str:
    try:
        result = recover(data)
    except NicError as error:
        return repr(error)
    picture = result.picture
    alpha = None if picture.alpha is None else picture.alpha.tobytes()
    return f"Recovered {result.problems} {result.concealed} {picture.pixels.tobytes()!r} {alpha!r}"


def raw_chunks(file: bytes) -> list[bytes]:
    """The bytes of every chunk, with tag, length and CRC."""
    parts, start = [], len(SIGNATURE)
    for chunk in chunks(file):
        end = start + 4 + len(pack_varint(len(chunk.payload))) + len(chunk.payload) + 4
        parts.append(file[start:end])
        start = end
    return parts


def test_alpha_is_left_out_where_it_is_damaged(photo: np.ndarray, ramp: np.ndarray) -> None:
    file = codec.compress(Picture(photo, ramp), quality=15, effort=1).data
    offset = file.index(b"IDAT") + 8
    damaged = file[:offset] + bytes([file[offset] ^ 1]) + file[offset + 1 :]
    result = codec.recover(damaged)
    assert result.picture.alpha is None and result.problems and result.concealed == 0
    assert np.array_equal(result.picture.pixels, codec.decompress(file).pixels)


def test_alpha_with_odd_chunks_behind_its_pixels_is_a_bad_file(photo: np.ndarray, ramp: np.ndarray) -> None:
    """Of an empty iCCP chunk there, Pillow raises IndexError."""
    file = unpack(codec.compress(Picture(photo, ramp), quality=15, effort=1).data)
    assert file.alpha
    end = file.alpha.rindex(b"IEND") - 4
    chunk = struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP"))
    forged = dataclasses.replace(file, alpha=file.alpha[:end] + chunk + file.alpha[end:])
    with pytest.raises(BadFile, match="alpha plane cannot be decoded"):
        codec.decompress(pack(forged))


def test_command_tells_of_damage(file: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "x.nic", tmp_path / "x.png"
    source.write_bytes(damage(file, 1))
    result = run("decompress", source, target)
    assert result.exit_code == 7
    assert "CRC" in result.stderr and "1 cell(s)" in result.stderr and len(result.stderr.splitlines()) == 1
    assert Image.open(target).size == (2112, 1100)


def test_cut_file_is_decoded_on_request(file: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "x.nic", tmp_path / "x.png"
    last = [chunk.payload for chunk in chunks(file) if chunk.tag == "CELL"][-1]
    source.write_bytes(file[: file.index(last)])
    result = run("decompress", source, target)
    assert result.exit_code == 4 and "--partial" in result.stderr and not target.exists()
    assert run("decompress", "--partial", source, target).exit_code == 7
    assert Image.open(target).size == (2112, 1100)


def test_a_cell_that_is_cut_is_decoded_as_far_as_it_goes(tmp_path: Path) -> None:
    """All stages cover the whole cell, so that a coarse picture is there early."""
    pixels = np.ascontiguousarray(skimage.data.coffee()[:256, :320])
    file = codec.compress(Picture(pixels), quality=50, effort=1).data
    end = file.rindex(b"DONE")
    lengths = [end * percent // 100 for percent in (5, 20, 40, 60, 80, 99)] + [end - 4, end]
    errors = []
    for length in lengths:
        result = codec.recover(file[:length])
        assert result.truncated and result.problems and result.concealed == (length < end)
        errors.append(np.square(result.picture.pixels.astype(float) - pixels).mean())
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 5
    assert errors[0] < pixels.var() and errors[3] < 0.1 * pixels.var()
    assert errors[-2] == errors[-1] == np.square(codec.decompress(file).pixels.astype(float) - pixels).mean()
    (tmp_path / "x.nic").write_bytes(file[: end // 2])
    assert run("decompress", tmp_path / "x.nic", tmp_path / "x.png").exit_code == 4
    result = run("decompress", "--partial", tmp_path / "x.nic", tmp_path / "x.png")
    assert result.exit_code == 7 and "1 cell(s) are filled in" in result.stderr


def test_a_picture_cut_anywhere_is_refused_or_told(photo: np.ndarray) -> None:
    file = codec.compress(Picture(photo), quality=5, effort=1).data
    made = []
    for length in range(len(file)):
        try:
            result = codec.recover(file[:length])
        except NicError:
            continue
        assert result.truncated and result.problems and result.picture.pixels.shape == photo.shape
        made.append(length)
    assert made == list(range(made[0], len(file))) and made[0] < len(file) / 2


def test_nothing_is_made_of_nothing(photo: np.ndarray) -> None:
    file = codec.compress(Picture(photo), quality=15, effort=1).data
    with pytest.raises(BadFile, match="no cell"):
        codec.recover(damage(file, 0))


def test_a_forged_cell_is_not_taken_for_damage(file: bytes) -> None:
    """Its checksum is right, its symbols are wrong: nothing in such a file can be trusted."""
    intact = codec.unpack(file)
    forged = pack(NicFile(intact.header, (*intact.cells[:2], b"1234" * 9, *intact.cells[3:])))
    with pytest.raises(BadFile):
        codec.recover(forged)


@pytest.mark.parametrize("crop", [(0, 0, 2112, 1100), (1000, 10, 50, 30), (1500, 1050, 612, 50), (3, 1023, 1, 1)])
def test_crop_is_a_part_of_the_whole(crop: tuple[int, int, int, int], file: bytes, whole: np.ndarray) -> None:
    left, top, width, height = crop
    part = codec.decompress(file, crop=crop).pixels
    difference = part.astype(int) - whole[top : top + height, left : left + width]
    assert np.abs(difference).max() <= 1


def test_crop_reads_only_the_cells_that_it_needs(file: bytes) -> None:
    """Symbols of other cells may be wrong in a way that only decoding them would tell."""
    file = codec.unpack(file)
    cells = {index: b"" if index == 5 else cell for index, cell in enumerate(file.cells)}
    PictureDecoder(file.header, (0, 0, 900, 900)).latents(cells)
    with pytest.raises(BadFile):
        PictureDecoder(file.header, (1500, 1050, 600, 50)).latents(cells)


def test_crop_of_a_lost_cell_is_a_part_of_the_whole(file: bytes) -> None:
    """It is filled in from cells that the part alone would not need."""
    damaged = damage(file, 1)
    crop = (1400, 400, 60, 50)
    expected = decoder.crop_array(codec.recover(damaged).picture.pixels, crop).astype(int)
    assert np.abs(codec.recover(damaged, crop=crop).picture.pixels - expected).max() <= 1


def test_crop_with_alpha(photo: np.ndarray, ramp: np.ndarray) -> None:
    data = nic.encode(np.dstack([photo, ramp]), quality=15, effort=1)
    image = nic.decode(data, crop=(5, 7, 20, 10))
    assert image.size == (20, 10)
    assert np.array_equal(np.asarray(image)[..., 3], ramp[7:17, 5:25])


@pytest.mark.parametrize("crop", [(-1, 0, 5, 5), (0, 0, 0, 5), (2100, 0, 20, 20), (0, 1099, 1, 2)])
def test_crop_outside_the_picture(crop: tuple[int, int, int, int], file: bytes) -> None:
    with pytest.raises(UsageError, match="2112x1100"):
        codec.decompress(file, crop=crop)


def test_crop_on_the_command_line(file: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "x.nic", tmp_path / "x.png"
    source.write_bytes(file)
    assert run("decompress", "--crop", "10,20,30,40", source, target).exit_code == 0
    assert Image.open(target).size == (30, 40)
    result = run("decompress", "--force", "--crop", "10,20,30", source, target)
    assert result.exit_code == 2 and "X,Y,W,H" in result.stderr


def damaged(file: bytes, chance: random.Random) -> bytes:
    """A file with one to three accidents: chunks dropped, repeated or moved, bits flipped, bytes lost or put in."""
    for _ in range(chance.randint(1, 3)):
        try:
            parts = raw_chunks(file)
        except BadFile:  # of an earlier accident: only bytes are left to damage
            parts = []
        place, other = chance.randrange(len(parts) or 1), chance.randrange(len(parts) or 1)
        start = chance.randrange(len(SIGNATURE), len(file))
        match chance.choice(["drop", "repeat", "move"] * bool(parts) + ["flip", "cut", "lose", "insert"]):
            case "drop":
                del parts[place]
                file = SIGNATURE + b"".join(parts)
            case "repeat":
                parts.insert(other, parts[place])
                file = SIGNATURE + b"".join(parts)
            case "move":
                parts.insert(other, parts.pop(place))
                file = SIGNATURE + b"".join(parts)
            case "flip":
                file = file[:start] + bytes([file[start] ^ 1 << chance.randrange(8)]) + file[start + 1 :]
            case "cut":
                file = file[:start]
            case "lose":
                file = file[:start] + file[start + chance.randint(1, 300) :]
            case "insert":
                file = file[:start] + chance.randbytes(chance.randint(1, 300)) + file[start:]
        if len(file) <= len(SIGNATURE):
            break
    return file


def contents(read: Callable[[bytes], Contents], data: bytes) -> Contents | None:
    """What a file says; the same as before the damage where only optional chunks have changed places."""
    with contextlib.suppress(NicError):
        return read(data)
    return None


def remembered(restore: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``restore`` for one picture, whose intact cells are always the same."""
    done: dict[str, Tensor] = {}

    def once(model: ExtremeModel, latents: Tensor, lost: list[Slices], level: int) -> Tensor:
        key = f"{level} {lost}"
        if key not in done:
            done[key] = restore(model, latents, lost, level)
        return done[key]

    return once


@pytest.mark.parametrize(
    ("mode", "name", "count"), [("fidelity", "decode_cell", 1000), ("extreme", "decode_indices", 300)]
)
def test_thousands_of_damaged_files(mode: str, name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or told and exact wherever a cell is intact; as fast as a few whole pictures.

    So each cell is decoded once, lost ones are filled in once for each set of them, and of each picture only a part
    in the middle of one cell is made.
    """
    pixels = np.tile(skimage.data.astronaut()[100:132], (1, 11, 1))[:, :5200]
    alpha = np.tile(np.arange(5200) // 99, (32, 1)).astype(np.uint8)
    picture = Picture(np.ascontiguousarray(pixels), alpha, b"icc", xmp=b"<x/>")
    file = codec.compress(picture, quality=10, effort=1, mode=mode).data
    intact = salvage(file)
    cells = intact.cells
    crops = [(CELL * index + 16, 0, 32, 32) for index in range(len(cells))]
    for function in (name, "decode_alpha"):
        monkeypatch.setattr(decoder, function, functools.lru_cache(getattr(decoder, function)))
    monkeypatch.setattr(decoder, "restore", remembered(decoder.restore))
    expected = [codec.decompress(file, crop=crop).pixels for crop in crops]
    outcomes = {"refused": 0, "lost": 0, "exact": 0}
    for seed in range(count):
        chance = random.Random(seed)
        data = damaged(file, chance)
        if contents(salvage, data) == intact:
            continue
        with pytest.raises(NicError):
            codec.decompress(data)
        index = chance.randrange(len(cells))
        try:
            result = codec.recover(data, crop=crops[index])
        except NicError:
            outcomes["refused"] += 1
            continue
        found = salvage(data).cells
        assert result.problems and all(words == cells[place] for place, words in found.items())
        neighbours = {max(index - 1, 0), index} <= found.keys()  # the part begins 16 pixels from the border
        outcomes["exact" if neighbours else "lost"] += 1
        assert not neighbours or np.array_equal(result.picture.pixels, expected[index])
        found_alpha, expected_alpha = result.picture.alpha, decoder.crop_array(alpha, crops[index])
        assert found_alpha is None or np.array_equal(found_alpha, expected_alpha)
    assert min(outcomes.values()) > 0.1 * count, outcomes


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of eleven small frames in groups of two, with a network of its own and something in place of audio."""
    folder, photo = tmp_path_factory.mktemp("clip"), skimage.data.astronaut()
    with ClipWriter(str(folder / "source"), ".mkv", 60, 40, Fraction(1, 25), Fraction(1)) as writer:
        for tick in range(11):
            writer.add(np.ascontiguousarray(photo[30 + tick : 70 + tick, 180 + 2 * tick : 240 + 2 * tick]), tick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "GROUP", 2)
        video.compress(Source.open(str(folder / "source")), str(folder / "clip.nic"), quality=20, effort=1)
    file = video.read((folder / "clip.nic").read_bytes())
    model = video.model_of_clips(file.header.model_id, "cpu")
    name, value = next(iter(model.synthesis.named_parameters()))
    weights = encode_weights(model, {name: torch.full_like(value, 5)}, {name: 8})
    start = pack_start(file.header, file.clip, b"audio" * 20, weights)
    return start + b"".join(pack_group(index, group) for index, group in file.groups.items()) + pack_end()


def test_thousands_of_damaged_videos(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or told, with exactly the frames of all intact groups; each group is decoded once with each network."""
    intact = video.read(clip)
    decoded: dict[object, list[tuple[int, np.ndarray]]] = {}
    decode_group, apply_weights = video.decode_group, functools.lru_cache(video.apply_weights)

    def once(model: Model, file: ClipFile, group: Group) -> list[tuple[int, np.ndarray]]:
        key = model, file.header, file.clip, group
        decoded[key] = decoded.get(key) or list(decode_group(model, file, group))
        return decoded[key]

    monkeypatch.setattr(video, "apply_weights", apply_weights)
    monkeypatch.setattr(video, "decode_group", once)
    expected = dict(video.decode_frames(intact))
    assert not intact.problems and len(expected) == 11
    outcomes = {"refused": 0, "of the shipped network": 0, "exact": 0}
    for seed in range(1000):
        data = damaged(clip, random.Random(seed))
        if contents(video.read, data) == intact:
            continue
        with pytest.raises(NicError):
            video.verify(data)
        try:
            file = video.read(data)
            frames = list(video.decode_frames(file))
        except NicError:
            outcomes["refused"] += 1
            continue
        assert file.problems and all(group == intact.groups[index] for index, group in file.groups.items())
        assert file.audio in (None, intact.audio) and file.weights in (None, intact.weights)
        assert [tick for tick, _ in frames] == [tick for group in file.groups.values() for tick in group.ticks]
        exact = all(np.array_equal(pixels, expected[tick]) for tick, pixels in frames)
        assert exact == (file.weights is not None or not frames)
        outcomes["exact" if exact else "of the shipped network"] += 1
    assert min(outcomes.values()) > 50, outcomes
