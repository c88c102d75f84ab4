"""FORMAT.md says what the code does: its tables, its example, its two programs and its bytes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nic.bitstream import fields, limits
from nic.bitstream.clip import CLIP_FIELDS
from nic.bitstream.container import SIGNATURE
from nic.bitstream.entropy import PRECISION, Decoder, Encoder, Tables
from nic.bitstream.header import FORMAT_MAJOR, FORMAT_MINOR, HEADER_FIELDS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "bitstream" / "FORMAT.md").read_text(encoding="utf-8")

TOTAL = 1 << PRECISION


def section(number: str) -> str:
    """The text of a section without its subsections' siblings, e.g. `6.3`."""
    level = "#" * (2 + number.count("."))
    match = re.search(rf"^{level} {re.escape(number)}\.? .*?(?=^#{{2,{len(level)}}} |\Z)", DOCUMENT, re.M | re.S)
    assert match, f"FORMAT.md has no section {number}"
    return match[0]


def program(name: str) -> Callable[..., Any]:
    """The function `name` as FORMAT.md prints it."""
    namespace: dict[str, Callable[..., Any]] = {}
    for block in re.findall(r"```python\n(.*?)```", section("6.3"), re.S):
        exec(block, namespace)
    return namespace[name]


def intervals(symbols: list[int], tables: list[list[int]]) -> list[tuple[int, int]]:
    return [(sum(table[:symbol]), table[symbol]) for symbol, table in zip(symbols, tables, strict=True)]


def test_version() -> None:
    assert DOCUMENT.startswith(f"# The .nic format, version {FORMAT_MAJOR}.{FORMAT_MINOR}\n")
    assert f"- {FORMAT_MAJOR}.{FORMAT_MINOR}: " in section("13")


def test_signature() -> None:
    assert f"`{SIGNATURE.hex(' ').upper()}`" in section("3")


def test_header_table_is_the_declaration() -> None:
    assert fields.markdown_table(HEADER_FIELDS) in section("5")


def test_clip_table_is_the_declaration() -> None:
    assert fields.markdown_table(CLIP_FIELDS) in section("14.2")


def test_limits_are_those_of_the_code() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section("9"), re.M))
    assert documented == {name: str(getattr(limits, name)) for name in limits.__all__ if name.isupper()}


def test_smallest_vector_byte_by_byte() -> None:
    spelled = "".join(re.findall(r"^\| `([0-9A-F ]+)` \|", section("12"), re.M))
    assert bytes.fromhex(spelled) == (ROOT / "tests" / "vectors" / "format" / "minimal.nic").read_bytes()


def test_example() -> None:
    text = section("6.4")
    assert "class 0 has 8388608, 4194304, 4194304; class 1 has 16777216; class 2 has 16777215, 1." in text
    rows = {name: values for name, *values in (line[2:-2].split(" | ") for line in re.findall(r"^\|.*\|$", text, re.M))}
    symbols, classes = np.array(rows["symbol"], np.int32), np.array(rows["class"], np.uint8)
    tables = Tables([np.array(f, np.uint32) for f in ([TOTAL // 2, TOTAL // 4, TOTAL // 4], [TOTAL], [TOTAL - 1, 1])])
    encoder = Encoder(tables)
    encoder.put(symbols, classes)
    assert f"`{encoder.finish().hex(' ').upper()}`" in text

    low, range_ = 0, 2**64 - 1
    for position in (0, 3, 7, 2, 5, 6):
        cumulative, frequency, shown_low, shown_range = rows[str(position)]
        low += (range_ >> 24) * int(cumulative)
        range_ = (range_ >> 24) * int(frequency)
        if range_ < 2**32:
            low, range_ = low << 32, range_ << 32
        assert (int(shown_low.strip("`"), 16), int(shown_range.strip("`"), 16)) == (low, range_)


@pytest.mark.parametrize("seed", range(20))
def test_programs_equal_the_coder(seed: int) -> None:
    """The integer tables, the coder's words and the seal are exactly as written, with symbols as rare as can be."""
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 2 ** rng.integers(1, 18), size=50).tolist()
    table[rng.integers(50)] += TOTAL - sum(table)
    symbols = rng.integers(50, size=seed * 5).tolist()
    assert_programs_equal_the_coder(table, symbols)


@pytest.mark.parametrize(("last", "first_word"), [(0, 0x7FFFFFFF), (2, 0x80000000)])
def test_programs_equal_the_coder_when_words_are_held_back(last: int, first_word: int) -> None:
    """The symbols of the point 1/2 keep the interval astride it for five words; the last ones say which side it is."""
    table = [TOTAL // 3, TOTAL // 3 + 1, TOTAL // 3]
    symbols = program("decode")([0x80000000, 0, 0, 0, 0], [table] * 100) + [last] * 50
    words = assert_programs_equal_the_coder(table, symbols)
    assert words[:4] == [first_word] + ([0xFFFFFFFF] * 3 if last == 0 else [0] * 3)


def assert_programs_equal_the_coder(table: list[int], symbols: list[int]) -> list[int]:
    tables = Tables([np.array(table, np.uint32)])
    classes = np.zeros(len(symbols), np.uint8)
    encoder = Encoder(tables)
    encoder.put(np.array(symbols, np.int32), classes)
    payload = encoder.finish()
    words: list[int] = np.frombuffer(payload, "<u4").tolist()

    assert program("encode")(intervals(symbols, [table] * len(symbols))) == words
    assert program("decode")(words, [table] * len(symbols)) == symbols
    decoder = Decoder(tables, payload)
    assert decoder.get(classes).tolist() == symbols
    decoder.finish()
    return words
