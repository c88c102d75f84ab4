"""Files decode to the same symbols whatever the machine does with floats: encoded one way, decoded another."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.bitstream.container import NicFile, unpack
from nic.decoder import decode_latents
from nic.encoder import PictureEncoder
from nic.loaded import load_model
from nic.models.prior import (
    EXACT_MAX,
    PRECISION,
    SETTABLE,
    ExactConv,
    IntegerConv,
    IntegerTable,
    Prior,
    QualityTable,
    full_precision,
)
from nic.models.store import Model
from nic.pixels import Picture

QUALITIES = (5, 35, 65, 100)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("fidelity", "cpu")


@pytest.fixture(scope="module", params=["chelsea", "rocket"])
def encoded(request: pytest.FixtureRequest, model: Model) -> list[tuple[NicFile, Tensor]]:
    """A photograph at four qualities, with the latents that the encoder saw."""
    picture = Picture(getattr(skimage.data, request.param)()[:300, :400])
    encoder = PictureEncoder(picture, model)
    files = [encoder.encode(round(quality * 2.52)) for quality in QUALITIES]
    return [(unpack(data), coded.latents) for data, coded in files]


def with_prior(model: Model, change: Callable[[Prior], Prior]) -> Model:
    parts = {name: getattr(model, name) for name in vars(model)}
    return Model(**parts | {"prior": change(copy.deepcopy(model.prior))})


def permute_sums(prior: Prior, seed: int = 0) -> Prior:
    """Sums every convolution in four parts over shuffled input channels or taps: another order of summation."""
    generator = torch.Generator().manual_seed(seed)
    for conv in prior.modules():
        if isinstance(conv, IntegerConv):
            terms = conv.weight.shape[1] if conv.groups == 1 else 9
            conv.sums = split_sums(conv, torch.randperm(terms, generator=generator).chunk(4))  # type: ignore[method-assign]
    return prior


def split_sums(conv: IntegerConv, parts: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    def sums(x: Tensor) -> Tensor:
        total = torch.zeros(1)
        for part in parts:
            if conv.groups == 1:
                total = total + F.conv2d(x[:, part], conv.weight[:, part])
            else:
                taps = torch.zeros(9).index_fill(0, part, 1).view(3, 3)
                total = (
                    total + F.conv2d(x.double(), (conv.weight * taps).double(), padding=1, groups=conv.groups).float()
                )
        return total + conv.bias[:, None, None]

    return sums


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS: dict[str, Callable[[Prior], Prior]] = {
    "float64": lambda prior: prior.double(),
    "contiguous": lambda prior: prior.to(memory_format=torch.contiguous_format),
    "channels_last": lambda prior: prior.to(memory_format=torch.channels_last),
    "permuted sums": permute_sums,
}


def decode(file: NicFile, model: Model) -> Tensor:
    return decode_latents(file.header, dict(enumerate(file.cells)), model)[0]


@pytest.mark.parametrize("setting", SETTINGS)
def test_latents_do_not_depend_on_how_the_prior_runs(
    setting: str, model: Model, encoded: list[tuple[NicFile, Tensor]]
) -> None:
    other = with_prior(model, SETTINGS[setting])
    for file, latents in encoded:
        assert torch.equal(decode(file, other).float(), latents)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_latents_do_not_depend_on_threads(count: int, model: Model, encoded: list[tuple[NicFile, Tensor]]) -> None:
    with threads(count):
        for file, latents in encoded:
            assert torch.equal(decode(file, model), latents)


@pytest.mark.filterwarnings("ignore:TF32")  # reading the flags back, PyTorch warns of one that is not for CPUs
def test_latents_do_not_depend_on_onednn(model: Model, encoded: list[tuple[NicFile, Tensor]]) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        for file, latents in encoded:
            assert torch.equal(decode(file, model), latents)


def allow_less(setting: str, value: str) -> None:
    if setting == "legacy":
        torch.set_float32_matmul_precision(value)
    else:
        part = torch.backends.cuda.matmul if setting == "cuda" else torch.backends.mkldnn.matmul
        part.fp32_precision = value


@pytest.mark.parametrize(("setting", "value"), [("legacy", "medium"), ("cuda", "tf32"), ("mkldnn", "bf16")])
def test_reduced_precision_allowed_elsewhere_does_not_reach_the_prior(
    model: Model, encoded: list[tuple[NicFile, Tensor]], setting: str, value: str
) -> None:
    """A program around nic may allow other products, by PyTorch's old names or new ones, or run under autocast."""
    if setting != "legacy" and not SETTABLE:
        pytest.skip("this version of torch has no such setting")
    before = PRECISION.setting
    allow_less(setting, value)
    allowed = PRECISION.setting
    try:
        with torch.autocast("cpu", torch.bfloat16):
            for file, latents in encoded:
                assert torch.equal(decode(file, model), latents)
        assert PRECISION.setting == allowed
    finally:
        PRECISION.setting = before


def test_precision_stays_until_the_last_thread_has_left() -> None:
    before = PRECISION.setting
    first, second = full_precision("cpu"), full_precision("cpu")
    first.__enter__()
    exact = PRECISION.setting
    second.__enter__()
    first.__exit__(None, None, None)
    assert PRECISION.setting == exact
    second.__exit__(None, None, None)
    assert PRECISION.setting == before


def test_partial_sums_stay_exact_in_float32(model: Model) -> None:
    for conv in model.prior.modules():
        if isinstance(conv, IntegerConv):
            assert conv.largest_sum() <= EXACT_MAX


def test_the_check_would_notice(model: Model, encoded: list[tuple[NicFile, Tensor]]) -> None:
    """One weight changed by one step changes what is decoded: the tests above can fail."""

    def disturb(prior: Prior) -> Prior:
        prior.head[0].weight[0, 0] += 1  # type: ignore[index, union-attr, operator]
        return prior

    other = with_prior(model, disturb)
    differs = []
    for file, latents in encoded:
        try:
            differs.append(not torch.equal(decode(file, other), latents))
        except Exception:
            differs.append(True)
    assert any(differs)


def test_nothing_between_layers_has_a_fraction(model: Model) -> None:
    seen = []
    prior = copy.deepcopy(model.prior)
    for conv in prior.modules():
        if isinstance(conv, IntegerConv):
            conv.register_forward_hook(
                lambda _conv, _inputs, output: seen.append(bool((output == output.round()).all()))
            )
    picture = Picture(np.asarray(skimage.data.coffee())[:128, :192])
    PictureEncoder(picture, with_prior(model, lambda _: prior)).encode(126)
    assert len(seen) > 10 and all(seen)


def test_what_is_trained_rounds_like_integers() -> None:
    """A fraction that integers will lose must not help in training; gradients are those of the plain network."""
    torch.manual_seed(0)
    conv = ExactConv(8, 8, leaky=True)
    x = (20 * torch.randn(1, 8, 4, 4)).round().requires_grad_()
    rounded = conv(x)
    gradient = torch.autograd.grad(rounded.sum(), x)[0]
    plain = conv.eval()(x)
    assert torch.equal(rounded, rounded.round()) and not torch.equal(plain, plain.round())
    assert (rounded - plain).abs().max() <= 0.5
    assert torch.equal(gradient, torch.autograd.grad(plain.sum(), x)[0])
    table = QualityTable(4)
    torch.nn.init.normal_(table.knots)
    levels = torch.arange(0, 63, 0.25)
    assert torch.equal(table(levels)[:, :, 0, 0], IntegerTable(table).table[: len(levels)])
