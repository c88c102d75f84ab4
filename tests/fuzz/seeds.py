"""Fits the corpora to new weights: python tests/fuzz/seeds.py OLD_MODEL_ID

Makes the files whose names say what they are again, and gives the others the shipped model's id.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import skimage.data

from nic import codec
from nic.models import store
from nic.pixels import Picture

FOLDER = Path(__file__).parent
HEAD = slice(8, 30)  # the first chunk up to its checksum, model id last


def named() -> dict[str, bytes]:
    """File name -> file."""
    face = skimage.data.astronaut()[30:78, 180:240]
    rgb = codec.compress(Picture(face), quality=5).data
    strip = np.tile(face[:2], (1, 35, 1))
    three = codec.compress(Picture(strip), quality=0).data
    one = codec.compress(Picture(face[:1, :1]), quality=0).data
    alpha = Picture(face[:20, :20], face[:20, :20, 0].copy(), b"icc", b"Exif\0\0", b"<x/>")
    grey = Picture(face[:16, :30, :1].astype(np.uint16) * 257)
    last = three.rindex(b"CELL")
    return {
        "alpha-and-metadata": codec.compress(alpha, quality=50).data,
        "cell-lost": three[:last] + b"CELH" + three[last + 4 :],
        "cut": rgb[:-9],
        "grey-16": codec.compress(grey, quality=30).data,
        "one-pixel": one,
        "only-cell-lost": rgb[:45] + bytes([rgb[45] ^ 1]) + rgb[46:],
        "rgb": rgb,
        "three-cells": three,
        "unknown-model": with_id(one, b"12345678"),
    }


def with_right_checksum(file: bytes) -> bytes:
    return file[: HEAD.stop] + zlib.crc32(file[HEAD]).to_bytes(4, "little") + file[HEAD.stop + 4 :]


def with_id(file: bytes, model: bytes) -> bytes:
    """The file with another model's id in its header; a checksum that was right stays right."""
    changed = file[: HEAD.stop - 8] + model + file[HEAD.stop :]
    return with_right_checksum(changed) if with_right_checksum(file) == file else changed


def main() -> None:
    old, new = bytes.fromhex(sys.argv[1]), bytes.fromhex(store.find(store.DEFAULT)["id"])
    for folder in (FOLDER / "container", FOLDER / "decode"):
        for path in folder.iterdir():
            if path.read_bytes()[HEAD][-8:] == old:
                path.write_bytes(with_id(path.read_bytes(), new))
        for name, file in named().items():
            (folder / f"{name}.nic").write_bytes(file)


if __name__ == "__main__":
    main()
