"""README.md: its examples run, its figures are the committed ones."""

import re
import shlex
from pathlib import Path

import av
import click.testing
import numpy as np
import pytest
from PIL import Image

from nic.cli.main import EPILOG, cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the pictures that the examples name."""
    (tmp_path / "holiday").mkdir()
    for name in ("photo.png", "holiday/beach.png"):
        Image.fromarray(photo).save(tmp_path / name)
    with av.open(tmp_path / "clip.mp4", "w") as clip:
        stream = clip.add_stream("mpeg4", 8, width=80, height=96, pix_fmt="yuv420p")
        for _ in range(4):
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(photo, format="rgb24")))
        clip.mux(stream.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shell_examples(folder: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("nic ")]
    assert lines
    for line in lines:
        result = click.testing.CliRunner().invoke(cli, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"


def test_python_example(folder: Path) -> None:
    (code,) = blocks("python")
    exec(code, {})


def test_exit_codes_are_those_of_the_command() -> None:
    documented = re.findall(r"^\| (\d+) \| (.*?) \|$", README, re.MULTILINE)
    assert [(code, text.replace("`", "")) for code, text in documented] == re.findall(r"^  (\d+) +(.*)$", EPILOG, re.M)


def test_kodak_table_is_the_committed_result() -> None:
    assert (ROOT / "benchmarks" / "results" / "kodak" / "table.md").read_text() in README
