"""`nic bench` as a command: its files, resuming, and what it does with bad pictures and missing codecs."""

import csv
import json
import re
from importlib.util import find_spec
from pathlib import Path

import click.testing
import numpy as np
import pytest
import skimage.data
from PIL import Image

for package in ("bjontegaard", "imageio_ffmpeg", "jinja2", "lpips", "matplotlib", "pytorch_msssim"):
    if find_spec(package) is None:  # importing lpips needs nic.bench.shim first
        pytest.skip("install the bench group: pip install -e '.[bench]'", allow_module_level=True)

from nic.bench import codecs, measure, metrics, suite  # noqa: E402
from nic.cli.main import cli  # noqa: E402
from nic.errors import BadInput  # noqa: E402

FILES = {"points.csv", "curves.csv", "bd.csv", "rates.csv", "macs.csv", "results.json", "table.md", "report.html"}
FILES |= {"rd.png", "rd.svg", "rd_psnr.png", "rd_psnr.svg", "rd_ms_ssim.png", "crops"}
OPTIONS = ["--metrics", "psnr,ms_ssim", "--runs", "0", "-j", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photographs as small as MS-SSIM takes, the same one again, and two that cannot be measured."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()[:176, 100:276]).save(folder / f"{name}.png")
    (folder / "again.png").write_bytes((folder / "coffee.png").read_bytes())
    (folder / "broken.png").write_bytes((folder / "coffee.png").read_bytes()[:5000])
    Image.fromarray(skimage.data.coffee()[:50, :50]).save(folder / "small.jpg")
    return folder


def bench(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def report(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[click.testing.Result, Path]:
    folder = tmp_path_factory.mktemp("report")
    return bench(photos, "--codecs", "nic,jpeg,mbt2018-mean", *OPTIONS, "-o", folder), folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files(report: tuple[click.testing.Result, Path]) -> None:
    result, folder = report
    assert {path.name for path in folder.iterdir()} >= FILES
    assert (folder / "table.md").read_text() in result.output
    assert re.search(r"nic against JPEG, PSNR: [+-][\d.]+ % over [\d.]+ to [\d.]+ dB", result.output)
    points = read(folder / "points.csv")
    per_codec = {name: len(codecs.load(name).settings) for name in ("nic", "jpeg")}
    assert len(points) == 2 * (sum(per_codec.values()) + len(per_codec))  # pictures times settings and one target
    for point in points:
        assert float(point["bpp"]) == pytest.approx(8 * int(point["bytes"]) / 176**2, abs=1e-6)
        assert 10 < float(point["psnr"]) < 60
        assert 0 < float(point["ms_ssim"]) < 1
        assert bool(point["chunks"]) == (point["codec"] == "nic")
    whole = json.loads((folder / "results.json").read_text())
    assert len(whole["curves"]) == sum(per_codec.values())
    assert whole["run"]["fidelity"] in whole["curves"][0]["source"]


def test_what_cannot_be_measured_is_told_and_decides_the_exit_code(report: tuple[click.testing.Result, Path]) -> None:
    result, folder = report
    assert result.exit_code == 3
    for name in ("broken.png", "small.jpg", "mbt2018-mean"):
        (line,) = [line for line in result.stderr.splitlines() if name in line]
        assert line.startswith("nic: ")
    whole = json.loads((folder / "results.json").read_text())
    assert set(whole["failed"]) == {"broken.png", "small.jpg"}
    assert set(whole["skipped"]) == {"mbt2018-mean"}


def test_bytes_by_chunk_add_up_to_the_file(report: tuple[click.testing.Result, Path]) -> None:
    for point in read(report[1] / "points.csv"):
        if point["codec"] == "nic":
            sizes = [int(size) for size in point["chunks"].split()[1::2]]
            assert sum(sizes) < int(point["bytes"]) < sum(sizes) + 100


def test_equal_rate_files_are_the_nearest(report: tuple[click.testing.Result, Path], photos: Path) -> None:
    image = Image.open(photos / "coffee.png").convert("RGB")
    codec = codecs.load("jpeg")
    (point,) = [
        p for p in read(report[1] / "points.csv") if p["target"] and (p["codec"], p["image"]) == ("jpeg", "again.png")
    ]
    wanted = 0.25 * 176**2 / 8
    misses = [abs(len(codec.encode(image, setting)) - wanted) for setting in codec.grid]
    assert abs(int(point["bytes"]) - wanted) == min(misses)


def test_a_second_run_measures_only_what_is_new(
    report: tuple[click.testing.Result, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = report
    before = read(folder / "points.csv")
    known = measure.read_points(folder / "points.csv")
    source = measure.read_source(photos / "coffee.png", "coffee.png", quick=False, metrics=["psnr"])
    plan = measure.Plan(("psnr", "ms_ssim"), (0.25,), None, folder, False)
    mine = [row for row in known if (row["image"], row["codec"]) == ("again.png", "nic")]
    monkeypatch.setattr(measure, "open_rgb", lambda *_: pytest.fail("measured again"))
    assert measure.measure_one(source, "nic", plan, mine) == sorted(
        mine, key=lambda row: (row["target"] or 0, row["bpp"])
    )
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure.measure_one(source, "nic", plan, mine[1:])
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure.measure_one(source, "nic", plan, [row | {"psnr": None} for row in mine])
    assert read(folder / "points.csv") == before


def test_quick_cuts_pictures_and_settings() -> None:
    plan = measure.Plan(("psnr",), (), None, Path(), quick=True)
    settings = plan.settings(codecs.load("jpeg"))
    assert len(settings) == 4
    assert (settings[0], settings[-1]) == (codecs.load("jpeg").settings[0], codecs.load("jpeg").settings[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codecs", "nic,gif"], "gif"),
        (["--metrics", "psnr,vmaf"], "vmaf"),
    ],
)
def test_unknown_names(photos: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = bench(photos, "-o", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_to_measure(tmp_path: Path) -> None:
    result = bench(tmp_path, "-o", tmp_path / "report")
    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "small.png")
    result = bench(tmp_path, "--codecs", "jpeg", *OPTIONS, "-o", tmp_path / "report")
    assert result.exit_code == 3
    assert "no usable picture" in result.stderr


def test_the_metrics_decide_which_pictures_are_too_small(photos: Path) -> None:
    assert measure.read_source(photos / "small.jpg", "small.jpg", False, ("psnr", "lpips")).width == 50
    with pytest.raises(BadInput, match="50x50 is too small: MS-SSIM needs 161"):
        measure.read_source(photos / "small.jpg", "small.jpg", False, ("psnr", "ms_ssim"))


def test_no_metric_at_all(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "missing", lambda names, weights: dict.fromkeys(names, "pip install it"))
    result = bench(photos, "--codecs", "jpeg", *OPTIONS, "-o", tmp_path / "report")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (3, "nic: nothing to measure: no metric is available")


def test_metrics_that_are_missing_are_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metrics, "missing", lambda names, weights: {"lpips": "pip install lpips"} if "lpips" in names else {}
    )
    options = suite.Options(("jpeg",), ("psnr", "lpips"), None, (), 1, 0, True, False)
    lines: list[str] = []
    results = suite.run([photos / "coffee.png"], tmp_path, options, lines.append)
    assert lines == ["lpips is left out: pip install lpips"]
    assert results.skipped == {"lpips": "pip install lpips"}
    assert all(row["psnr"] and row["lpips"] is None for row in results.points)


def test_every_codec_fails(photos: Path, tmp_path: Path) -> None:
    """On a picture that is gone when it is measured."""
    source = photos / "astronaut.png"
    (tmp_path / "gone.png").write_bytes(source.read_bytes())
    options = suite.Options(("jpeg",), ("psnr",), None, (), 1, 0, False, False)
    with pytest.MonkeyPatch.context() as patch:
        measure_points = suite.measure_points
        patch.setattr(suite, "measure_points", lambda *a: ((tmp_path / "gone.png").unlink(), measure_points(*a))[1])
        with pytest.raises(BadInput, match="every codec failed"):
            suite.run([tmp_path / "gone.png"], tmp_path / "report", options, lambda line: None)


def test_versions_of_packages_that_are_missing() -> None:
    assert suite.installed("no-such-package") == "" and suite.installed("numpy")
