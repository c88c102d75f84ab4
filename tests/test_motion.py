"""Motion of frames: fields searched in moving photographs, coded, and read by a second reader made from the format."""

import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from nic.bitstream.entropy import PRECISION, Decoder, Encoder, Tables
from nic.errors import BadFile
from nic.models.motion import choose, search
from nic.models.video import BLOCK, BOTH, FIRST, GREY, SECOND, VECTOR_UNIT, predict, warp
from nic.motion import START, MotionTables, frequencies, get_motion, put_motion

BITS = Tables([np.full(2, 2 ** (PRECISION - 1), np.uint32)])
WORTH = 2e4  # bits of a squared error


def window(x: float, y: float, height: int = 128, width: int = 192) -> Tensor:
    """A window [1, 3, height, width] of a photograph."""
    photo = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None] / 255
    vectors = torch.tensor([100 + x, 60 + y])[None, :, None, None].expand(1, 2, *photo.shape[2:])
    return warp(photo, vectors)[:, :, :height, :width]


def random_field(chance: np.random.Generator, height: int, width: int, references: int) -> np.ndarray:
    """Rectangles of states, some small, some with vectors far away."""
    field = np.zeros((height, width, 5), np.int32)
    for _ in range(chance.integers(8)):
        top, left = chance.integers(height), chance.integers(width)
        tall, wide = chance.integers(1, height + 1), chance.integers(1, width + 1)
        reach = chance.choice([3, 40, 900])
        state = np.append(chance.integers(-reach, reach, 4), chance.integers(3))
        field[top : top + tall, left : left + wide] = state
    if references == 1:
        field[..., 4] = FIRST
    field[field[..., 4] == FIRST, 2:4] = 0
    field[field[..., 4] == SECOND, :2] = 0
    return field


def test_what_is_written_is_read() -> None:
    """Frame after frame with the same tables, of sizes that are no powers of two."""
    chance = np.random.default_rng(1)
    for height, width in ((1, 1), (8, 8), (9, 17), (24, 40), (5, 31)):
        writing, reading, again = MotionTables(), MotionTables(), MotionTables()
        for references in (1, 2, 2, 1, 2):
            field = random_field(chance, height, width, references)
            encoder = Encoder(BITS)
            put_motion(encoder, writing, field, references)
            words = encoder.finish()
            decoder = Decoder(BITS, words)
            assert np.array_equal(get_motion(decoder, reading, height, width, references), field)
            decoder.finish()
            second = Reader(Decoder(BITS, words), again)
            assert np.array_equal(second.field(height, width, references), field)
            again.adapt()


class Reader:
    """FORMAT.md §14.4, read one square at a time."""

    def __init__(self, decoder: Decoder, tables: MotionTables) -> None:
        self.decoder, self.tables = decoder, tables

    def batch(self, classes: list[int]) -> list[int]:
        symbols = self.decoder.get(np.array(classes, np.uint8), self.tables.tables)
        self.tables.seen.append((symbols, np.array(classes)))
        return [int(symbol) for symbol in symbols]

    def field(self, height: int, width: int, references: int) -> np.ndarray:
        first = (0, 0, 0, 0, BOTH if references == 2 else FIRST)
        k = next(k for k in range(20) if 2**k >= max(height, width))
        above: dict[tuple[int, int], tuple[int, ...]] = {}
        split = {(0, 0)}
        while True:
            states = {}
            squares = [(y, x) for y in range(-(-height // 2**k)) for x in range(-(-width // 2**k))]
            parents = {square: self.parents(above, *square, first) for square in squares}
            coded = [square for square in squares if not above or (square[0] // 2, square[1] // 2) in split]
            news = {s: sum(2 ** (i - 1) for i in (1, 2, 3) if p[i] not in p[:i]) for s, p in parents.items()}
            kinds = dict(zip(coded, self.batch([8 * min(k, 2) + news[s] for s in coded]), strict=True))
            for square in squares:
                states[square] = parents[square][kinds.get(square, 0) % 4]
            new = [square for square in coded if kinds[square] == 4]
            states.update(zip(new, self.new([parents[square][0] for square in new], references), strict=True))
            if k == 0:
                return np.array([states[y, x] for y in range(height) for x in range(width)]).reshape(height, width, 5)
            differing = {s: sum(other != p[0] for other in p[1:]) for s, p in parents.items()}
            classes = [24 + 8 * min(k - 1, 3) + 2 * differing[s] + (kinds[s] > 0) for s in coded]
            split = {square for square, flag in zip(coded, self.batch(classes), strict=True) if flag}
            above, k = states, k - 1

    @staticmethod
    def parents(above: dict[tuple[int, int], tuple[int, ...]], y: int, x: int, first: tuple[int, ...]) -> list:
        if not above:
            return 4 * [first]
        last_y, last_x = max(above)
        rows = y // 2, min(max(y // 2 + (1 if y % 2 else -1), 0), last_y)
        columns = x // 2, min(max(x // 2 + (1 if x % 2 else -1), 0), last_x)
        return [above[row, column] for row in rows for column in columns]

    def new(self, parents: list[tuple[int, ...]], references: int) -> list[tuple[int, ...]]:
        sources = self.batch([56 + parent[4] for parent in parents]) if references == 2 else [FIRST] * len(parents)
        with_first = [i for i, source in enumerate(sources) if source != SECOND]
        with_second = [i for i, source in enumerate(sources) if source != FIRST]
        moved = dict(zip(with_first, self.differences([0] * len(with_first)), strict=True))
        sorts = [1 if sources[i] == BOTH else 2 for i in with_second]
        other = dict(zip(with_second, self.differences(sorts), strict=True))
        states = []
        for i, parent in enumerate(parents):
            x, y, x2, y2 = 0, 0, 0, 0
            dx, dy = moved.get(i, (0, 0))
            if i in moved:
                x, y = parent[0] + dx, parent[1] + dy
            if i in other:
                x2, y2 = parent[2] - dx + other[i][0], parent[3] - dy + other[i][1]
            states.append((x, y, x2, y2, sources[i]))
        return states

    def differences(self, sorts: list[int]) -> list[tuple[int, int]]:
        buckets = self.batch([59 + 5 * sort for sort in sorts])
        xs = self.numbers(buckets)
        contexts = [60 + 5 * sort + min(3, bucket) for sort, bucket in zip(sorts, buckets, strict=True)]
        return list(zip(xs, self.numbers(self.batch(contexts)), strict=True))

    def numbers(self, buckets: list[int]) -> list[int]:
        more = iter(self.batch([74 + bucket - 3 for bucket in buckets if bucket >= 3]))
        magnitudes = [2 ** (bucket - 2) + 1 + next(more) if bucket >= 3 else bucket for bucket in buckets]
        signs = iter(self.batch([74 for magnitude in magnitudes if magnitude]))
        return [-magnitude if magnitude and next(signs) else magnitude for magnitude in magnitudes]


def test_damaged_words_give_a_field_or_an_error() -> None:
    chance = np.random.default_rng(2)
    encoder = Encoder(BITS)
    put_motion(encoder, MotionTables(), random_field(chance, 20, 30, 2), 2)
    words = encoder.finish()
    failed = 0
    for _ in range(300):
        damaged = bytearray(words)
        damaged[chance.integers(len(damaged))] ^= 1 << chance.integers(8)
        try:
            field = get_motion(Decoder(BITS, bytes(damaged)), MotionTables(), 20, 30, 2)
            assert field.shape == (20, 30, 5) and abs(field).max() <= 2**14
        except BadFile:
            failed += 1
    assert failed > 30


def test_vectors_that_lead_too_far_are_damage() -> None:
    encoder = Encoder(BITS)
    field = np.zeros((512, 512, 5), np.int32)
    field[..., 4] = FIRST
    for corner in range(20):  # each level adds to the vector of the one above
        field[: 512 >> corner, : 512 >> corner, 0] += 1000 if corner else 0
    put_motion(encoder, MotionTables(), field, 1)
    assert get_motion(Decoder(BITS, encoder.finish()), MotionTables(), 512, 512, 1)[0, 0, 0] > 2**13
    encoder = Encoder(BITS)
    with pytest.raises(BadFile, match="too far"):
        put_motion(encoder, MotionTables(), 2 * field, 1)


def test_frequencies_follow_counts() -> None:
    counts = np.array([1, 1, 98, 10**6], np.uint64)
    result = frequencies(counts)
    assert result.sum() == 2**PRECISION and result.min() > 0
    assert np.allclose(result / 2**PRECISION, counts / counts.sum(), atol=1e-6)


def test_search_finds_a_pan() -> None:
    """By (3.25, 1) pixels; where the window shows what was not there before, anything goes."""
    first, second = window(0, 0), window(3.25, 1)
    field = choose(second, [first], [search(second, first)], WORTH)
    inner = field[0, :2, 1:-1, 1:-1].flatten(1).float() * VECTOR_UNIT
    assert inner.median(dim=1)[0].tolist() == [3.25, 1]
    error = (predict([first], field) - second)[:, :, 16:-16, 16:-16].square().mean()
    assert error < 1e-4 < 0.02 * (first - second)[:, :, 16:-16, 16:-16].square().mean()


def test_a_disc_before_a_moving_background() -> None:
    """Two motions: few states, both found, and next to nothing between the sharp outlines is wrong."""
    row, column = torch.meshgrid(torch.arange(128), torch.arange(192), indexing="ij")
    frames = []
    for time in (0, 1, 2):
        disc = ((row - 60) ** 2 + (column - 80 - 6 * time) ** 2 < 30**2).float()
        frames.append(torch.lerp(window(4 * time, 0), window(150 - 6 * time, 200), disc))
    before, now, after = frames
    field = choose(now, [before, after], [search(now, before), search(now, after)], WORTH)
    states, counts = field[0].flatten(1).unique(dim=1, return_counts=True)
    assert len(counts) < 40
    assert {(16, 0), (-24, 0)} <= {tuple(state[:2].tolist()) for state in states.T}
    assert (predict([before, after], field) - now).abs().mean() < 0.01


def test_motion_costs_little_where_nothing_shows() -> None:
    """A plain half has the state of all around it, and the less errors are worth, the fewer states there are."""
    first, second = window(0, 0), window(5, 2)
    first[:, :, :, :96] = second[:, :, :, :96] = 0.5
    second[:, :, 40:80, 120:150] = window(9, 9)[:, :, 40:80, 120:150]
    found = [search(second, first)]
    fields = [choose(second, [first], found, worth) for worth in (WORTH, WORTH / 10, WORTH / 1000)]
    assert len(fields[0][0, :, :, :10].flatten(1).unique(dim=1).T) == 1
    states = [len(field[0].flatten(1).unique(dim=1).T) for field in fields]
    assert states[0] > states[1] > states[2] > 1


def test_prediction_of_one_vector_is_a_shifted_frame() -> None:
    frame = window(0, 0, 64, 64)
    field = torch.tensor([10, -6, 0, 0, FIRST])[None, :, None, None].expand(1, 5, 8, 8)
    shifted = warp(frame, torch.tensor([2.5, -1.5])[None, :, None, None].expand(1, 2, 64, 64))
    assert torch.allclose(predict([frame], field), shifted.clamp(0, 1), atol=1e-6)
    both = torch.tensor([10, -6, 0, 0, BOTH])[None, :, None, None].expand(1, 5, 8, 8)
    assert torch.allclose(predict([frame, frame], both), (shifted + frame) / 2, atol=1e-6)
    assert torch.equal(predict([], field), torch.full((1, 3, 64, 64), GREY))


def test_blocks_are_blended_over_their_borders() -> None:
    """Of two plain references, the weights show: bilinear between the middles of blocks, constant beyond."""
    black, white = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    field = torch.zeros(1, 5, 8, 8, dtype=torch.int64)
    field[:, 4, :, :4], field[:, 4, :, 4:] = FIRST, SECOND
    line = predict([black, white], field)[0, 0, 20]
    ramp = (torch.arange(64) + 0.5 - 4 * BLOCK) / BLOCK + 0.5
    assert torch.allclose(line, ramp.clamp(0, 1), atol=1e-6)


def test_vectors_beyond_the_border_see_it_repeated() -> None:
    frame = window(0, 0, 64, 64)
    field = torch.tensor([-4 * 200, 0, 0, 0, FIRST])[None, :, None, None].expand(1, 5, 8, 8)
    assert torch.allclose(predict([frame], field), frame[:, :, :, :1].expand(-1, -1, -1, 64), atol=1e-6)


def test_format_has_the_counts() -> None:
    text = (Path(__file__).parent.parent / "bitstream" / "FORMAT.md").read_text()
    told = re.search(r"table after table:\n\n((?:    [\d ]+\n)+)", text)
    assert told and told[1].split() == START.split()
