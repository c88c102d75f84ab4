"""Videos of released models decode for ever: the same symbols to the last bit, the same frames within rounding.

``python tests/test_golden_video.py FOLDER`` adds a file for a new model (FOLDER is for a temporary file); nothing
changes those that are there.
"""

import hashlib
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
import torch

from nic import video
from nic.frames import read_group
from nic.loaded import load_model
from nic.media import Source
from nic.models import store
from nic.models.prior import UNIT

GOLDEN = Path(__file__).parent / "golden" / "video"
FRAMES, WIDTH, HEIGHT = 10, 141, 99


def source() -> np.ndarray:
    """A camera that pans over a photograph and comes nearer: [10, 99, 141, 3] uint8."""
    photo = torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1)[None].float()
    frames = []
    for index in range(FRAMES):
        height, width = 200 - 4 * index, 284 - 6 * index
        part = photo[:, :, 20 + 3 * index :, 60 + 5 * index :][:, :, :height, :width]
        frames.append(torch.nn.functional.interpolate(part, (HEIGHT, WIDTH), mode="bilinear", antialias=True)[0])
    return torch.stack(frames).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def symbols_digest(data: bytes) -> str:
    """Of motion, latents in 1/64 steps and filters of all frames, as int32, and of the network's differences."""
    file = video.read(data)
    model = load_model(file.header.model_id, "cpu")
    digest = hashlib.sha256(file.weights or b"")
    for _, group in sorted(file.groups.items()):
        for _, _, field, latents, adaptive in read_group(model, file, group):
            digest.update(field.numpy().astype("<i4").tobytes())
            digest.update(b"" if latents is None else (latents * UNIT).numpy().astype("<i4").tobytes())
            if adaptive:
                numbers = [adaptive.limit, *np.concatenate(adaptive.coefficients)]
                digest.update(np.array(numbers, "<i4").tobytes())
    return digest.hexdigest()


def psnr(data: bytes) -> float:
    decoded = [pixels for _, pixels in video.decode_frames(video.read(data))]
    return float(np.mean([video.psnr(a, b) for a, b in zip(source(), decoded, strict=True)]))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.nic")), ids=lambda path: path.stem)
def test_golden_video_decodes(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    assert symbols_digest(data) == expected["symbols_sha256"]
    assert psnr(data) == pytest.approx(expected["psnr"], abs=0.1)


def test_the_model_has_a_golden_file() -> None:
    assert store.find(store.VIDEO)["id"] in {path.stem.split("~")[1] for path in GOLDEN.glob("*.nic")}


def bless(folder: Path) -> None:
    path = GOLDEN / f"cat~{store.find(store.VIDEO)['id']}.nic"
    clip = folder / "cat.mkv"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for frame in source():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    GOLDEN.mkdir(exist_ok=True)
    video.compress(Source.open(str(clip)), str(path), quality=40, effort=6)
    data = path.read_bytes()
    expected = {"symbols_sha256": symbols_digest(data), "psnr": round(psnr(data), 3)}
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")
    print(path.name, len(data), expected)


if __name__ == "__main__":
    bless(Path(sys.argv[1]))
