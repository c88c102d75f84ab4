"""The plots and the report of a run: as files, and as a person meets them in a browser."""

import io
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

for package in ("bjontegaard", "jinja2", "matplotlib"):
    pytest.importorskip(package, reason="install the bench group: pip install -e '.[bench]'")

from nic.bench import plots, report  # noqa: E402
from nic.bench.results import Results  # noqa: E402

Row = dict[str, Any]

HOSTILE = """<script>window.harmed=1</script><img src=x onerror=window.harmed=2>"'&$x$.png"""
SIDE = 192
QUALITIES = {0.4: 15, 1.0: 55}  # target in bpp -> quality
LABELS = {"nic": "nic", "jpeg": "JPEG", "webp": "WebP"}
REFUSED = "no overlap: 20 to 24 and 26 to 31"
SVG = "{http://www.w3.org/2000/svg}"


def make_results(folder: Path) -> Results:
    """Two photographs as JPEG and WebP at two qualities, the latter also in the role of nic, and curves about them."""
    pictures = {"coffee.png": skimage.data.coffee()[150:, 200:], HOSTILE: skimage.data.astronaut()[:, 130:]}
    points: list[Row] = []
    crops: list[Row] = []
    for i, (name, pixels) in enumerate(pictures.items()):
        image = Image.fromarray(pixels[:SIDE, : SIDE + 32])
        for target, quality in QUALITIES.items():
            for codec, picture in {"original": image, **{codec: None for codec in LABELS}}.items():
                row: Row = {"image": name, "target": target, "codec": codec, "bpp": None, "psnr": None, "lpips": None}
                if picture is None:
                    file = io.BytesIO()
                    image.save(file, "jpeg" if codec == "jpeg" else "webp", quality=quality + 5 * (codec == "nic"))
                    picture = Image.open(file).convert("RGB")
                    error = np.mean((np.asarray(picture, float) - np.asarray(image)) ** 2)
                    row |= {
                        "bpp": 8 * file.tell() / (image.width * image.height),
                        "psnr": 10 * math.log10(255**2 / error),
                        "lpips": error / 500,
                    }
                    points.append(row | {"chunks": "HEAD 20 CELL 300 CELL 80" if codec == "nic" else ""})
                path = folder / f"{i}-{target}-{codec}.webp"
                picture.save(path, lossless=True)
                crops.append(row | {"label": LABELS.get(codec, codec), "file": path})
    return Results(
        run={"date": "2026-01-02", "pictures": "2, among them " + HOSTILE},
        points=points,
        curves=make_curves(),
        bd=[
            {"codec": "nic", "anchor": "jpeg", "metric": "psnr", "bd_rate": -43.21, "bd_metric": 2.5}
            | {"low": 25.5, "high": 33.25, "note": ""},
            {"codec": "nic", "anchor": "webp", "metric": "psnr", "bd_rate": 3.4, "bd_metric": None}
            | {"low": 25.5, "high": 26.25, "note": "only 9% of the two curves overlap"},
            {"codec": "jpeg", "anchor": "webp", "metric": "psnr", "bd_rate": None, "bd_metric": None}
            | {"low": None, "high": None, "note": REFUSED},
            {"codec": "jpeg", "anchor": "nic", "metric": "psnr", "bd_rate": 76.09, "bd_metric": -2.5}
            | {"low": 25.5, "high": 33.25, "note": ""},
        ],
        table=[
            {"codec": codec, "label": label, "kind": "measured", "metric": "psnr", "0.1": None, "0.5": 31.257}
            for codec, label in LABELS.items()
        ],
        speed=[
            {"codec": codec, "setting": 50, "bytes": 20_000, "step": step, "peak_mb": 90.0}
            | {"wall_s": wall * (1 + (step == "load")), "cpu_s": wall}
            for codec, wall in {"nic": 0.5, "jpeg": 0.004}.items()
            for step in ("load", "encode", "decode")
        ],
        macs=[
            {"part": "analysis", "parameters": 1_200_000, "kmac_per_pixel": 10.25},
            {"part": "synthesis", "parameters": 800_000, "kmac_per_pixel": 20.5},
        ],
        skipped={"vvc": "needs an ffmpeg with libvvenc"},
        failed={HOSTILE: "is no picture"},
        crops=crops,
    )


def make_curves() -> list[Row]:
    def rows(codec: str, label: str, kind: str, gain: float, rates: tuple[float, ...]) -> list[Row]:
        head = {"codec": codec, "label": label, "kind": kind, "images": 2, "source": f"how {label} was made"}
        return [
            head
            | {"setting": i, "bpp": rate, "psnr": 33 + gain + 5 * math.log2(rate)}
            | {"lpips": 0.3 * 0.5 ** (rate + gain / 5) if kind == "measured" else None}
            for i, rate in enumerate(rates)
        ]

    measured = (0.09, 0.17, 0.33, 0.61, 0.97)
    return [
        *rows("nic", "nic", "measured", 1.5, measured),
        *rows("jpeg", "JPEG", "measured", -2, (0.12, 0.25, 0.5, 0.9, 1.9, 3.4)),
        *rows("webp", "WebP", "measured", 0, measured),
        *rows("BPG", "BPG", "published", 1, (0.02, 0.15, 0.6, 2.5, 6)),
        *rows("odd", HOSTILE, "published", 2, (0.1, 1.2)),
    ]


@pytest.fixture(scope="module")
def plotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plots of PSNR and LPIPS, and both beside each other."""
    folder = tmp_path_factory.mktemp("plots")
    for metric in ("psnr", "lpips"):
        plots.draw(make_curves(), metric, folder)
    plots.overview(make_curves(), folder)
    return folder


def ticks(path: Path, axis: str) -> dict[float, float]:
    """Number at each tick of an axis of an SVG -> where it stands, from its left or top."""
    places = {}
    for group in ET.parse(path).iter(f"{SVG}g"):
        if re.fullmatch(f"{axis}tick_\\d+", group.get("id", "")):
            text, use = next(group.iter(f"{SVG}text")), next(group.iter(f"{SVG}use"))
            places[float(text.text or "")] = float(use.get(axis, ""))
    return places


def legend(path: Path) -> dict[str, str]:
    """Label -> style of its line in an SVG."""
    group = next(group for group in ET.parse(path).iter(f"{SVG}g") if group.get("id", "").startswith("legend"))
    lines = [g for g in group if g.get("id", "").startswith("line2d")]
    labels = [next(g.iter(f"{SVG}text")).text or "" for g in group if g.get("id", "").startswith("text")]
    styles = [line.find(f"{SVG}path").get("style", "") for line in lines]  # type: ignore[union-attr]
    return dict(zip(labels[-len(lines) :], styles, strict=True))  # before them, there may be a title


def test_plots_are_files_that_programs_read(plotted: Path) -> None:
    for name in ("rd_psnr", "rd_lpips", "rd"):
        with Image.open(plotted / f"{name}.png") as image:
            assert image.width > 800 and image.convert("L").getextrema() == (27, 255)
        svg = ET.parse(plotted / f"{name}.svg").getroot()
        words = {text.text for text in svg.iter(f"{SVG}text")}
        assert {"nic", "JPEG", "WebP", "bits per pixel"} <= words
        assert ("BPG" in words and HOSTILE in words) == (name != "rd_lpips")


def test_plots_are_the_same_every_time(plotted: Path, tmp_path: Path) -> None:
    plots.draw(make_curves(), "psnr", tmp_path)
    for file in ("rd_psnr.svg", "rd_psnr.png"):
        assert (plotted / file).read_bytes() == (tmp_path / file).read_bytes()


def test_up_is_better_on_every_axis(plotted: Path) -> None:
    for metric, sign in (("psnr", -1), ("lpips", 1)):  # SVG counts from the top
        places = ticks(plotted / f"rd_{metric}.svg", "y")
        heights = [height for _, height in sorted(places.items())]
        assert len(heights) > 3 and all(sign * step > 0 for step in np.diff(heights))
    assert "lower is better" in (plotted / "rd_lpips.svg").read_text()
    assert "lower is better" not in (plotted / "rd_psnr.svg").read_text()


def test_curves_beyond_two_bits_and_without_error_are_drawn(tmp_path: Path) -> None:
    rows = [row | {"bpp": 9.0 + row["bpp"], "psnr": math.inf if row["bpp"] > 1 else 30.0} for row in make_curves()]
    plots.draw(rows, "psnr", tmp_path)
    assert list(tmp_path.iterdir())


def test_the_axis_of_rates_is_logarithmic_and_ends_at_two_bits(plotted: Path) -> None:
    places = ticks(plotted / "rd_psnr.svg", "x")
    assert set(places) == {0.1, 0.2, 0.5, 1, 2}
    assert places[0.2] - places[0.1] == pytest.approx(places[2] - places[1], abs=0.01)


def test_published_curves_are_dashed_and_a_codec_keeps_its_colour(plotted: Path, tmp_path: Path) -> None:
    every = legend(plotted / "rd_psnr.svg")
    assert {label for label, style in every.items() if "stroke-dasharray" in style} == {"BPG", HOSTILE}
    assert len(set(every.values())) == len(every) == 5
    for codec, label in (("jpeg", "JPEG"), ("nic", "nic")):
        plots.draw([row for row in make_curves() if row["codec"] == codec], "psnr", tmp_path)
        assert legend(tmp_path / "rd_psnr.svg") == {label: every[label]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = report.write(make_results(folder), folder)
    moved = folder / "elsewhere" / path.name  # so that nothing beside it can be of use
    moved.parent.mkdir()
    return path.rename(moved)


def test_a_report_without_pictures_and_comparisons(tmp_path: Path) -> None:
    curves = [row for row in make_curves() if row["codec"] == "jpeg"]
    text = report.write(Results(run={}, points=[], curves=curves, bd=[], table=[]), tmp_path).read_text()
    assert "<svg" in text and "<table" not in text and "<figure" not in text


def test_speed_is_compared_with_jpeg_and_chunks_are_shared_out(page: Path) -> None:
    text = page.read_text()
    assert "<td>500 ms</td><td>500 ms</td><td>125.0</td>" in text
    assert "<td>4.00 ms</td><td>4.00 ms</td><td>1.0</td>" in text
    assert '<th scope="row">CELL</th><td>95.00 %</td>' in text  # (300 + 80) of 400 bytes
    assert "<td>2,000,000</td><td>30.75</td>" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="install the test group: pip install -e '.[test]'")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "force-color-profile=srgb",
        "force-device-scale-factor=1",
        "window-size=1100,900",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The report, just opened; afterwards, nothing has been complained about."""
    browser.get(page.as_uri())
    wait_for_images(browser)
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.harmed") is None


def wait_for_images(browser: Any) -> None:
    """Until every picture of the page has come, and those of the viewer are painted."""
    browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map((image) => image.decode()))"
        ".then(() => requestAnimationFrame(() => requestAnimationFrame(done)), done)"
    )


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def choose(browser: Any, selector: str, text: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(element(browser, selector)).select_by_visible_text(text)
    wait_for_images(browser)


def clip(browser: Any) -> float:
    """Per cent of the left picture that are seen."""
    style = browser.execute_script("return getComputedStyle(document.getElementById('left-image')).clipPath")
    match = re.fullmatch(r"inset\(-1px ([\d.]+)% -1px -1px\)", style)
    assert match, style
    return 100 - float(match[1])


def seen(browser: Any, zoom: int = 1) -> np.ndarray:
    """[height, width, 3] uint8: the viewer as it is painted."""
    browser.execute_script("document.getElementById('frame').scrollIntoView()")
    pixels = np.asarray(Image.open(io.BytesIO(element(browser, "#frame").screenshot_as_png)).convert("RGB"))
    assert pixels.shape == (SIDE * zoom, (SIDE + 32) * zoom, 3)
    return pixels


def crop(page: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(page.parent.parent / f"{name}.webp").convert("RGB"))


def test_every_picture_loads_and_nothing_else_does(opened: Any) -> None:
    sizes = opened.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) == 4 and all(size > 0 for size in sizes)  # two thumbnails, and both sides of the viewer
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert all(name.startswith("data:") for name in loaded)


def test_the_viewer_shows_the_left_codec_left_of_the_divider_and_the_right_one_right(opened: Any, page: Path) -> None:
    left, right = crop(page, "0-0.4-nic"), crop(page, "0-0.4-jpeg")
    assert clip(opened) == 50
    pixels, middle = seen(opened), (SIDE + 32) // 2
    assert np.array_equal(pixels[:, : middle - 25], left[:, : middle - 25])
    assert np.array_equal(pixels[:, middle + 25 :], right[:, middle + 25 :])
    assert not np.array_equal(left[:, : middle - 25], right[:, : middle - 25])


def test_the_divider_follows_mouse_keys_and_touch(opened: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    frame, handle = element(opened, "#frame"), element(opened, "#handle")
    width = frame.size["width"]
    ActionChains(opened, duration=20).move_to_element(handle).click_and_hold().move_by_offset(60, 5).release().perform()
    assert clip(opened) == pytest.approx(50 + 100 * 60 / width, abs=1)
    ActionChains(opened, duration=20).move_to_element_with_offset(frame, -80, 0).click().perform()
    assert clip(opened) == pytest.approx(50 - 100 * 80 / width, abs=1)
    before = clip(opened)
    element(opened, "#split").send_keys(Keys.ARROW_RIGHT * 3)
    assert before < clip(opened) < before + 5
    element(opened, "#split").send_keys(Keys.END)
    assert clip(opened) == 100
    assert np.array_equal(seen(opened)[:, :-25], crop(page, "0-0.4-nic")[:, :-25])
    element(opened, "#split").send_keys(Keys.HOME)
    assert clip(opened) == 0
    finger = ActionBuilder(opened, mouse=PointerInput("touch", "finger"), duration=20)
    finger.pointer_action.move_to(handle, 15, 0).pointer_down().move_to(frame, 0, 20).pointer_up()
    finger.perform()
    assert clip(opened) == pytest.approx(50, abs=1)


def test_choosing_a_codec_a_rate_and_a_picture(opened: Any, page: Path) -> None:
    caption = element(opened, "#left-caption").text
    assert re.fullmatch(r"0\.\d{3} bpp · \d\d\.\d\d dB · LPIPS 0\.\d{3}", caption)
    choose(opened, "#left", "original")
    assert element(opened, "#left-caption").text == "not compressed"
    assert np.array_equal(seen(opened)[:, :80], crop(page, "0-0.4-original")[:, :80])
    choose(opened, "#right", "WebP")
    choose(opened, "#target", "1 bpp")
    assert np.array_equal(seen(opened)[:, -80:], crop(page, "0-1.0-webp")[:, -80:])
    caption = element(opened, "#right-caption").text
    element(opened, "#images label:nth-of-type(2)").click()
    wait_for_images(opened)
    assert element(opened, "#name").text == HOSTILE
    assert np.array_equal(seen(opened)[:, -80:], crop(page, "1-1.0-webp")[:, -80:])
    assert element(opened, "#right-caption").text != caption
    assert HOSTILE in element(opened, "#right-image").get_attribute("alt")


def test_zoom_doubles_every_pixel(opened: Any, page: Path) -> None:
    element(opened, "#zoom label:nth-of-type(2)").click()
    expected = crop(page, "0-0.4-nic").repeat(2, 0).repeat(2, 1)
    assert np.array_equal(seen(opened, 2)[:, :160], expected[:, :160])


def test_choosing_a_metric_changes_plot_and_table(opened: Any) -> None:
    def plot() -> str:
        return opened.execute_script("return document.querySelector('#distortion svg').outerHTML")

    psnr = plot()
    assert "PSNR" in psnr
    rows = [
        [cell.text for cell in row.find_elements("css selector", "*")]
        for row in opened.find_elements("css selector", ".bd tr")
    ]
    assert rows == [
        ["against", "nic", "JPEG", "WebP"],
        ["nic", "", "−43.2", "+3.4*"],
        ["JPEG", "+76.1", "", "–"],
    ]
    cells = {cell.text: cell.get_attribute("title") for cell in opened.find_elements("css selector", ".bd td")}
    assert cells["−43.2"] == "PSNR of 25.50 to 33.25; at equal bits +2.50 dB"
    assert "only 9%" in cells["+3.4*"] and cells["–"] == REFUSED
    choose(opened, "#metric", "LPIPS")
    assert plot() != psnr and "LPIPS" in plot()
    assert opened.find_elements("css selector", ".bd") == []


def test_the_page_can_be_used_by_keys_alone(opened: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    opened.execute_script("document.querySelector('input[name=image]').focus()")
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    wait_for_images(opened)
    assert element(opened, "#name").text == HOSTILE
    reached = []
    for _ in range(7):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        reached.append(opened.execute_script("return document.activeElement.id || document.activeElement.name"))
    assert [name for name in reached if name] == ["target", "zoom", "left", "right", "split", "metric"]


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_is_no_wider_than_the_screen(opened: Any, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_names_are_text(opened: Any, page: Path) -> None:
    assert "<script>window" not in page.read_text()
    assert HOSTILE in opened.execute_script("return document.body.textContent")
    assert opened.find_elements("css selector", "[onerror], [src=x]") == []
