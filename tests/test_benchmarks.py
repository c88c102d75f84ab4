"""The benchmarks: their metrics, and each script on two small photographs. Needs the packages of the bench group."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RUN = {"model_id", "date", "versions"}

for package in ("bjontegaard", "matplotlib", "pytorch_msssim"):
    pytest.importorskip(package, reason="install the bench group: pip install -e '.[bench]'")
sys.path.append(str(BENCHMARKS))  # where its scripts find each other

import kodak  # noqa: E402
import metrics  # noqa: E402
import overhead  # noqa: E402
from coders import at_size, encode  # noqa: E402


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photographs as small as MS-SSIM takes."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()[:176, 100:276]).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def image(photos: Path) -> Image.Image:
    return Image.open(photos / "coffee.png").convert("RGB")


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    noise = np.random.default_rng(1).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row[column] for row in rows for column in RUN)
    return rows


def test_psnr_is_that_of_scikit_image(image: Image.Image) -> None:
    other = noisy(image, 9)
    expected = peak_signal_noise_ratio(np.asarray(image), np.asarray(other))
    assert metrics.psnr(image, other) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr(image, image) == float("inf")


def test_ms_ssim_is_1_for_equal_pictures_and_falls_with_noise(image: Image.Image) -> None:
    values = [metrics.ms_ssim(image, noisy(image, deviation)) for deviation in (0, 5, 15, 40)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < 0.95


def test_at_size_finds_the_nearest_file(image: Image.Image) -> None:
    quality, data = at_size(image, "JPEG", 3000)
    assert data == encode(image, "JPEG", quality)
    assert all(abs(len(data) - 3000) <= abs(len(encode(image, "JPEG", q)) - 3000) for q in range(1, 96))


def test_bd_rate_of_half_the_bits_is_minus_50() -> None:
    rates, psnrs = np.array([0.1, 0.2, 0.5, 1.0]), np.array([25.0, 28.0, 32.0, 36.0])
    assert kodak.bd_rate((rates, psnrs), (rates / 2, psnrs)) == pytest.approx(-50)
    assert kodak.psnr_at(rates, psnrs, 0.5) == pytest.approx(32)
    assert np.isnan(kodak.psnr_at(rates, psnrs, 1.1))


def test_kodak(photos: Path, tmp_path: Path) -> None:
    printed = run("kodak.py", photos, "-o", tmp_path)
    means = read_csv(tmp_path / "kodak.csv")
    images = read_csv(tmp_path / "kodak_images.csv")
    points = sum(map(len, kodak.QUALITIES.values()))
    assert (len(means), len(images)) == (points, 2 * points)
    assert list(means[0]) == ["codec", "setting", "bpp", "psnr", "ms_ssim", "images", "model_id", "date", "versions"]
    for codec in kodak.QUALITIES:
        rates, psnrs = kodak.curve(means, codec)
        assert (np.diff(rates) > 0).all()
        assert 10 < psnrs.min() < psnrs.max() < 60
    assert (tmp_path / "kodak.md").read_text() == kodak.summary(means) == printed
    assert {path.name for path in tmp_path.iterdir()} >= {"kodak.png", "kodak.svg"}


def test_overhead(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead.py", str(photos), "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        overhead.main()
    assert not exit.value.code  # it fails by itself above its target
    rows = read_csv(tmp_path / "overhead.csv")
    assert len(rows) == 2 * 5
    assert all(0 < float(row["ideal_bytes"]) < float(row["payload_bytes"]) < float(row["file_bytes"]) for row in rows)


def test_speed(photos: Path, tmp_path: Path) -> None:
    run("speed.py", photos / "coffee.png", "-o", tmp_path, "-n", 1)
    rows = read_csv(tmp_path / "speed.csv")
    steps = {(row["where"], row["codec"], row["step"]) for row in rows}
    assert steps >= set(itertools.product(("call", "process"), kodak.QUALITIES, ("encode", "decode")))
    assert len(steps) == len(rows) == 14
    assert all(float(row["wall_s"]) > 0 for row in rows if row["step"] in ("encode", "decode"))
    assert all(float(row["peak_mb"]) > 0 for row in rows if row["where"] == "process")


def test_committed_results_agree() -> None:
    means = read_csv(BENCHMARKS / "results" / "kodak.csv")
    assert (BENCHMARKS / "results" / "kodak.md").read_text() == kodak.summary(means)
