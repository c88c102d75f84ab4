"""`nic bench --video`: every codec gives back its frames, and the table says what was measured."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import av
import click.testing
import numpy as np
import pytest
import skimage.data

from nic.cli.main import cli

for package in ("bjontegaard", "imageio_ffmpeg", "jinja2", "lpips", "matplotlib", "pytorch_msssim"):
    if find_spec(package) is None:  # importing lpips needs nic.bench.shim first
        pytest.skip(f"{package} is not installed", allow_module_level=True)

bench = import_module("nic.bench.video")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of odd size that move."""
    path = tmp_path_factory.mktemp("clip") / "pan.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 171, 163, "bgr0"
        for x in range(3):
            part = np.ascontiguousarray(skimage.data.chelsea()[50:213, 100 + x : 271 + x])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["nic", "x264"])
def test_codecs_give_back_their_frames(clip: Path, name: str) -> None:
    from nic.media import Source
    from nic.video import psnr

    source = Source.open(str(clip))
    frames = list(source.frames())
    codec = bench.CODECS[name](1)
    size, decoded, encoding, decoding = codec.run(source, frames, codec.settings[-1])
    assert size > 100 and encoding > 0 and decoding > 0
    assert all(psnr(a, b) > 27 for a, b in zip(frames, decoded, strict=True))


def test_metrics_that_are_missing_are_told(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "missing", lambda names, weights: {"lpips": "pip install lpips"})
    lines: list[str] = []
    points = bench.bench([clip], tmp_path, ["x264"], (0, 1), 1, None, lines.append)
    assert lines[0] == "lpips is left out: pip install lpips" and len(lines) == 1 + len(points)
    assert all(row["lpips"] is None and row["psnr"] > 20 and row["ms_ssim"] > 0.5 for row in points)


def test_command(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is not measured again; metrics without weights at hand are not asked for."""
    monkeypatch.setattr(bench, "METRIC_NAMES", ("psnr", "ms_ssim"))
    arguments = ["bench", "--video", str(clip), "-o", str(tmp_path), "--codecs", "x264", "--frames", "0:2"]
    first = click.testing.CliRunner().invoke(cli, arguments)
    assert first.exit_code == 0, first.output
    assert "| pan.mkv | x264 veryslow |" in first.stdout and first.stderr.count(" dB ") == 6
    again = click.testing.CliRunner().invoke(cli, arguments)
    assert again.stdout == first.stdout and again.stderr == ""
    points = tmp_path / "points.csv"
    points.write_text(points.read_text().replace("libx264 of", "an older libx264 of"))
    newer = click.testing.CliRunner().invoke(cli, arguments)
    assert newer.stdout == first.stdout and newer.stderr.count(" dB ") == 6
    assert len(points.read_text().splitlines()) == 1 + 6 and "older" not in points.read_text()
    wrong = click.testing.CliRunner().invoke(cli, [*arguments[:-4], "--codecs", "jpeg"])
    assert wrong.exit_code == 2 and "jpeg" in wrong.stderr
    (tmp_path / "file").touch()
    wrong = click.testing.CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "file")])
    assert (wrong.exit_code, wrong.stderr) == (6, f"nic: {tmp_path / 'file'} cannot be written: File exists\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video", "--quick", "--at", "0.5"], "--at, --quick cannot be used with --video"),
        (["--video", "--no-published", "-j", "1"], "--jobs, --published cannot be used with --video"),
        (["--frames", "0:2"], "--frames cannot be used without --video"),
        (["-e", "1"], "--effort cannot be used without --video"),
    ],
)
def test_options_that_would_be_ignored(clip: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = click.testing.CliRunner().invoke(cli, ["bench", str(clip), "-o", str(tmp_path / "report"), *options])
    assert (result.exit_code, result.stderr) == (2, f"nic: {message}\n")
    assert not (tmp_path / "report").exists()


def test_errors_name_the_video(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "METRIC_NAMES", ("psnr", "ms_ssim"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for path, frames, exit_code in ((broken, ":", 3), (clip, "9:", 2)):
        arguments = ["bench", "--video", str(path), "-o", str(tmp_path), "--codecs", "x264", "--frames", frames]
        result = click.testing.CliRunner().invoke(cli, arguments)
        assert (result.exit_code, result.stderr.startswith(f"nic: {path}: ")) == (exit_code, True)


def test_table_interpolates_over_the_logarithm_of_the_rate() -> None:
    def row(bpp: float, psnr: float) -> dict[str, object]:
        return {"video": "a", "label": "A", "bpp": bpp, "psnr": psnr}

    line = bench.table([row(0.2, 36.0), row(0.05, 32.0)]).splitlines()[2]
    assert line == "| a | A | – | – | 32.00 | 34.00 | 36.00 |"
