"""Speed, memory and operation counts of `nic bench`. Needs the packages of the bench group."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from nic.bench import speed
from nic.models import store


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speed") / "photo.png"
    Image.fromarray(skimage.data.astronaut()[:192, 100:292]).save(path)
    return path


def test_speed_of_a_codec_in_fresh_processes(photo: Path) -> None:
    ballast = np.ones(60_000_000)  # 480 MB here, which must not count there
    rows = speed.measure(photo, "jpeg", 20, 3)
    assert ballast.sum() > 0
    assert [row["step"] for row in rows] == ["load", "encode", "decode"]
    assert {tuple(row) for row in rows} == {("codec", "setting", "bytes", "step", "wall_s", "cpu_s", "peak_mb")}
    assert {(row["codec"], row["setting"]) for row in rows} == {("jpeg", 20)}
    assert 100 < rows[0]["bytes"] < 10_000
    load, encode, decode = (row["wall_s"] for row in rows)
    assert load > encode > 0 < decode
    assert rows[0]["cpu_s"] > rows[1]["cpu_s"] > 0
    own = speed.peak_mb()
    assert own > 480
    assert all(20 < row["peak_mb"] < own - 200 for row in rows)


def test_child_processes_count() -> None:
    work = "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); sum(range(10**7))"
    program = f"""import json, subprocess, sys
from nic.bench import speed
before = speed.clock(), speed.peak_mb()
subprocess.run([sys.executable, "-c", {work!r}])
print(json.dumps([before, (speed.clock(), speed.peak_mb())]))"""
    command = [*speed.LAUNCHER, sys.executable, "-P", "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    ((wall, cpu), peak), ((wall_after, cpu_after), peak_after) = json.loads(done.stdout)
    assert peak < 150 < 200 < peak_after < 300
    assert cpu_after - cpu > 0.05
    assert wall_after - wall > 0.05


def test_macs_are_those_counted_by_hand() -> None:
    config = store.load(store.DEFAULT).config
    rows = {row["part"]: row for row in speed.macs()}
    assert list(rows) == ["analysis", "hyper-analysis", "prior", "synthesis"]

    def block(width: int) -> int:  # four pointwise layers, one of them twice as wide, and a depthwise one of 3x3
        return 5 * width**2 + 9 * width

    trunk, deep, latent = config.trunk, config.deep, config.latent
    at_8 = 3 * 8 * 8 * trunk + config.trunk_blocks * block(trunk)
    at_16 = 4 * trunk * deep + config.deep_blocks * block(deep) + deep * latent
    at_16 += 3 * 16 * 16 * latent if config.linear else 0
    filtering = 12 * config.filter + config.trunk * config.filter + 12 * config.filter  # at 1/2 resolution
    filtering += 18 * config.filter**2 * config.filter_blocks
    blurring = 3 * 9  # a filter of 3x3 for each colour
    for part, more in (("analysis", 0), ("synthesis", blurring + filtering / 2**2)):
        kmacs = (at_8 / 8**2 + at_16 / 16**2 + more) / 1000
        assert rows[part]["kmac_per_pixel"] == pytest.approx(kmacs, abs=1e-3)

    width = config.prior
    context = 2 * width**2 + 9 * width
    step = (width + latent) * width + config.prior_blocks * context + width**2 + 2 * width * latent
    hyper = (config.hyper * width + context + 4 * width**2) / 64**2 + (context + 4 * width**2) / 32**2
    assert rows["prior"]["kmac_per_pixel"] == pytest.approx((hyper + 4 * step / 16**2) / 1000, abs=1e-3)


def test_parameters_of_synthesis_are_those_that_ship() -> None:
    model = store.load(store.DEFAULT)
    rows = {row["part"]: row["parameters"] for row in speed.macs()}
    assert rows["synthesis"] == sum(parameter.numel() for parameter in model.synthesis.parameters())
