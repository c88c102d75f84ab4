"""The metrics of `nic bench`, against other implementations and closed forms. Needs the packages of the bench group."""

import importlib.util
import io
import math
import pickle
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from nic.errors import BadInput
from nic.models.training.perceptual import Dists

for package in ("pytorch_msssim", "lpips", "DISTS_pytorch", "ssimulacra2"):
    if importlib.util.find_spec(package) is None:
        pytest.skip("install the bench group: pip install -e '.[bench]'", allow_module_level=True)

from nic.bench import metrics  # noqa: E402
from nic.bench.metrics import METRICS, Meter, missing  # noqa: E402

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"
PERCEPTUAL = ("lpips", "dists")
OTHERS = tuple(name for name in METRICS if name not in PERCEPTUAL)
needs_backbones = pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/weights with the backbones is not here")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()[:176, 120:312])


@pytest.fixture(scope="module")
def jpegs(photo: Image.Image) -> list[Image.Image]:
    """The photograph at JPEG qualities 10, 35 and 80."""
    return [jpeg(photo, quality) for quality in (10, 35, 80)]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(file).convert("RGB")


@cache
def perceptual() -> Meter:
    return Meter(PERCEPTUAL, WEIGHTS)


@cache
def independent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("offline_metrics", WEIGHTS / "offline_metrics.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_psnr_is_that_of_scikit_image(photo: Image.Image, jpegs: list[Image.Image]) -> None:
    expected = peak_signal_noise_ratio(np.asarray(photo), np.asarray(jpegs[0]))
    assert Meter(["psnr"]).measure(photo, jpegs[0]) == {"psnr": pytest.approx(expected, abs=1e-9)}


def test_ms_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    """Without contrast, only the coarsest scale counts, with its exponent 0.1333 (Wang et al. 2003)."""
    a, b, constant = 100, 140, (0.01 * 255) ** 2
    flat = [Image.new("RGB", (192, 176), (value,) * 3) for value in (a, b)]
    expected = ((2 * a * b + constant) / (a**2 + b**2 + constant)) ** 0.1333
    values = Meter(["ms_ssim", "ms_ssim_db"]).measure(*flat)
    assert values["ms_ssim"] == pytest.approx(expected, abs=1e-4)
    assert values["ms_ssim_db"] == pytest.approx(-10 * math.log10(1 - values["ms_ssim"]))


def test_ms_ssim_is_that_of_pytorch_msssim(photo: Image.Image, jpegs: list[Image.Image]) -> None:
    import pytorch_msssim

    a, b = (torch.tensor(np.asarray(x), dtype=torch.float64).permute(2, 0, 1)[None] for x in (photo, jpegs[0]))
    expected = pytorch_msssim.ms_ssim(a, b, data_range=255).item()
    assert Meter(["ms_ssim"]).measure(photo, jpegs[0])["ms_ssim"] == pytest.approx(expected, abs=1e-5)


def test_equal_pictures(photo: Image.Image) -> None:
    values = Meter(OTHERS).measure(photo, photo.copy())
    assert values["psnr"] == values["ms_ssim_db"] == math.inf
    assert values["ms_ssim"] == pytest.approx(1)
    assert values["ssimulacra2"] == pytest.approx(100)


@needs_backbones
def test_equal_pictures_have_no_distance(photo: Image.Image) -> None:
    assert perceptual().measure(photo, photo.copy()) == {"lpips": pytest.approx(0), "dists": pytest.approx(0, abs=1e-6)}


@pytest.mark.parametrize(
    "names", [OTHERS, pytest.param(PERCEPTUAL, marks=needs_backbones)], ids=["others", "perceptual"]
)
def test_all_get_better_with_quality(names: tuple[str, ...], photo: Image.Image, jpegs: list[Image.Image]) -> None:
    meter = perceptual() if names == PERCEPTUAL else Meter(names)
    rows = [meter.measure(photo, image) for image in jpegs]
    assert [tuple(row) for row in rows] == [names] * 3
    for name in names:
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=not METRICS[name].higher_is_better)
        assert len(set(values)) == 3


@needs_backbones
def test_perceptual_metrics_are_those_of_an_independent_implementation(
    photo: Image.Image, jpegs: list[Image.Image]
) -> None:
    a, b = (torch.tensor(np.asarray(x) / 255).float().permute(2, 0, 1)[None] for x in (photo, jpegs[0]))
    values = perceptual().measure(photo, jpegs[0])
    with torch.no_grad():
        assert values["lpips"] == pytest.approx(independent().LPIPS()(a, b).item(), abs=1e-4)
        assert values["dists"] == pytest.approx(independent().DISTS()(a, b).item(), abs=1e-4)
    assert min(values.values()) > 0.05


@needs_backbones
def test_features_of_the_original_are_kept_for_the_next_call_only(
    photo: Image.Image, jpegs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high, one = (image.crop((40, 40, 104, 104)) for image in (jpegs[0], jpegs[2], photo))
    other = one.rotate(180)
    calls = 0
    features = Dists.features

    def counted(self: Dists, image: torch.Tensor) -> Iterator[torch.Tensor]:
        nonlocal calls
        calls += 1
        return features(self, image)

    monkeypatch.setattr(Dists, "features", counted)
    pairs = [(one, low), (one, high), (other, low), (one, low)]
    kept = [perceptual().measure(*pair) for pair in pairs]
    assert calls == 7
    for (original, decoded), row in zip(pairs, kept, strict=True):
        assert perceptual().measure(original.copy(), decoded) == row
    assert calls == 15


@pytest.mark.parametrize("quality, score", [(20, 30), (35, 50)])
def test_ssimulacra2_follows_its_scale(quality: int, score: float) -> None:
    """Its authors' examples of low and medium quality are these of libjpeg-turbo with 4:2:0."""
    photo = Image.fromarray(skimage.data.coffee()[100:400, 100:500])
    assert metrics.ssimulacra2(photo, jpeg(photo, quality)) == pytest.approx(score, abs=10)


def test_ssimulacra2_blurs_as_libjxl(
    photo: Image.Image, jpegs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    impulse = np.zeros((21, 21, 1))
    impulse[10, 10] = 1
    across = metrics.libjxl_blur(impulse)[:, :, 0].sum(axis=0)
    assert across @ (np.arange(21) - 10) ** 2 == pytest.approx(1.5**2, abs=1e-4)
    corner = metrics.libjxl_blur(np.ones((21, 21, 1)))[0, 0, 0]
    assert corner == pytest.approx(((1 + across[10]) / 2) ** 2, abs=1e-6)  # black outside
    before = metrics.ssimulacra2(photo, jpegs[0])
    monkeypatch.setattr(metrics, "LIBJXL_BLUR", (0.25, 0.5, 0.25))
    assert abs(metrics.ssimulacra2(photo, jpegs[0]) - before) > 1  # the package does use it


def test_small_pictures_are_told_in_one_line() -> None:
    image = Image.new("RGB", (300, 160))
    with pytest.raises(BadInput, match="^MS-SSIM needs pictures of at least 161 pixels a side, not 300x160$"):
        Meter(["psnr", "ms_ssim_db"]).measure(image, image)
    assert Meter(["psnr"]).measure(image, image) == {"psnr": math.inf}


@needs_backbones
def test_smallest_pictures_work() -> None:
    image = Image.new("RGB", (METRICS["lpips"].smallest,) * 2, "red")
    assert perceptual().measure(image, image)["lpips"] == 0
    with pytest.raises(BadInput, match="^LPIPS needs pictures of at least 32"):
        perceptual().measure(image.crop((0, 0, 31, 32)), image)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, without a network."""

    def offline(url: str, *arguments: object, **options: object) -> None:
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_missing_backbones_say_where_to_put_them(hub: Path, tmp_path: Path) -> None:
    for weights in (None, tmp_path):
        lines = missing(METRICS, weights)
        assert set(lines) == set(PERCEPTUAL)
        for line, name in zip(lines.values(), ("alexnet", "vgg16"), strict=True):
            assert f"put {name}*.pth of https://download.pytorch.org/models/{name}" in line
            assert "--metric-weights" in line and "\n" not in line
    with pytest.raises(BadInput, match="--metric-weights"):
        Meter(["dists"])


def test_backbones_are_found_in_a_folder_below_and_in_the_cache(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "deep" / "alexnet_features.pth").touch()
    (tmp_path / "own" / "vgg16_bn-6c64b313.pth").touch()  # another network
    assert set(missing(METRICS, tmp_path / "own")) == {"dists"}
    (hub / "vgg16-397923af.pth").touch()
    assert missing(METRICS, tmp_path / "own") == {}


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    lines = missing(METRICS, None)
    assert set(lines) == set(METRICS) - {"psnr"}
    assert lines["lpips"] == "pip install lpips"


def test_download_without_an_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/vgg16-397923af.pth"
        monkeypatch.setitem(metrics.BACKBONES, "vgg16", url)
        monkeypatch.setattr(metrics, "TIMEOUT", 0.2)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        assert set(missing(["dists"], None)) == {"dists"}
    assert socket.getdefaulttimeout() is None
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps({"a": print}, 2)], ids=["empty", "text", "code"])
def test_damaged_backbone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vgg16.pth").write_bytes(content)
    with pytest.raises(BadInput, match=r"vgg16\.pth does not hold torchvision's weights of vgg16"):
        Meter(["dists"], tmp_path)
