"""Fits the corpora to new weights: python tests/fuzz/seeds.py [OLD_MODEL_ID NEW_MODEL_ID]

Makes the files whose names say what they are again, and gives the others the new model's id.
"""

import sys
import tempfile
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import skimage.data
import torch

from nic import codec, video
from nic.bitstream.clip import pack_end, pack_group, pack_start
from nic.media import ClipWriter, Source
from nic.models import store
from nic.pixels import Picture
from nic.weights import encode_weights

FOLDER = Path(__file__).parent


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
    tiny = codec.compress(Picture(face), quality=70, mode="extreme").data
    tinies = codec.compress(Picture(strip), quality=0, mode="extreme").data
    clip = made_clip()
    return {
        "alpha-and-metadata": codec.compress(alpha, quality=50).data,
        "cell-lost": three[:last] + b"CELH" + three[last + 4 :],
        "clip": clip,
        "clip-cut": clip[:-40],
        "clip-group-lost": clip.replace(b"GRUP", b"GRUQ", 1),
        "cut": rgb[:-9],
        "extreme": tiny,
        "extreme-cell-lost": tinies.replace(b"CELL", b"CELH", 1),
        "extreme-grey": codec.compress(Picture(face[:20, :70, :1]), quality=20, mode="extreme").data,
        "grey-16": codec.compress(grey, quality=30).data,
        "one-pixel": one,
        "only-cell-lost": rgb[:45] + bytes([rgb[45] ^ 1]) + rgb[46:],
        "rgb": rgb,
        "three-cells": three,
        "unknown-model": with_id(one, bytes.fromhex(store.find(store.DEFAULT)["id"]), b"12345678"),
    }


def made_clip() -> bytes:
    """Four frames in groups of three, with a network of its own and something in place of audio."""
    frames = [
        np.ascontiguousarray(skimage.data.astronaut()[30 + i : 70 + i, 180 + 2 * i : 240 + 2 * i]) for i in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        with ClipWriter(f"{folder}/clip", ".mkv", 60, 40, Fraction(1, 25), Fraction(1)) as writer:
            for tick, pixels in enumerate(frames):
                writer.add(pixels, tick)
        video.GROUP = 3
        video.compress(Source.open(f"{folder}/clip"), f"{folder}/nic", quality=0, effort=1)
        file = video.read(Path(folder, "nic").read_bytes())
    model = video.model_of_clips(store.VIDEO, "cpu")
    name, value = max(model.synthesis.named_parameters(), key=lambda item: item[1].numel())
    change = torch.zeros_like(value).flatten()
    change[:40] = 9
    weights = encode_weights(model, {name: change.view_as(value)}, {name: 8})
    groups = [pack_group(index, group) for index, group in file.groups.items()]
    return pack_start(file.header, file.clip, b"audio", weights) + b"".join(groups) + pack_end()


def with_id(file: bytes, old: bytes, new: bytes) -> bytes:
    """The file with another model's id; a checksum of its header that was right stays right."""
    end = 13 + int.from_bytes(file[12:13])  # of the header: after signature, tag, and a length of one byte
    changed = file.replace(old, new, 1)
    if file[end : end + 4] != zlib.crc32(file[8:end]).to_bytes(4, "little"):  # or there is none
        return changed
    return changed[:end] + zlib.crc32(changed[8:end]).to_bytes(4, "little") + changed[end + 4 :]


def main() -> None:
    for folder in (FOLDER / "container", FOLDER / "decode"):
        if len(sys.argv) > 1:
            old, new = map(bytes.fromhex, sys.argv[1:])
            for path in folder.iterdir():
                path.write_bytes(with_id(path.read_bytes(), old, new))
        for name, file in named().items():
            (folder / f"{name}.nic").write_bytes(file)


if __name__ == "__main__":
    main()
