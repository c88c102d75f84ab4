"""Coverage-guided fuzzing: python tests/fuzz/fuzz.py container|decode [libFuzzer's options] [FOLDERS]. Needs atheris.

    pip install atheris
    python tests/fuzz/fuzz.py decode -max_total_time=600 -rss_limit_mb=3000 -timeout=20 build/corpus tests/fuzz/decode

New files go to the first folder. What fails is left as crash-*: mend the cause, and keep the file in the target's
folder. Half of the mutants get right checksums, or few would ever pass the first chunk.
"""

import sys
import zlib
from functools import partial

import atheris

with atheris.instrument_imports(include=["nic"]):
    import nic.codec
    import nic.describe
    import nic.video  # noqa: F401
from test_fuzz import TARGETS

from nic.bitstream.container import SIGNATURE
from nic.bitstream.fields import Reader
from nic.errors import BadFile


def with_right_checksums(data: bytes) -> bytes:
    """Every chunk that ends within the data gets the checksum of what is in it."""
    reader = Reader(data, "file")
    reader.position = start = len(SIGNATURE)
    parts = [data[:start]]
    try:
        while reader.remaining:
            reader.take(4)
            reader.take(reader.varint())
            framed = data[start : reader.position]
            reader.take(4)
            parts += [framed, zlib.crc32(framed).to_bytes(4, "little")]
            start = reader.position
    except BadFile:
        parts.append(data[start:])
    return b"".join(parts)


def mutate(data: bytes, limit: int, seed: int) -> bytes:
    mutant = atheris.Mutate(data, limit)
    return with_right_checksums(mutant) if seed % 2 else mutant


def run(target: str, data: bytes) -> None:
    TARGETS[target](data)


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], partial(run, sys.argv[1]), custom_mutator=mutate)
    atheris.Fuzz()
