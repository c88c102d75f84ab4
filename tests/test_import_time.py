"""What must be quick loads nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nic
from nic.cli.main import cli

HEAVY = ("torch", "constriction", "skimage", "av")
HELP_SECONDS = 0.3  # of CPU time; 0.09 s here


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    probe = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


def run(*arguments: str) -> str:
    return f"from nic.cli.main import cli; cli({arguments!r}, standalone_mode=False)"


def test_import_nic_loads_neither_torch_nor_numpy() -> None:
    assert loaded_by("import nic").isdisjoint({*HEAVY, "numpy"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in sorted(cli.commands))])
def test_help_loads_neither_torch_nor_numpy(arguments: list[str]) -> None:
    assert loaded_by(run(*arguments)).isdisjoint({*HEAVY, "numpy"})


def test_info_and_models_load_no_torch(photo: object, tmp_path: Path) -> None:
    path = tmp_path / "photo.nic"
    path.write_bytes(nic.encode(photo, effort=1))
    assert "torch" not in loaded_by(run("info", str(path)))
    assert "torch" not in loaded_by(run("models"))
    assert "torch" not in loaded_by(f"import nic; nic.info(open({str(path)!r}, 'rb').read())")


def test_help_is_quick() -> None:
    def cpu_seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", run("--help")], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cpu_seconds() for _ in range(3)) < HELP_SECONDS
