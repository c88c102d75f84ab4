"""Curves: means, values at equal rates, and Bjoentegaard deltas against published ones."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("bjontegaard", reason="install the bench group: pip install -e '.[bench]'")

from nic.bench import curves  # noqa: E402

Row = dict[str, Any]


def point(image: str, setting: float, bpp: float, psnr: float, target: float | None = None) -> Row:
    metrics = dict.fromkeys(curves.METRICS) | {"psnr": psnr, "ms_ssim": 0.9}
    head = {"image_hash": image, "codec": "jpeg", "setting": setting, "target": target, "version": "jpeg 1"}
    return head | {"bpp": bpp} | metrics


def measured(codec: str, rates: list[float], values: list[float], metric: str = "psnr") -> list[Row]:
    blank = dict.fromkeys(curves.METRICS)
    head = {"codec": codec, "label": codec, "kind": "measured"}
    return [head | blank | {"bpp": rate, metric: value} for rate, value in zip(rates, values, strict=True)]


def test_means_are_over_pictures_that_have_all_settings() -> None:
    points = [point("a", 1, 0.2, 30), point("a", 2, 0.4, 34), point("b", 1, 0.4, 26), point("b", 2, 0.8, 30)]
    points += [point("c", 1, 9, 99), point("a", 2, 0.5, 35, target=0.5)]  # c lacks setting 2; targets are no curve
    first, second = curves.means(points, {"jpeg": "JPEG"})
    assert (first["setting"], first["bpp"], first["psnr"], first["images"]) == (1, 0.3, 28, 2)
    assert (second["setting"], second["bpp"], second["psnr"], second["images"]) == (2, 0.6, 32, 2)
    assert first["ms_ssim_db"] == pytest.approx(10, abs=1e-3)  # of the mean
    assert first["lpips"] is None


def test_curve_keeps_what_improves() -> None:
    rows = measured("x", [0.4, 0.1, 0.2, 0.3], [0.1, 0.4, 0.2, 0.3], "lpips")
    rates, values = curves.curve(rows, "x", "lpips")
    assert rates.tolist() == [0.1, 0.2, 0.4]
    assert values.tolist() == [0.4, 0.2, 0.1]


def test_values_at_equal_rates() -> None:
    rows = measured("x", [0.125, 0.25, 0.5, 1.0], [20, 22, 24, 26])
    (row,) = curves.at_rates(rows, ["psnr", "lpips"], (0.1, 0.25, 0.5 * 2**0.5, 1.0))
    assert row["0.1"] is None
    assert row["0.25"] == 22
    assert row[str(0.5 * 2**0.5)] == pytest.approx(25)  # straight in log rate
    assert row["1.0"] == 26


def test_half_the_bits_is_minus_50_per_cent() -> None:
    rates, psnrs = [0.1, 0.2, 0.4, 0.8], [25.0, 28.0, 31.0, 34.0]
    rows = measured("a", rates, psnrs) + measured("b", [rate / 2 for rate in rates], psnrs)
    against = {(row["codec"], row["anchor"]): row for row in curves.bjontegaard_deltas(rows, ["psnr"])}
    assert against["b", "a"]["bd_rate"] == pytest.approx(-50, abs=1e-3)
    assert against["a", "b"]["bd_rate"] == pytest.approx(100, abs=1e-2)
    assert against["b", "a"]["bd_metric"] == pytest.approx(3, abs=1e-3)  # doubling the rate gains 3 dB
    assert (against["b", "a"]["low"], against["b", "a"]["high"], against["b", "a"]["note"]) == (25, 34, "")


def test_where_less_is_better() -> None:
    rates, lpips = [0.1, 0.2, 0.4, 0.8], [0.4, 0.3, 0.2, 0.1]
    rows = measured("a", rates, lpips, "lpips") + measured("b", [rate / 2 for rate in rates], lpips, "lpips")
    row = next(row for row in curves.bjontegaard_deltas(rows, ["lpips"]) if row["codec"] == "b")
    assert row["bd_rate"] == pytest.approx(-50, abs=1e-3)
    assert row["bd_metric"] == pytest.approx(-0.1, abs=1e-3)


def test_no_overlap_is_refused_and_little_is_noted() -> None:
    rates = [0.1, 0.2, 0.4, 0.8]
    rows = measured("a", rates, [20, 21, 22, 23]) + measured("b", rates, [30, 31, 32, 33])
    for row in curves.bjontegaard_deltas(rows, ["psnr"]):
        assert row["bd_rate"] is row["bd_metric"] is row["low"] is None
        assert "no overlap" in row["note"]
    rows = measured("a", rates, [20, 21, 22, 23]) + measured("b", rates, [22, 25, 28, 31])
    assert all("9%" in row["note"] and row["bd_rate"] for row in curves.bjontegaard_deltas(rows, ["psnr"]))


@pytest.mark.parametrize(("codec", "paper"), [("HPCM-Large", -19.2), ("MLIC++", -13.4), ("ELIC", -7.0)])
def test_published_bd_rates_against_vtm(codec: str, paper: float) -> None:
    """Their papers' figures on Kodak, from their published curves and CompressAI's of VTM: within two per cent."""
    rows = curves.published()
    anchor, test = (curves.curve(rows, name, "psnr") for name in ("VTM 4:4:4", codec))
    assert curves.delta(anchor, test, True)["bd_rate"] == pytest.approx(paper, abs=2)


def test_agrees_with_the_polynomials_of_vceg_m33() -> None:
    """Third-order polynomials through four points, integrated, as Bjoentegaard defined it."""
    anchor = np.array([85.95, 157.11, 309.58, 686.76]), np.array([31.42, 34.24, 37.18, 40.28])
    test = np.array([112.75, 204.93, 407.8, 893.34]), np.array([31.24, 34.17, 37.21, 40.39])
    result = curves.delta(anchor, test, True)
    rate = area(test[1], np.log(test[0]), 31.42, 40.28) - area(anchor[1], np.log(anchor[0]), 31.42, 40.28)
    assert result["bd_rate"] == pytest.approx(100 * np.expm1(rate / (40.28 - 31.42)), abs=0.1)
    ends = np.log(112.75), np.log(686.76)
    gain = area(np.log(test[0]), test[1], *ends) - area(np.log(anchor[0]), anchor[1], *ends)
    assert result["bd_metric"] == pytest.approx(gain / (ends[1] - ends[0]), abs=0.01)


def area(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    integral = np.polyint(np.polyfit(x, y, 3))
    return float(np.polyval(integral, high) - np.polyval(integral, low))
