"""The coder's law, its rate, its literal words, and what it does with damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nic.bitstream.entropy import PRECISION, Decoder, Encoder, Tables
from nic.errors import BadFile

TOTAL = 1 << PRECISION

EXAMPLE_TABLES = ([8388608, 4194304, 4194304], [16777216], [16777215, 1])
EXAMPLE_CLASSES = np.array([0, 1, 2, 0, 1, 2, 2, 0], np.uint8)
EXAMPLE_SYMBOLS = np.array([2, 0, 1, 0, 0, 1, 0, 2], np.int32)
EXAMPLE_PAYLOAD = bytes.fromhex("ffffffdf02f87ffc")


def tables_of(*frequencies: list[int]) -> Tables:
    return Tables([np.array(table, np.uint32) for table in frequencies])


def random_table(rng: np.random.Generator, size: int) -> NDArray[np.uint32]:
    """A table of very unequal frequencies, many of them 1."""
    weights = rng.gamma(0.1, size=size) + 1e-300
    table = 1 + np.floor(weights / weights.sum() * (TOTAL - size)).astype(np.int64)
    table[rng.integers(size)] += TOTAL - table.sum()
    return np.asarray(table, np.uint32)


def draw_symbols(
    rng: np.random.Generator, tables: list[NDArray[np.uint32]], classes: NDArray[np.uint8]
) -> NDArray[np.int32]:
    """Symbols with the probabilities of their tables."""
    quantiles = rng.integers(TOTAL, size=len(classes))
    ends = [np.cumsum(table) for table in tables]
    pairs = zip(quantiles, classes, strict=True)
    return np.array([np.searchsorted(ends[index], q, "right") for q, index in pairs], np.int32)


def encode(tables: Tables, symbols: NDArray[np.int32], classes: NDArray[np.uint8]) -> bytes:
    encoder = Encoder(tables)
    encoder.put(symbols, classes)
    return encoder.finish()


def test_example_bytes() -> None:
    tables = tables_of(*EXAMPLE_TABLES)
    assert encode(tables, EXAMPLE_SYMBOLS, EXAMPLE_CLASSES) == EXAMPLE_PAYLOAD
    decoder = Decoder(tables, EXAMPLE_PAYLOAD)
    np.testing.assert_array_equal(decoder.get(EXAMPLE_CLASSES), EXAMPLE_SYMBOLS)
    decoder.finish()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 40) | st.just(1024), min_size=1, max_size=6),
    batch_lengths=st.lists(st.integers(0, 60), max_size=4),
)
def test_get_restores_what_put_coded(seed: int, sizes: list[int], batch_lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    frequencies = [random_table(rng, size) for size in sizes]
    tables = Tables(frequencies)
    batches = []
    for length in batch_lengths:
        classes = rng.integers(len(sizes), size=length, dtype=np.uint8)
        symbols = rng.integers(np.array(sizes)[classes], dtype=np.int32)  # rare symbols as often as others
        batches.append((symbols, classes))

    encoder = Encoder(tables)
    for symbols, classes in batches:
        encoder.put(symbols, classes)
    decoder = Decoder(tables, encoder.finish())
    for symbols, classes in batches:
        decoded = decoder.get(classes)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)
        decoder.check()
    decoder.finish()


def test_symbols_beyond_the_words_are_noticed_on_the_way() -> None:
    tables = tables_of(*EXAMPLE_TABLES)
    decoder = Decoder(tables, EXAMPLE_PAYLOAD)
    decoder.get(EXAMPLE_CLASSES)
    decoder.check()
    with pytest.raises(BadFile, match="end before"):
        for _ in range(40):  # at least three bits each
            decoder.get(EXAMPLE_CLASSES)
            decoder.check()


def test_rate_is_ideal() -> None:
    rng = np.random.default_rng(0)
    frequencies = [random_table(rng, size) for size in (1, 2, 17, 256, 1024)]
    tables = Tables(frequencies)
    classes = rng.integers(len(frequencies), size=50_000, dtype=np.uint8)
    symbols = draw_symbols(rng, frequencies, classes)
    ideal_bytes = tables.cost(symbols, classes) / 8
    assert ideal_bytes <= len(encode(tables, symbols, classes)) <= ideal_bytes * 1.001 + 8


def test_ideal_bits_of_the_example() -> None:
    bits = tables_of(*EXAMPLE_TABLES).cost(EXAMPLE_SYMBOLS, EXAMPLE_CLASSES)
    assert bits == pytest.approx(2 + 1 + 2 + 24 + 24, abs=1e-6)


def test_certain_symbols_cost_nothing() -> None:
    tables, classes = tables_of([TOTAL]), np.zeros(1000, np.uint8)
    assert encode(tables, np.zeros(1000, np.int32), classes) == b""
    decoder = Decoder(tables, b"")
    assert not decoder.get(classes).any()
    decoder.finish()


@pytest.mark.parametrize(
    "frequencies",
    [
        [],
        [[]],
        [[TOTAL - 1]],
        [[0, TOTAL]],
        [[TOTAL, 1]],
        [[2**32 - 1, TOTAL + 1]],
        [[TOTAL]] * 257,
    ],
)
def test_tables_are_checked(frequencies: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="table"):
        tables_of(*frequencies)
    with pytest.raises(ValueError, match="uint32"):
        Tables([np.array([TOTAL], np.int64)])


@pytest.mark.parametrize(
    ("symbols", "classes"), [([3], [0]), ([-1], [0]), ([1], [1]), ([0], [3]), ([0, 0], [0]), ([2], [2])]
)
def test_put_refuses_what_the_tables_do_not_have(symbols: list[int], classes: list[int]) -> None:
    with pytest.raises(ValueError, match="symbol|class"):
        encode(tables_of(*EXAMPLE_TABLES), np.array(symbols, np.int32), np.array(classes, np.uint8))


def read_all(tables: Tables, payload: bytes, classes: NDArray[np.uint8]) -> NDArray[np.int32]:
    decoder = Decoder(tables, payload)
    symbols = decoder.get(classes)
    decoder.finish()
    return symbols


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        EXAMPLE_PAYLOAD[:-1],
        EXAMPLE_PAYLOAD[:-4],
        EXAMPLE_PAYLOAD + b"\0",
        EXAMPLE_PAYLOAD + bytes(4),
        b"\xff" * 8,
    ],
)
def test_payload_of_another_length_is_bad(payload: bytes) -> None:
    with pytest.raises(BadFile, match="damaged cell"):
        read_all(tables_of(*EXAMPLE_TABLES), payload, EXAMPLE_CLASSES)


def test_payload_without_symbols_must_be_empty() -> None:
    with pytest.raises(BadFile):
        read_all(tables_of([TOTAL]), bytes(4), np.zeros(5, np.uint8))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), words=st.binary(max_size=60).filter(lambda words: len(words) % 4 == 0))
def test_garbage_gives_symbols_or_a_bad_file(seed: int, words: bytes) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([1, 2, 30, 300])
    tables = Tables([random_table(rng, size) for size in sizes])
    classes = rng.integers(len(sizes), size=200, dtype=np.uint8)
    try:
        symbols = read_all(tables, words, classes)
    except BadFile:
        return
    assert ((symbols >= 0) & (symbols < sizes[classes])).all()
    assert encode(tables, symbols, classes) == words
