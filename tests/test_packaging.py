"""What is installed: every package is declared, the sdist holds all, and its wheel nic/ and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import nic

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = SETTINGS["tool"]["setuptools"]["package-dir"]


def test_every_package_is_declared() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *file.relative_to(ROOT / folder).parent.parts]))
    assert found == set(SETTINGS["tool"]["setuptools"]["packages"])


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds an sdist or a wheel from the source tree, as pip does."""
    target.mkdir()
    code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, check=True)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive of this checkout."""
    folder = tmp_path_factory.mktemp("packages")
    # A copy, because setuptools would leave build/ in the checkout, and take stale files from it.
    unwanted = (".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*unwanted))
    with tarfile.open(build("sdist", folder / "source", folder / "sdist")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
        archive.extractall(folder)
    return folder / f"nic-{nic.__version__}"


def test_sdist_is_complete(sdist: Path) -> None:
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "bitstream/FORMAT.md"):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    for folder in {*FOLDERS.values(), "benchmarks", "docs", "examples", "tests"}:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix != ".pyc" and "results" not in file.parts:
                assert (sdist / file.relative_to(ROOT)).is_file(), file


def test_wheel_of_the_sdist_holds_nic_alone_and_works(sdist: Path, tmp_path: Path) -> None:
    wheel = build("wheel", sdist, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names} == {"nic", f"nic-{nic.__version__}.dist-info"}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".csv", ".jinja", ".py", ".safetensors", ".toml"):
                assert "/".join([*package.split("."), *file.relative_to(ROOT / folder).parts]) in names
    assert "nic/py.typed" in names
    code = "import nic; from nic.cli import main; from nic.models import store"
    code += "; print(nic.__file__, main.__file__, *store.available())"
    used = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert used.stdout.count(str(tmp_path / "installed")) >= 3  # two modules and a weight file
