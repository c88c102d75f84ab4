"""What a run of `nic bench` has found, as plots and the report take it."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Results", "Row"]

Row = dict[str, Any]  # column -> value


@dataclass
class Results:
    """Rows of the result files; the docstrings of the functions that make them say what is in which."""

    run: dict[str, str]  # what was run, on what, with which versions
    points: list[Row]  # nic.bench.measure.measure
    curves: list[Row]  # nic.bench.curves.means and published
    bd: list[Row]  # nic.bench.curves.bjontegaard_deltas
    table: list[Row]  # nic.bench.curves.at_rates
    speed: list[Row] = field(default_factory=list)  # nic.bench.speed.measure
    macs: list[Row] = field(default_factory=list)  # nic.bench.speed.macs
    skipped: dict[str, str] = field(default_factory=dict)  # codec or metric -> how to get it
    failed: dict[str, str] = field(default_factory=dict)  # picture -> why it was left out
    crops: list[Row] = field(default_factory=list)  # nic.bench.measure.crop_rows
