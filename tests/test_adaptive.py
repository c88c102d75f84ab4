"""Filters that encoders fit to cells: what they mend, how they are coded, and that windows do not show."""

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nic import codec
from nic.bitstream.container import unpack
from nic.bitstream.entropy import Decoder, Encoder
from nic.cells import get_filter, number_bits, put_filter, put_numbers
from nic.decoder import decode_latents
from nic.errors import BadFile
from nic.loaded import entropy_tables, load_model
from nic.models import adaptive, store
from nic.models.adaptive import COEFFICIENT_MAX, COUNTS, LIMITS, AdaptiveFilter, fit
from nic.pixels import Picture
from nic.windows import synthesize

WORTH = 10_000.0  # bits for a squared error of 1


@pytest.fixture(scope="module")
def model() -> store.Model:
    loaded = load_model("fidelity", "cpu")
    assert isinstance(loaded, store.Model)
    return loaded


def to_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


def spoilt(images: Tensor) -> Tensor:
    """Colours bleed to the right, and edges are soft."""
    red = images[:, :1].roll(1, dims=3)
    soft = 0.5 * images + 0.125 * sum(images.roll(by, dims=axis) for by in (1, -1) for axis in (2, 3))
    return torch.cat([(soft[:, :1] + red) / 2, soft[:, 1:]], dim=1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_what_is_spoilt_alike_everywhere_is_mended(model: store.Model) -> None:
    original = to_images(skimage.data.chelsea()[:200, :300])
    images, bits = spoilt(original), number_bits(entropy_tables(model))
    found = fit(images, original, (0, 0), WORTH, bits, grey=False)
    assert all(chosen.any() for chosen in found.coefficients)
    assert psnr(found(images), original) > psnr(images, original) + 2
    luma = fit(images, original, (0, 0), WORTH, bits, grey=True)
    assert luma.coefficients[0].any() and not any(chosen.any() for chosen in luma.coefficients[1:])


@pytest.mark.parametrize("worth", [0.0, WORTH])
def test_what_is_not_worth_its_bits_is_left_out(model: store.Model, worth: float) -> None:
    """Where errors count nothing, and where there are none."""
    original = to_images(skimage.data.chelsea()[:100, :100])
    images = original if worth else spoilt(original)
    found = fit(images, original, (0, 0), worth, number_bits(entropy_tables(model)), grey=False)
    assert not any(chosen.any() for chosen in found.coefficients)
    assert torch.equal(found(images), images)


def test_a_fit_sees_only_the_part_with_an_original(model: store.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is around it, and alike in strips of any height."""
    original = to_images(skimage.data.chelsea()[:90, :120])
    images, bits = spoilt(original), number_bits(entropy_tables(model))
    part = original[:, :, 10:70, 20:100]
    found = fit(images, part, (10, 20), WORTH, bits, grey=False)
    monkeypatch.setattr(adaptive, "ROWS", 7)
    again = fit(images, part, (10, 20), WORTH, bits, grey=False)
    assert all(map(np.array_equal, found.coefficients, again.coefficients))
    images[:, :, :7], images[:, :, 73:], images[:, :, :, :17], images[:, :, :, 103:] = 0, 0, 0, 0
    blind = fit(images, part, (10, 20), WORTH, bits, grey=False)
    assert all(map(np.array_equal, found.coefficients, blind.coefficients))


@st.composite
def filters(draw: st.DrawFn) -> AdaptiveFilter:
    number = st.integers(-COEFFICIENT_MAX, COEFFICIENT_MAX)
    planes = [draw(st.one_of(st.just([0] * n), st.lists(number, min_size=n, max_size=n))) for n in COUNTS]
    return AdaptiveFilter(tuple(map(np.array, planes)), draw(st.integers(0, LIMITS - 1)))


@settings(deadline=None, max_examples=50)
@given(filters())
def test_filters_come_back(model: store.Model, sent: AdaptiveFilter) -> None:
    encoder = Encoder(entropy_tables(model))
    put_filter(encoder, sent)
    decoder = Decoder(entropy_tables(model), encoder.finish())
    found = get_filter(decoder)
    decoder.finish()
    if any(chosen.any() for chosen in sent.coefficients):
        assert found is not None and found.limit == sent.limit
        assert all(map(np.array_equal, found.coefficients, sent.coefficients))
    else:
        assert found is None


@pytest.mark.parametrize(
    "numbers", [[-1], [8], [1, LIMITS // 2, *[1] * COUNTS[0]], [1, 0, COEFFICIENT_MAX + 1, *[1] * (COUNTS[0] - 1)]]
)
def test_numbers_that_no_encoder_writes_are_refused(model: store.Model, numbers: list[int]) -> None:
    encoder = Encoder(entropy_tables(model))
    put_numbers(encoder, *numbers[:1])
    put_numbers(encoder, *numbers[1:])
    with pytest.raises(BadFile, match="damaged cell"):
        get_filter(Decoder(entropy_tables(model), encoder.finish()))


def test_files_have_filters_that_pay(model: store.Model) -> None:
    """Of two cells, whose border lies within a part that is decoded alone."""
    pixels = np.tile(skimage.data.chelsea()[:128], (1, 3, 1))[:, :1320]
    data = codec.compress(Picture(pixels), quality=60).data
    file = unpack(data)
    latents, found, _ = decode_latents(file.header, dict(enumerate(file.cells)), model)
    assert sorted(found) == [(0, 0), (0, 1)]
    decoded = codec.decompress(data).pixels
    plain = synthesize(model, latents, file.header.quality, 3, 8)[:128, :1320]
    error, plain_error = (float(np.square(x.astype(float) - pixels).mean()) for x in (decoded, plain))
    assert error < 0.99 * plain_error
    part = codec.decompress(data, crop=(1000, 30, 60, 50)).pixels
    assert np.abs(part.astype(int) - decoded[30:80, 1000:1060]).max() <= 1


def test_the_lowest_effort_fits_none(model: store.Model) -> None:
    file = unpack(codec.compress(Picture(skimage.data.chelsea()[:64, :64]), quality=60, effort=1).data)
    assert not decode_latents(file.header, dict(enumerate(file.cells)), model)[1]
