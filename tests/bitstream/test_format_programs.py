"""FORMAT.md alone decodes files: its programs, on the tensors of weight files, give what nic gives."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nic import codec
from nic.bitstream.container import NicFile, unpack
from nic.bitstream.entropy import Decoder, Tables
from nic.bitstream.header import Mode
from nic.models import store
from nic.models.adaptive import COUNTS, AdaptiveFilter

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "bitstream" / "FORMAT.md").read_text(encoding="utf-8")
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.nic"))
INTEGERS = ("prior.", "codebooks.")


def tensors_of(model_id: bytes) -> dict[str, np.ndarray]:
    """A weight file as §7.8 has it, integers widened; checks that the model id is as it says."""
    with safe_open(store.find(model_id)["path"], framework="numpy") as file:
        metadata = file.metadata()
        assert metadata["id"] == model_id.hex()
        stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
    prefixes = (*INTEGERS, "synthesis.") if metadata["mode"] == "video" else INTEGERS
    named = {name: array for name, array in stored.items() if name.startswith(prefixes)}
    lines = (f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes() for name, array in named.items())
    assert hashlib.sha256(b"".join(lines)).digest()[:8] == model_id
    return {name: array.astype(int if name.startswith(INTEGERS) else np.float32) for name, array in stored.items()}


def programs_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What FORMAT.md's programs define."""
    programs: dict[str, Any] = {"np": np, "tensors": tensors}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT[DOCUMENT.index("\n## 7. ") :], re.S):
        exec(block, programs)
    return programs


def codebooks_of(tensors: dict[str, np.ndarray]) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
    """Codewords of each table, and the frequencies of all, as in §7.8."""
    dimensions, sizes = tensors["codebooks.dimensions"], tensors["codebooks.sizes"]
    words = np.split(tensors["codebooks.codewords"], np.cumsum(sizes * dimensions)[:-1])
    tables = np.split(tensors["codebooks.frequencies"], np.cumsum(sizes + (sizes > 1))[:-1])
    shaped = {
        row + (row >= 64): each.reshape(-1, dimension)
        for row, (each, dimension) in enumerate(zip(words, dimensions, strict=True))
        if len(each)
    }
    tables = [table if len(table) else np.array([2**24]) for table in tables]
    return shaped, [*tables[:64], tensors["codebooks.escape"], *tables[64:]]


def decode(file: NicFile) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The latents [M, h, w], the filter and the pixels [3, H, W] in [0, 1] of a file of one cell, by FORMAT.md."""
    header = file.header
    tensors = tensors_of(header.model_id)
    programs = programs_of(tensors)
    height, width = (-(-side // 64) * 4 for side in (header.height, header.width))

    def batch(classes: list[int]) -> np.ndarray:
        return decoder.get(np.array(classes, np.uint8))

    def residuals(classes: list[int]) -> list[int]:
        decoded: list[int] = programs["residuals"](classes, codewords, batch)
        return decoded

    if header.mode == Mode.EXTREME:
        rows = [*tensors["codebooks.tables"], *tensors["codebooks.basis_tables"]]
        decoder = Decoder(Tables([row.astype(np.uint32) for row in rows]), file.cells[0])
        latents = programs["extreme_cell"](height, width, header.quality, batch)
        books = int(np.log2(len(tensors["codebooks.codewords"]) // 8 + 1))
        quality = 63 * min(header.quality * (books + 6) // 253, books - 1) / (books - 1)
    else:
        codewords, tables = codebooks_of(tensors)
        decoder = Decoder(Tables([table.astype(np.uint32) for table in tables]), file.cells[0])
        latents = programs["cell"](height, width, header.quality, residuals)
        limit, coefficients = programs["read_filter"](batch)
        quality = header.quality / 4
    decoder.finish()
    images, numbers = programs["synthesis"](latents / 64, quality), []
    if header.mode == Mode.FIDELITY:
        images = programs["filtered"](images, limit, coefficients)
        if coefficients:
            numbers = [limit] + [n for p in range(3) for n in coefficients.get(p, [0] * 2 * len(programs["INPUTS"][p]))]
    images = images[:, : header.height, : header.width].clip(0, 1)
    return latents, numbers, images if header.channels == 3 else images.mean(axis=0, keepdims=True)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_programs_decode_golden_files(path: Path) -> None:
    data = path.read_bytes()
    latents, numbers, images = decode(unpack(data))
    expected = json.loads(path.with_suffix(".json").read_text())
    for name, integers in {"latents": latents, "filters": np.array(numbers)}.items():
        assert hashlib.sha256(integers.astype("<i4").tobytes()).hexdigest() == expected[f"{name}_sha256"]
    pixels = codec.decompress(data).pixels.astype(int)
    assert np.abs(np.rint(255 * images.transpose(1, 2, 0)) - pixels).max() <= 1


def test_programs_filter_images() -> None:
    draw = np.random.default_rng(2)
    images = draw.random((3, 40, 50)) * 1.4 - 0.2
    chosen = [draw.integers(-40, 41, count) for count in COUNTS]
    made = AdaptiveFilter(tuple(chosen), 12)(torch.from_numpy(images[None]))[0].numpy()
    programs = programs_of({})
    assert np.abs(programs["filtered"](images, 12, dict(enumerate(chosen))) - made).max() < 1e-6
    assert np.abs(made - images.clip(0, 1)).max() > 0.1


def test_programs_make_frames_of_videos() -> None:
    """That is, what latents add to a prediction."""
    model, draw = store.load(store.VIDEO), np.random.default_rng(1)
    assert isinstance(model, store.Model)
    latents, prediction = draw.normal(size=(model.config.latent, 4, 8)), draw.random((3, 64, 128))
    inputs = (torch.from_numpy(array[None]).float() for array in (latents, prediction))
    with torch.no_grad():
        made = model.synthesis(next(inputs), torch.tensor([11.0]), next(inputs))[0].numpy()
    frames = programs_of(tensors_of(model.id))["synthesis"](latents, 11, prediction)
    assert np.abs(frames - made).max() < 1e-3 and np.abs(made - prediction).max() > 0.01
