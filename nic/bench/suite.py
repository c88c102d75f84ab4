"""A whole run of `nic bench`: what to measure, in which order, and the files that tell of it."""

import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

import nic
from nic.bench import codecs, curves, measure, metrics, plots, report, speed
from nic.bench.results import Results, Row
from nic.errors import BadInput, BadOutput, UsageError
from nic.models import store

__all__ = ["Options", "TABLE", "markdown", "overlaps", "run"]

QUICK_IMAGES = 3
QUICK_METRICS = ("psnr", "ms_ssim", "ms_ssim_db", "lpips")
SPEED_RATE = 0.5  # bpp at which speed is measured
TABLE = "table.md"


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None leaves the choice to the suite."""

    codecs: Sequence[str]
    metrics: Sequence[str] | None
    weights: Path | None
    targets: tuple[float, ...]
    jobs: int
    runs: int
    quick: bool
    published: bool | None


def run(paths: Sequence[Path], folder: Path, options: Options, say: Callable[[str], None]) -> Results:
    """Measures what ``folder`` does not hold yet, and writes every result file into it.

    ``say`` gets one line for everything that is left out. Raises BadInput where nothing is left, or could be measured,
    UsageError for unknown codecs or metrics, BadOutput where the folder cannot be written.
    """
    labels, skipped = available_codecs(options.codecs)
    names = tuple(options.metrics or (QUICK_METRICS if options.quick else metrics.METRICS))
    if unknown := set(names) - set(metrics.METRICS):
        raise UsageError(f"no metric {', '.join(sorted(unknown))}: there are {', '.join(metrics.METRICS)}")
    lacking = metrics.missing(names, options.weights)
    names = tuple(name for name in names if name not in lacking)
    for what, why in (skipped | lacking).items():
        say(f"{what} is left out: {why}")
    if not names:
        raise BadInput("nothing to measure: no metric is available")
    sources, failed = readable(paths[:QUICK_IMAGES] if options.quick else paths, options.quick, names, say)
    if not labels or not sources:
        raise BadInput(
            "nothing to measure: no codec is available" if sources else "nothing to measure: no usable picture"
        )
    try:
        (folder / "crops").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutput(f"{folder} cannot be written: {error.strerror}") from error
    plan = measure.Plan(names, options.targets, options.weights, folder, options.quick)
    points = measure_points(sources, list(labels), plan, options.jobs, failed, say)
    if not points:
        raise BadInput("nothing is measured: every codec failed on every picture")
    rows = curves.means(points, labels)
    if options.published or (options.published is None and is_kodak(sources)):
        rows += curves.published()
    results = Results(
        run=provenance(sources, options),
        points=points,
        curves=rows,
        bd=curves.bjontegaard_deltas(rows, names),
        table=curves.at_rates(rows, names),
        speed=speeds(sources[0], points, labels, folder, min(options.runs, 1) if options.quick else options.runs),
        macs=speed.macs(),
        skipped=skipped | lacking,
        failed=failed,
        crops=measure.crop_rows(sources, points, labels, plan),
    )
    write(results, folder)
    return results


def available_codecs(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Codec -> label of those that can run, and codec -> how to get it of the others."""
    labels, skipped = {}, {}
    for name in dict.fromkeys(names):
        try:
            labels[name] = codecs.load(name).label
        except codecs.Missing as reason:
            skipped[name] = str(reason)
    return labels, skipped


def readable(
    paths: Sequence[Path], quick: bool, names: Sequence[str], say: Callable[[str], None]
) -> tuple[list[measure.Source], dict[str, str]]:
    """The pictures that the metrics ``names`` can measure, each only once, and name -> why not of the others."""
    sources: dict[str, measure.Source] = {}
    failed = {}
    count = Counter(path.name for path in paths)
    for path in paths:
        name = path.name if count[path.name] == 1 else str(path)
        try:
            source = measure.read_source(path, name, quick, names)
            sources.setdefault(source.hash, source)
        except BadInput as error:
            failed[name] = str(error)
            say(f"{path} is left out: {error}")
    return list(sources.values()), failed


def measure_points(
    sources: list[measure.Source],
    names: list[str],
    plan: measure.Plan,
    jobs: int,
    failed: dict[str, str],
    say: Callable[[str], None],
) -> list[Row]:
    """All points; points.csv has each of them as soon as it is there. What fails is added to ``failed``."""
    path = plan.folder / "points.csv"
    known = measure.read_points(path)
    order = {source.hash: place for place, source in enumerate(sources)}
    points: list[Row] = []
    measured = measure.measure(sources, names, plan, jobs, known)
    for result in tqdm(measured, total=len(sources) * len(names), unit="job", disable=None, smoothing=0.05):
        if result.problem:
            what = f"{result.source.name} with {result.codec}"
            failed[what] = result.problem
            say(f"{what} is left out: {result.problem}")
        points += result.rows
        points.sort(
            key=lambda row: (order[row["image_hash"]], names.index(row["codec"]), row["target"] or 0, row["bpp"])
        )
        kept = {key(row) for row in points}
        measure.write_csv(path, points + [row for row in known if key(row) not in kept], measure.COLUMNS)
    return points


def key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("image_hash", "codec", "setting", "target"))


def is_kodak(sources: list[measure.Source]) -> bool:
    return all(source.path.stem.startswith("kodim") and source.width * source.height == 768 * 512 for source in sources)


def speeds(photo: measure.Source, rows: list[Row], labels: dict[str, str], folder: Path, runs: int) -> list[Row]:
    """Time and memory of each codec on one picture at the point of ``rows`` nearest to SPEED_RATE, one codec after the
    other, kept from earlier runs on the same machine; without ``runs``, of none."""
    if not runs:
        return []
    path = folder / "speed.csv"
    known = measure.read_rows(path)
    here = machine()
    result = []
    for name in tqdm(labels, unit="codec", desc="speed", disable=None):
        own = [row for row in rows if (row["codec"], row["image_hash"], row["target"]) == (name, photo.hash, None)]
        if not own:
            continue
        nearest = min(own, key=lambda row: abs(row["bpp"] - SPEED_RATE))
        head = {"picture": photo.path.name, "version": nearest["version"], "runs": runs, "machine": here}
        wanted = head | {"codec": name, "setting": nearest["setting"]}
        same = [row for row in known if all(str(row[x]) == str(y) for x, y in wanted.items())]
        measured = same or [head | row for row in speed.measure(photo.path, name, nearest["setting"], runs)]
        result += [row | {"label": labels[name]} for row in measured]
    measure.write_csv(path, result)
    return result


def provenance(sources: list[measure.Source], options: Options) -> dict[str, str]:
    """What was run, on what, with which versions."""
    modes = {"nic": store.FIDELITY, "nic-extreme": store.EXTREME}
    return {
        "date": date.today().isoformat(),
        "nic": nic.__version__,
        "commit": commit(),
        **{mode: store.find(mode)["id"] for codec, mode in modes.items() if codec in options.codecs},
        "pictures": f"{len(sources)} pictures" + f" cut to {measure.QUICK_SIDE} pixels a side" * options.quick,
        "machine": machine(),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "numpy", "pillow", "bjontegaard", "pytorch-msssim")},
    }


def installed(package: str) -> str:
    """Its version, or "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The checkout's commit, with "+" where files differ from it; "" outside a checkout."""
    git = shutil.which("git")
    if not git:
        return ""
    where = {"cwd": Path(nic.__file__).parent, "capture_output": True, "text": True}
    head = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], **where)
    dirty = subprocess.run([git, "status", "--porcelain"], **where)
    return head.stdout.strip() + "+" * bool(dirty.stdout.strip()) if head.returncode == 0 else ""


def machine() -> str:
    """Processor, cores that this process may use, and system."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {name}, {platform.system()} {platform.machine()}"


def write(results: Results, folder: Path) -> None:
    """Every result file but points.csv and speed.csv, which are there already."""
    measure.write_csv(folder / "curves.csv", results.curves)
    for file, rows in (("bd.csv", results.bd), ("rates.csv", results.table), ("macs.csv", results.macs)):
        if rows:
            measure.write_csv(folder / file, rows)
    everything = asdict(results)
    everything["crops"] = [row | {"file": row["file"].name} for row in results.crops]
    (folder / "results.json").write_text(json.dumps(everything, indent=1, default=str))
    plots.overview(results.curves, folder)
    report.write(results, folder)
    (folder / TABLE).write_text(markdown(results) + caption(results))


def markdown(results: Results) -> str:
    """PSNR of each codec at equal rates, and nic's BD-rates against it: the table of README.md."""
    shown = {row["metric"] for row in results.table}
    compared = [name for name in ("psnr", "ms_ssim_db", "lpips", "dists", "ssimulacra2") if name in shown]
    rates = [str(rate) for rate in curves.RATES]
    sound = [row for row in results.bd if row["codec"] == "nic" and not row["note"]]  # of curves that overlap widely
    bd = {(row["anchor"], row["metric"]): row["bd_rate"] for row in sound}
    titles = [f"{rate} bpp" for rate in rates] + [f"nic, {metrics.METRICS[name].label}" for name in compared]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in results.table:
        if row["metric"] == "psnr":
            cells = [f"{row[rate]:.2f}" if row[rate] is not None else "–" for rate in rates]
            deltas = [bd.get((row["codec"], name)) for name in compared]
            cells += [f"{delta:+.1f} %" if delta is not None else "–" for delta in deltas]
            name = f"*{row['label']}*" if row["kind"] == "published" else row["label"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def overlaps(results: Results) -> list[str]:
    """One line for each of nic's Bjoentegaard deltas: over which range it is taken, or why there is none."""
    labels = {row["codec"]: row["label"] for row in results.curves}
    lines = []
    for row in results.bd:
        if row["codec"] == "nic":
            metric, words = metrics.METRICS[row["metric"]], [row["note"]] if row["note"] else []
            if row["low"] is not None:
                span = f"over {row['low']:.4g} to {row['high']:.4g} {metric.unit}".rstrip()
                words.insert(0, f"{row['bd_rate']:+.1f} % {span}")
            lines.append(f"nic against {labels[row['anchor']]}, {metric.label}: {', '.join(words)}")
    return lines


def caption(results: Results) -> str:
    """What the table shows, of which models, when and where."""
    run, dates = results.run, sorted({str(row["date"]) for row in results.points})
    models = [f"`{run[mode]}` ({mode})" for mode in (store.FIDELITY, store.EXTREME) if run.get(mode)]
    return (
        f"\nRGB PSNR in dB at equal rates, mean of {run['pictures']}; then BD-rates of nic against each codec: how many"
        " per cent more bits nic takes at an equal metric, less is better; none where the curves overlap too little."
        " *Published* figures are in italics.\n"
        f"Model {' and '.join(models)}, nic {run['nic']}, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))},"
        f" {run['machine']}.\n"
    )
