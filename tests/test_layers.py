"""Imports are absolute and point one way: cli → nic → models | bitstream → nic.errors."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folder → the modules of nic (prefixes) and, where they are limited, the packages of others that it may import.
ALLOWED = {
    "bitstream": (("nic.bitstream", "nic.errors"), {"constriction", "numpy"}),
    "models": (("nic.models", "nic.errors"), {"numpy", "safetensors", "torch"}),
    "models/training": (("nic.models", "nic.errors"), {"PIL", "numpy", "safetensors", "torch"}),
    "nic": (("nic",), None),
    "nic/bench": (("nic",), None),
    "cli": (("nic",), None),
}
FILES = [file for folder in ALLOWED for file in sorted((ROOT / folder).glob("*.py"))]


def imports(file: Path) -> Iterator[str]:
    """The dotted name of every module that `file` imports, also within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "nic" else [str(node.module)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    folder = file.parent.relative_to(ROOT).as_posix()
    own, others = ALLOWED[folder]
    for module in imports(file):
        package = module.split(".")[0]
        if package == "nic":
            assert module.startswith(own), f"{folder} imports {module}"
            assert folder == "cli" or not module.startswith("nic.cli") or file.name == "__main__.py", module
        elif others is not None:
            assert package in others or package in sys.stdlib_module_names, f"{folder} imports {module}"


def test_every_file_has_a_layer() -> None:
    roots = {folder.split("/")[0] for folder in ALLOWED}
    assert set(FILES) == {file for root in roots for file in (ROOT / root).rglob("*.py")}


def test_only_training_unpickles() -> None:
    """Pickles run code: weights and files that a coder reads hold none."""
    for file in FILES:
        if file.parent.name not in ("training", "bench"):
            text = file.read_text()
            assert "pickle" not in set(imports(file)) and "torch.load(" not in text and "np.load(" not in text, file
