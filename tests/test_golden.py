"""Files of released models decode for ever: the same latents to the last bit, the same picture within rounding.

``python tests/test_golden.py`` adds files for a new default model; nothing changes the ones that are there.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from nic import codec
from nic.bitstream.container import unpack
from nic.models.prior import UNIT
from nic.pixels import Picture

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    # name: photograph of scikit-image, part of it, quality
    "cat-q20": ("chelsea", (slice(60, 188), slice(120, 280)), 20),
    "cat-q80": ("chelsea", (slice(60, 188), slice(120, 280)), 80),
    "cup-odd-q50": ("coffee", (slice(100, 201), slice(200, 333)), 50),
    "face-grey-q50": ("astronaut", (slice(0, 128), slice(160, 288), slice(1, 2)), 50),
}


def source(name: str) -> np.ndarray:
    photograph, part, _ = CASES[name.split("~")[0]]
    return np.ascontiguousarray(getattr(skimage.data, photograph)()[part])


def latents_digest(data: bytes) -> str:
    file = unpack(data)
    model = codec.load_model(file.header.model_id, "cpu")
    latents, _ = codec.decode_latents(file.header, dict(enumerate(file.cells)), model)
    return hashlib.sha256((latents * UNIT).numpy().astype("<i4").tobytes()).hexdigest()


def psnr(data: bytes, pixels: np.ndarray) -> float:
    error = codec.decompress(data).pixels.astype(float) - pixels
    return float(10 * np.log10(255**2 / np.square(error).mean()))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.nic")), ids=lambda path: path.stem)
def test_golden_file_decodes(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    assert latents_digest(data) == expected["latents_sha256"]
    assert psnr(data, source(path.stem)) == pytest.approx(expected["psnr"], abs=0.1)


def test_the_default_model_has_golden_files() -> None:
    """Every case, of the model that is the default now."""
    model = codec.load_model("fidelity", "cpu").id.hex()
    assert {f"{name}~{model}" for name in CASES} <= {path.stem for path in GOLDEN.glob("*.nic")}


def bless() -> None:
    model = codec.load_model("fidelity", "cpu").id.hex()
    for name, (_, _, quality) in CASES.items():
        path = GOLDEN / f"{name}~{model}.nic"
        if not path.exists():
            data = codec.compress(Picture(source(name)), quality=quality, device="cpu").data
            path.write_bytes(data)
            expected = {"latents_sha256": latents_digest(data), "psnr": round(psnr(data, source(name)), 3)}
            path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")
            print(path.name, len(data), expected)


if __name__ == "__main__":
    bless()
