"""Many files at once: in several processes, with a broken one among them, interrupted and resumed."""

import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from nic.cli import jobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve small photographs and a broken one."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for index in range(12):
        part = skimage.data.coffee()[20 * index :][:90, :120]
        Image.fromarray(part).save(tmp_path / "in" / ("sub" if index % 2 else ".") / f"{index:02}.png")
    (tmp_path / "in" / "05.png").write_bytes(b"no picture")
    return tmp_path


def nic(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "nic", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_jobs_and_resume(folder: Path) -> None:
    process = nic(folder, "compress", "in", "-o", "out", "-j", "2", "-e", "1")
    _, stderr = process.communicate()
    assert process.returncode == 3
    lines = stderr.splitlines()
    (problem,) = [line for line in lines if line.startswith("nic: ")]
    assert problem.startswith("nic: in/05.png: not a picture")
    assert re.fullmatch(r"12 of 13 files, 0\.1 Mpx in [\d.]+ s: [\d.]+ Mpx/s", lines[-1])
    made = sorted((folder / "out").rglob("*.nic"))
    assert len(made) == 12
    one = made[3]
    before = {path: path.stat().st_mtime_ns for path in made}
    one.unlink()
    (folder / "in" / "05.png").unlink()
    process = nic(folder, "compress", "in", "-o", "out", "-j", "2", "-e", "1", "--resume")
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert stderr.count("->") == 1 and one.exists()
    assert "11 of 12 outputs were there already" in stderr and re.search(r"^1 of 12 files,", stderr, re.MULTILINE)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path != one)
    process = nic(folder, "decompress", "out", "-o", "back", "-j", "2", "--quiet")
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    for path in sorted((folder / "back").rglob("*.png")):
        original = np.asarray(Image.open(folder / "in" / path.relative_to(folder / "back")), float)
        assert np.square(np.asarray(Image.open(path), float) - original).mean() < 400


def test_decompressing_pictures_and_a_video(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden"
    (tmp_path / "in").mkdir()
    shutil.copy(next(golden.glob("cat-q20~*.nic")), tmp_path / "in" / "photo.nic")
    shutil.copy(next((golden / "video").glob("cat~*.nic")), tmp_path / "in" / "clip.nic")
    for options, code in (((), 0), ((), 6), (("--resume",), 0), (("--frame", "0"), 6)):
        process = nic(tmp_path, "decompress", "in", "-o", "out", "--quiet", *options)
        _, stderr = process.communicate()
        assert process.returncode == code, stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.mkv", "clip.png", "photo.png"]
    process = nic(tmp_path, "decompress", "in", "-o", "jpg", "--quiet", "--format", "jpg")
    process.communicate()
    assert process.returncode == 0
    assert sorted(path.name for path in (tmp_path / "jpg").iterdir()) == ["clip.mkv", "photo.jpg"]


def test_interrupt_leaves_whole_files(folder: Path) -> None:
    process = nic(folder, "compress", "in", "-o", "out", "-j", "2", "-e", "9")
    for _ in range(600):
        if list((folder / "out").rglob("*.nic")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    made = list((folder / "out").rglob("*"))
    assert [path for path in made if path.is_file() and path.suffix != ".nic"] == []
    assert 1 <= sum(path.suffix == ".nic" for path in made) < 12
    for path in (folder / "out").rglob("*.nic"):
        process = nic(folder, "verify", str(path))
        process.communicate()
        assert process.returncode == 0


def test_a_killed_process_is_told_and_the_rest_goes_on() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    tasks = [(str(index), partial(exec, kill if index in (1, 2) else "pass")) for index in range(6)]
    results = dict(jobs.outcomes(tasks, 2))
    assert sorted(results) == [source for source, _ in tasks]
    assert [source for source in sorted(results) if "killed" in str(results[source])] == ["1", "2"]


def test_what_is_not_wanted_any_more_stops_at_once(tmp_path: Path) -> None:
    """And what was to come next does not begin."""
    tasks = [("quick", partial(exec, "pass"))]
    for index in range(5):
        code = f"import time; open({str(tmp_path / str(index))!r}, 'w'); time.sleep(100)"
        tasks.append((f"long {index}", partial(exec, code)))
    start = time.monotonic()
    running = jobs.outcomes(tasks, 2)
    assert next(running)[0] == "quick"
    while not list(tmp_path.iterdir()):
        time.sleep(0.1)
    running.close()
    assert time.monotonic() - start < 60 and not active_children()
    assert len(list(tmp_path.iterdir())) <= 2
