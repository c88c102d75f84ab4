"""The scripts in benchmarks/ on two small photographs, and the committed results. Needs the bench group's packages."""

import csv
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

for package in ("bjontegaard", "lpips", "matplotlib", "pytorch_msssim"):
    if find_spec(package) is None:  # importing lpips needs nic.bench.shim first
        pytest.skip("install the bench group: pip install -e '.[bench]'", allow_module_level=True)

from nic.bench import curves, measure, suite  # noqa: E402
from nic.bench.metrics import Meter  # noqa: E402
from nic.bitstream.container import unpack  # noqa: E402
from nic.encoder import PictureEncoder  # noqa: E402
from nic.loaded import load_model  # noqa: E402
from nic.models import store  # noqa: E402
from nic.models.codec import class_sigma  # noqa: E402
from nic.models.prior import UNIT  # noqa: E402
from nic.pixels import Picture  # noqa: E402

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KODAK = BENCHMARKS / "results" / "kodak"


def run(script: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()[:176, 100:276]).save(tmp_path / f"{name}.png")
    with pytest.raises(SystemExit) as exit:
        run("overhead.py", tmp_path, "-o", tmp_path, monkeypatch=monkeypatch)
    assert not exit.value.code  # it fails by itself above its target
    rows = read_csv(tmp_path / "overhead.csv")
    assert len(rows) == 2 * 5
    assert all(0 < float(row["ideal_bytes"]) < float(row["payload_bytes"]) < float(row["file_bytes"]) for row in rows)


def test_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("crops.py", "-o", tmp_path / "new" / "folder" / "crops.png", monkeypatch=monkeypatch)
    with Image.open(tmp_path / "new" / "folder" / "crops.png") as image:
        assert image.width > 3 * 2 * 150


@pytest.mark.parametrize("script", ["lost.py", "masks.py", "overhead.py", "refine.py"])
def test_a_folder_without_pictures(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        run(script, tmp_path, "-o", tmp_path / "results", monkeypatch=monkeypatch)
    assert exit.value.code == 2 and f"no PNG files in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_quantizer_counts_the_bits_and_the_error_of_real_files() -> None:
    script = runpy.run_path(str(BENCHMARKS / "quantizer.py"))
    model = load_model("fidelity", "cpu")
    photo = skimage.data.chelsea()[:256, :384]
    encoder = PictureEncoder(Picture(photo), model, effort=1)
    for quality in (10, 45):
        row = script["measure"](model, model.prior, script["tables"](model.codebooks), [photo], quality, None)
        bits = 8 * len(unpack(encoder.encode(4 * quality)[0]).cells[0])
        assert row["bpp"] * photo[..., 0].size == pytest.approx(bits, rel=0.002, abs=64)
        rounding = 10 * np.log10(1 + 10 ** (row["psnr"] / 10) / 255**2 / 12)  # to 8 bits, which files do, too
        assert row["psnr"] - rounding == pytest.approx(encoder.psnr_at(4 * quality), abs=0.015)


def test_scalar_tables_code_rounded_samples_at_their_entropy() -> None:
    script = runpy.run_path(str(BENCHMARKS / "quantizer.py"))
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(30_000, 4, generator=generator) * class_sigma(torch.tensor(c)) * UNIT for c in range(64)]
    quantize = script["tables"](script["scalar_tables"](samples))
    for c in (12, 30):
        steps = torch.round(samples[c] / UNIT)
        counts = steps.unique(return_counts=True)[1]
        entropy = -(counts / counts.sum() * torch.log2(counts / counts.sum())).sum().item()
        with mock.patch("nic.models.vq.RATE_WEIGHT", script["PLAIN"]):
            decoded, bits = quantize(samples[c].flatten(), torch.full((120_000,), c))
        assert (decoded == steps.flatten() * UNIT).float().mean() > 0.99
        assert bits == pytest.approx(entropy * steps.numel(), rel=0.01)


def test_lost_indices_are_filled_from_the_nearest() -> None:
    script = runpy.run_path(str(BENCHMARKS / "lost.py"))
    latents = torch.arange(20.0).expand(1, 2, 6, 20)
    known = torch.ones(6, 20, dtype=torch.bool)
    known[:, 8:13] = False
    filled = script["nearest"](torch.where(known, latents, 0), known, latents)
    assert filled[0, 1, 3, 7:10].tolist() == [7, 7, 7] and filled[0, 1, 3, 11:14].tolist() == [13, 13, 13]
    assert torch.equal(filled[:, :, known], latents[:, :, known])
    for size, rate in ((1, 0.2), (8, 0.1)):
        kept = script["keep"](np.random.default_rng(0), (32, 48), rate, size)
        assert kept.shape == (32, 48) and 1 - kept.mean() == pytest.approx(rate, abs=0.03)
        assert (kept.reshape(32 // size, size, 48 // size, size).std(axis=(1, 3)) == 0).all()


def test_the_search_pays() -> None:
    script = runpy.run_path(str(BENCHMARKS / "effort.py"))
    pictures = [Picture(skimage.data.chelsea()[:192, :256])]
    curves = [[script["measure"](pictures, effort, level) for level in script["LEVELS"]] for effort in (1, 3)]
    assert script["bd_rate"](*curves) < -1


def test_masks_cost_and_save() -> None:
    script = runpy.run_path(str(BENCHMARKS / "masks.py"))
    photo = Image.fromarray(skimage.data.chelsea()[:192, :256])
    some, many = (script["measure"]([photo], "fidelity", rate, Meter(["psnr"])) for rate in (0.3, 0.9))
    assert many["bpp"] < some["bpp"] and many["psnr"] < some["psnr"] and many["pictures"] == 1


def test_frechet_distance_is_that_of_gaussians() -> None:
    frechet = runpy.run_path(str(BENCHMARKS / "refine.py"))["frechet"]
    features = np.random.default_rng(0).standard_normal((500, 6))
    assert frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet(features, features + 2) == pytest.approx(6 * 4)
    assert frechet(features, 3 * features + 1) == pytest.approx(
        6 + 4 * features.mean(0).sum() + 4 * np.square(features.mean(0)).sum() + 4 * features.var(0, ddof=1).sum()
    )


def test_committed_kodak_results_are_those_of_the_shipped_weights() -> None:
    model = store.find(store.DEFAULT)["id"]
    points = [row for row in read_csv(KODAK / "points.csv") if not row["target"]]
    ours = [row for row in points if row["codec"] == "nic"]
    assert {row["image"] for row in ours} == {f"kodim{n:02}.png" for n in range(1, 25)}
    assert all(model in row["version"] for row in ours)
    assert {row["codec"] for row in points} >= {"jpeg", "webp", "avif", "jxl", "vvc"}
    rows = [row for row in read_csv(KODAK / "curves.csv") if row["codec"] == "nic"]
    for row in rows:
        same = [point for point in ours if float(point["setting"]) == float(row["setting"])]
        assert float(row["psnr"]) == pytest.approx(sum(float(point["psnr"]) for point in same) / 24, abs=1e-5)


def test_committed_table_is_that_of_the_committed_curves() -> None:
    rows = measure.read_rows(KODAK / "curves.csv")
    metrics = ("psnr", "ms_ssim", "ms_ssim_db", "lpips", "dists", "ssimulacra2")
    results = suite.Results({}, [], rows, curves.bjontegaard_deltas(rows, metrics), curves.at_rates(rows, metrics))
    assert (KODAK / suite.TABLE).read_text().startswith(suite.markdown(results))
