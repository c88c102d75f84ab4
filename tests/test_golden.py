"""Files of released models decode for ever: the same latents to the last bit, the same picture within rounding.

``python tests/test_golden.py`` adds files for the models that are new; nothing changes the ones that are there.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from nic import codec
from nic.bitstream.container import unpack
from nic.decoder import decode_latents
from nic.loaded import load_model
from nic.models.prior import UNIT
from nic.pixels import Picture

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    # name: photograph of scikit-image, part of it, quality, mode and model
    "cat-q20": ("chelsea", (slice(60, 188), slice(120, 280)), 20, "fidelity"),
    "cat-q80": ("chelsea", (slice(60, 188), slice(120, 280)), 80, "fidelity"),
    "cup-odd-q50": ("coffee", (slice(100, 201), slice(200, 333)), 50, "fidelity"),
    "face-grey-q50": ("astronaut", (slice(0, 128), slice(160, 288), slice(1, 2)), 50, "fidelity"),
    "cat-extreme-q100": ("chelsea", (slice(0, 300), slice(0, 451)), 100, "extreme"),
    "cup-extreme-q40": ("coffee", (slice(0, 384), slice(0, 512)), 40, "extreme"),
    "face-extreme-q0": ("astronaut", (slice(0, 256), slice(96, 352), slice(1, 2)), 0, "extreme"),
}


def source(name: str) -> np.ndarray:
    photograph, part, *_ = CASES[name.split("~")[0]]
    return np.ascontiguousarray(getattr(skimage.data, photograph)()[part])


def digests(data: bytes) -> dict[str, str]:
    """Of the latents, and of the filters' limits and coefficients in raster order."""
    file = unpack(data)
    model = load_model(file.header.model_id, "cpu")
    latents, filters, _ = decode_latents(file.header, dict(enumerate(file.cells)), model)
    numbers = [[filters[cell].limit, *np.concatenate(filters[cell].coefficients)] for cell in sorted(filters)]
    integers = {"latents": (latents * UNIT).numpy(), "filters": np.array(numbers)}
    return {f"{name}_sha256": hashlib.sha256(x.astype("<i4").tobytes()).hexdigest() for name, x in integers.items()}


def psnr(data: bytes, pixels: np.ndarray) -> float:
    error = codec.decompress(data).pixels.astype(float) - pixels
    return float(10 * np.log10(255**2 / np.square(error).mean()))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.nic")), ids=lambda path: path.stem)
def test_golden_file_decodes(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    assert psnr(data, source(path.stem)) == pytest.approx(expected.pop("psnr"), abs=0.1)
    assert digests(data) == expected


def test_the_models_have_golden_files() -> None:
    """Every case, of the models that are the default of their modes now."""
    assert {file_name(name) for name in CASES} <= {path.stem for path in GOLDEN.glob("*.nic")}


def file_name(case: str) -> str:
    return f"{case}~{load_model(CASES[case][3], 'cpu').id.hex()}"


def bless() -> None:
    for name, (*_, quality, mode) in CASES.items():
        path = GOLDEN / f"{file_name(name)}.nic"
        if not path.exists():
            data = codec.compress(Picture(source(name)), quality=quality, mode=mode, device="cpu").data
            path.write_bytes(data)
            expected = digests(data) | {"psnr": round(psnr(data, source(name)), 3)}
            path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")
            print(path.name, len(data), expected)


if __name__ == "__main__":
    bless()
