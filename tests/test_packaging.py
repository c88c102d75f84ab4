"""What is installed: every package is declared, and a wheel holds nic/ and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

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


def test_wheel_holds_nic_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools would leave build/ in the checkout, and take stale files from it
    source.mkdir()
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"nic", f"nic-{nic.__version__}.dist-info"}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".csv", ".jinja", ".py", ".safetensors", ".toml"):
                assert "/".join([*package.split("."), *file.relative_to(ROOT / folder).parts]) in names
    assert "nic/py.typed" in names
