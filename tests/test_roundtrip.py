"""Pictures of every shape through a real file and back, and what the file costs against what its symbols must cost."""

import numpy as np
import pytest
import skimage.data
import torch

import nic
from nic import codec, encoder, windows
from nic.bitstream.container import unpack
from nic.bitstream.entropy import Encoder
from nic.cells import number_bits
from nic.encoder import PictureEncoder, first_level
from nic.errors import BadInput, UsageError
from nic.loaded import entropy_tables, load_model
from nic.models.transforms import lambda_of
from nic.pixels import Picture
from nic.progress import watched


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = (a.astype(np.float64) - b) / np.iinfo(a.dtype).max
    return float(-10 * np.log10(np.square(error).mean()))


@pytest.mark.parametrize("size", [(1, 1), (1, 65), (65, 33), (63, 64), (130, 17)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    pixels = skimage.data.astronaut()[: size[0], : size[1]]
    decoded = codec.decompress(codec.compress(Picture(pixels), quality=90).data).pixels
    assert decoded.shape == pixels.shape and psnr(decoded, pixels) > 26


def test_a_picture_beyond_the_limits_is_refused_before_it_is_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are checked when they are opened; arrays and Pillow images come here as they are."""
    coded: list[object] = []
    monkeypatch.setattr(encoder, "code_fidelity", lambda *arguments: coded.append(arguments))
    with pytest.raises(BadInput, match="65535"):
        nic.encode(np.zeros((1, 70_000), np.uint8))
    monkeypatch.setenv("NIC_MAX_PIXELS", "63")
    with pytest.raises(BadInput, match="8x8 pixels are more than 63"):
        nic.encode(np.zeros((8, 8), np.uint8))
    assert not coded


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_quality_trades_bytes_for_psnr(name: str) -> None:
    pixels = getattr(skimage.data, name)()[:256, :320]
    files = [codec.compress(Picture(pixels), quality=quality).data for quality in (0, 33, 66, 100)]
    sizes = [len(file) for file in files]
    psnrs = [psnr(codec.decompress(file).pixels, pixels) for file in files]
    assert sizes == sorted(sizes) and psnrs == sorted(psnrs) and psnrs[-1] > psnrs[0] + 4


def test_cells_decode_apart(photo: np.ndarray) -> None:
    """A picture of two cells: the second begins at pixel 1024, and there is no seam between them."""
    pixels = np.tile(skimage.data.chelsea()[:64], (1, 3, 1))[:, :1200]
    data = codec.compress(Picture(pixels), quality=60).data
    assert len(unpack(data).cells) == 2
    decoded = codec.decompress(data).pixels
    assert psnr(decoded[:, 1000:1048], pixels[:, 1000:1048]) > psnr(decoded, pixels) - 4


def test_windows_give_what_the_whole_gives() -> None:
    """Analysis, synthesis and its gradient, computed cell by cell, are those of the whole picture."""
    model = load_model("fidelity", "cpu")
    pixels = np.tile(skimage.data.chelsea()[:180], (1, 3, 1))[:, :1270]
    quality = torch.tensor([30.0])
    everything = slice(0, 12), slice(0, 80)
    images = windows.to_images(pixels, everything, torch.device("cpu"))
    y, z = windows.analyze(model, pixels, quality)
    with torch.no_grad():
        assert torch.allclose(y, model.analysis(images, quality), atol=1e-3)
        assert torch.allclose(z, model.hyper_analysis(y), atol=1e-3)
    latents = torch.round(y)
    whole = model.synthesis(latents.requires_grad_(), quality)
    error = (whole.clamp(0, 1) - images)[:, :, :180, :1270].square().sum()
    (gradient,) = torch.autograd.grad(error, latents)
    latents = latents.detach()
    decoded = windows.synthesize(model, latents, 120, channels=3, depth=16)
    expected = 65535 * whole.detach()[0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(decoded - expected).max() < 8  # of 65535
    dear = number_bits(entropy_tables(model)) + 1000  # so that no filter is worth it
    windowed_error, windowed_gradient = windows.distortion_gradient(model, latents, pixels, 120, 1.0, dear, everything)
    assert windowed_error == pytest.approx(float(error.detach()), rel=1e-4)
    assert windowed_gradient is not None
    assert torch.allclose(windowed_gradient, gradient, atol=1e-3 * float(gradient.abs().max()))


def test_a_region_has_its_own_error_and_gradient() -> None:
    model = load_model("fidelity", "cpu")
    pixels = skimage.data.chelsea()[:192, :192]
    quality, region = torch.tensor([30.0]), (slice(4, 12), slice(0, 12))
    images = windows.to_images(pixels, (slice(0, 12), slice(0, 12)), torch.device("cpu"))
    latents = torch.round(windows.analyze(model, pixels, quality)[0])
    decoded = model.synthesis(latents.requires_grad_(), quality).clamp(0, 1)
    error = (decoded - images)[:, :, 64:].square().sum()
    (gradient,) = torch.autograd.grad(error, latents)
    dear = number_bits(entropy_tables(model)) + 1000  # so that no filter is worth it
    its_error, its_gradient = windows.distortion_gradient(model, latents.detach(), pixels, 120, 1.0, dear, region)
    assert its_error == pytest.approx(float(error.detach()), rel=1e-4)
    assert its_gradient is not None
    assert torch.allclose(its_gradient, gradient[:, :, 4:], atol=1e-3 * float(gradient.abs().max()))


def test_strips_searched_one_by_one_cost_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.tile(skimage.data.chelsea()[:, 100:228], (4, 1, 1))[:1100]
    results = []
    for cells_at_once in (1, 16):
        monkeypatch.setattr(encoder, "STRIP_CELLS", cells_at_once)
        coder = PictureEncoder(Picture(pixels), load_model("fidelity", "cpu"), effort=2)
        results.append((coder.size_at(126), coder.psnr_at(126)))
        assert psnr(codec.decompress(coder.file(126)).pixels, pixels) == pytest.approx(results[-1][1], abs=0.01)
    (strips, at), (whole, level) = results
    assert strips == pytest.approx(whole, rel=0.005) and at == pytest.approx(level, abs=0.05)
    assert strips != whole or at != level


def test_grey_and_16_bits(photo: np.ndarray, photo16: np.ndarray) -> None:
    grey = photo[:, :, 1:2]
    decoded = codec.decompress(codec.compress(Picture(grey), quality=80).data).pixels
    assert decoded.shape == grey.shape and psnr(decoded, grey) > 27
    decoded = codec.decompress(codec.compress(Picture(photo16), quality=80).data).pixels
    assert decoded.dtype == np.uint16 and len(np.unique(decoded % 256)) == 256
    assert psnr(decoded, photo16) > 27


def test_alpha_is_lossless(photo: np.ndarray, ramp: np.ndarray) -> None:
    decoded = codec.decompress(codec.compress(Picture(photo, ramp), quality=10).data)
    assert decoded.alpha is not None and np.array_equal(decoded.alpha, ramp)


def test_effort_lowers_the_rate_distortion_cost() -> None:
    """At one quality, the file may grow, but then its picture gets better by more than these bits are worth."""
    pixels = skimage.data.chelsea()[100:228, 100:292]
    costs = []
    for effort in (1, 4, 7):
        coder = PictureEncoder(Picture(pixels), load_model("fidelity", "cpu"), effort)
        bits, mse = 8 * coder.size_at(126), 255**2 * 10 ** (-coder.psnr_at(126) / 10)
        trade_off = float(lambda_of(torch.tensor([126 / 4]), coder.model.config))
        costs.append(bits + trade_off * mse * pixels[..., 0].size)
    assert costs[0] > costs[1] >= costs[2]


def test_targets_are_met_or_explained(photo: np.ndarray) -> None:
    pixels = skimage.data.coffee()[:256, :384]
    picture, area = Picture(pixels), pixels[..., 0].size
    by_bpp = codec.compress(picture, bpp=0.5)
    assert 8 * len(by_bpp.data) / area == pytest.approx(0.5, rel=0.02) and not by_bpp.note
    by_size = codec.compress(picture, size=5000)
    assert 4900 <= len(by_size.data) <= 5000 and not by_size.note
    by_psnr = codec.compress(picture, psnr=29)
    assert 29 <= psnr(codec.decompress(by_psnr.data).pixels, pixels) < 29.58 and not by_psnr.note
    assert "bytes instead of 40: the lowest quality" in codec.compress(picture, size=40).note
    for wrong in (
        {"bpp": float("nan")},
        {"size": 0},
        {"psnr": float("inf")},
        {"bpp": 1, "size": 9},
        {"quality": 101},
        {"quality": 50, "bpp": 1},
    ):
        with pytest.raises(UsageError):
            codec.compress(picture, **wrong)


def test_the_same_picture_gives_the_same_bytes(photo: np.ndarray) -> None:
    data = nic.encode(photo, quality=40)
    assert nic.encode(photo, quality=40) == data
    with torch.inference_mode():  # as in a caller's loop that measures
        assert nic.encode(photo, quality=40) == data


def test_payload_is_as_long_as_its_symbols_need(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = []

    class CountingEncoder(Encoder):
        def put(self, symbols: np.ndarray, classes: np.ndarray) -> None:
            bits.append(self._tables.cost(symbols, classes))
            super().put(symbols, classes)

    monkeypatch.setattr(encoder, "Encoder", CountingEncoder)
    for quality in (10, 90):
        bits.clear()
        data = codec.compress(Picture(skimage.data.chelsea()), quality=quality, effort=1).data
        payload = len(unpack(data).cells[0])
        assert sum(bits) / 8 <= payload <= 1.001 * sum(bits) / 8 + 8
        assert len(data) <= 1.001 * sum(bits) / 8 + 64


class Steps:
    total: float | None = None
    done = 0

    def update(self, n: float | None = 1) -> None:
        self.done += 1


@pytest.mark.parametrize("options", [{"effort": 1}, {"effort": 3}, {"effort": 2, "psnr": 28}, {"effort": 1, "bpp": 1}])
def test_progress_is_what_was_expected(options: dict[str, float]) -> None:
    pixels = np.tile(skimage.data.chelsea()[:64], (1, 3, 1))[:, :1100]
    with watched(encoding := Steps()):
        data = codec.compress(Picture(pixels), **options).data
    assert encoding.done == encoding.total or (
        len(options) == 2 and encoding.total / 2 < encoding.done < encoding.total
    )
    with watched(decoding := Steps()):
        codec.decompress(data)
    assert decoding.done == decoding.total == 2 * 2


@pytest.mark.parametrize("reached_from", [0, 1, 100, 252, 253])
@pytest.mark.parametrize("guess", [None, 0, 99, 100, 101, 110, 252])
def test_bisection_from_a_guess_finds_the_same(reached_from: int, guess: int | None) -> None:
    tried = []
    found = first_level(lambda level: bool(tried.append(level)) or level >= reached_from, guess)
    assert found == reached_from and len(tried) == len(set(tried)) and set(tried) <= set(range(253))
    assert guess is None or abs(guess - found) > 1 or len(tried) <= 4


@pytest.mark.parametrize("target", [{"size": 900}, {"bpp": 0.3}, {"psnr": 31.0}])
def test_a_search_at_high_effort_finds_what_bisection_does(photo: np.ndarray, target: dict[str, float]) -> None:
    picture, model = Picture(photo), load_model("fidelity", "cpu")
    found = codec.compress(picture, effort=2, mode="fidelity", **target)
    coder, level = PictureEncoder(picture, model, effort=2), round(found.quality / 100 * 252)
    if "psnr" in target:
        assert coder.psnr_at(level - 1) < target["psnr"] <= coder.psnr_at(level)
    elif "size" in target:
        assert coder.size_at(level) <= target["size"] < coder.size_at(level + 1)
    else:
        wanted = target["bpp"] * photo.shape[0] * photo.shape[1] / 8
        near = [abs(coder.size_at(level + step) - wanted) for step in (0, -1, 1)]
        assert near[0] == min(near)
    assert found.data == coder.file(level)


def test_a_search_codes_no_level_twice_and_keeps_no_latents(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    analyze = encoder.analyze
    monkeypatch.setattr(encoder, "analyze", lambda *args: (levels.append(float(args[2])), analyze(*args))[1])
    coder = PictureEncoder(Picture(photo), load_model("fidelity", "cpu"), effort=1)
    best, _ = coder.search_psnr(29)
    coder.file(best)
    assert len(levels) == len(set(levels)) > 5
    best, _ = coder.search_size(700, nearest=True)
    coder.file(best)
    assert len(levels) == len(set(levels))
    assert all(isinstance(kept, bytes) for kept in coder.files.values())
