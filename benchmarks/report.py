"""Result files: CSV whose every row says which model, day and versions it comes from."""

import csv
import hashlib
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features

import nic
from nic.models import store

__all__ = ["RESULTS", "Row", "provenance", "write_csv"]

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]  # column -> value


def provenance() -> Row:
    """The columns that tell the run.

    The model id names what decides symbols; the synthesis may improve under the same id, so the hash of the whole
    weight file stands among the versions.
    """
    model = store.find(store.DEFAULT)
    versions = {
        "nic": nic.__version__,
        "weights": hashlib.sha256(Path(model["path"]).read_bytes()).hexdigest()[:12],
        "torch": version("torch"),
        "Pillow": version("pillow"),
        "libjpeg-turbo": features.version("libjpeg_turbo"),
        "libwebp": features.version("webp"),
    }
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    return {"model_id": model["id"], "date": date.today().isoformat(), "versions": text}


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes rows of equal columns, with the folder that they need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
