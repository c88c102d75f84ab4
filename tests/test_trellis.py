"""Trellises: the best path, files of their symbols, and what they gain."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.bitstream.entropy import Decoder, Encoder
from nic.cells import get_groups, get_residuals, put_groups, put_residuals
from nic.loaded import entropy_tables, load_model
from nic.models import store
from nic.models.prior import UNIT
from nic.models.training.codebook import cost_along_trellis, escape_table, fit_class, fit_trellis
from nic.models.trellis import ROUNDS, Walk, best_path, rounds_of
from nic.models.vq import GROUP, ODD, bits_of, in_groups


@pytest.fixture(scope="module")
def model() -> store.Model:
    loaded = load_model("fidelity", "cpu")
    assert isinstance(loaded, store.Model)
    return loaded


def test_the_best_path_is_the_cheapest_of_all() -> None:
    steps, width = 8, 5
    costs = torch.rand(steps, 4, width, generator=torch.Generator().manual_seed(0))
    found = best_path(costs)
    for trellis in range(width):
        totals = {}
        for parities in itertools.product((0, 1), repeat=steps):
            walk, path = Walk(1), []
            for parity in parities:
                path.append(2 * int(walk.odd(1)[0]) + parity)
                walk.go(np.array([parity]))
            totals[tuple(path)] = sum(float(costs[step, taken, trellis]) for step, taken in enumerate(path))
        assert tuple(found[:, trellis].tolist()) == min(totals, key=lambda path: totals[path])


def test_choices_that_are_looked_up_are_those_that_are_computed(model: store.Model) -> None:
    books, draw = model.codebooks, torch.Generator().manual_seed(0)
    classes = torch.from_numpy(np.flatnonzero(books.trellised)).repeat_interleave(200)
    values = torch.randn(len(classes), generator=draw) * 0.1 * 1.1**classes * UNIT
    values[::20] *= 50  # far outside
    looked_up = books.options(values, classes)
    for value, c, *found in zip(torch.round(values), classes.tolist(), *looked_up, strict=True):
        for mine, computed in zip(found, books.nearby(c, value[None]), strict=True):
            assert torch.equal(mine, computed[0]), (c, value)


@given(st.integers(0, 5 * ROUNDS), st.integers(0, 2**32 - 1))
def test_rounds_have_every_group_once_in_the_order_of_classes(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    classes, wanted = draw.integers(0, 64, count), draw.random(count) < 0.7
    rounds = rounds_of(classes, wanted)
    groups = np.concatenate([*rounds, np.zeros(0, int)])
    assert len(rounds) <= ROUNDS and all(len(each) == len(rounds[0]) for each in rounds[:-1])
    assert sorted(groups) == np.flatnonzero(wanted).tolist()
    assert groups.tolist() == sorted(groups, key=lambda group: (classes[group], group))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from([0, 0.3, 1]))
def test_groups_come_back_as_they_were_chosen(model: store.Model, count: int, seed: int, masks: float) -> None:
    """Of any classes, with outliers that need escapes, and with masks."""
    draw = np.random.default_rng(seed)
    classes = draw.integers(0, 64, count)
    groups = draw.laplace(size=(count, GROUP)) * 0.1 * 1.1 ** classes[:, None] * UNIT
    groups[draw.random(count) < 0.05] *= 50
    encoder = Encoder(entropy_tables(model))
    decoded = put_groups(model, encoder, torch.from_numpy(groups).float(), torch.from_numpy(classes), masks)
    decoder = Decoder(entropy_tables(model), encoder.finish())
    assert np.array_equal(get_groups(model, decoder, classes.astype(np.uint8)).numpy(), decoded.numpy())
    decoder.finish()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_latents_are_coded_with_those_of_their_class(model: store.Model, count: int, seed: int) -> None:
    """And come back to their places; only at the border between two classes has a group latents of a lower one."""
    draw = np.random.default_rng(seed)
    classes = torch.from_numpy(draw.integers(0, 64, GROUP * count)).float()
    residuals = torch.from_numpy(draw.laplace(size=len(classes)) * 0.1 * UNIT).float() * 1.1**classes
    places, shared = in_groups(classes)
    assert sorted(places.flatten().tolist()) == list(range(len(classes)))
    assert (shared == classes[places].amax(dim=1)).all() and (shared.diff() >= 0).all()
    assert int((classes[places] != shared[:, None]).any(dim=1).sum()) <= 63
    encoder = Encoder(entropy_tables(model))
    decoded = put_residuals(model, encoder, residuals, classes)
    assert torch.equal(decoded, model.codebooks.reconstruct(residuals, classes))
    decoder = Decoder(entropy_tables(model), encoder.finish())
    assert torch.equal(get_residuals(model, decoder, classes), decoded.int())
    decoder.finish()


def test_masked_groups_are_coded_as_expected(model: store.Model) -> None:
    """Those whose cost that raises least, at no more than half the bits."""
    books = model.codebooks
    groups = UNIT * torch.randn(4000, GROUP, generator=torch.Generator().manual_seed(1))
    classes = torch.full((len(groups),), 17)
    masked = books.masked(groups, classes, 0.25)
    least = (masked == 0).all(dim=1)
    assert int(least.sum()) == 1000 and torch.equal(masked[~least], groups[~least])
    assert groups[least].square().mean() < 0.5 * groups[~least].square().mean()
    sizes = []
    for rate in (0, 1):
        encoder = Encoder(entropy_tables(model))
        decoded = put_groups(model, encoder, groups, classes, rate)
        sizes.append(len(encoder.finish()))
    assert (decoded != 0).float().mean() < 0.02  # on a trellis' way to where zeros cost least
    assert decoded.abs().max() < UNIT
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize("deviation", [0.7, 2.0])
def test_trellises_beat_scalars(deviation: float) -> None:
    """Whose choice weighs rate and distortion, too: by three per cent of both or more."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(16_000, GROUP, generator=generator) - 0.5
    groups = -uniform.sign() * torch.log1p(-2 * uniform.abs()) * deviation / math.sqrt(2)  # Laplacian
    escape = escape_table()
    scalars = fit_class(groups.view(-1, 1), bits_of(escape)).assign(groups.view(-1, 1))[1].sum() / len(groups)
    pair = fit_trellis(groups * UNIT, escape)
    assert cost_along_trellis(pair, groups * UNIT) < 0.97 * float(scalars)


def test_tables_of_symbols_follow_the_trellis(model: store.Model) -> None:
    """The first symbol of every trellis has its class's even table; symbols of other classes always do."""
    books = model.codebooks
    classes = np.sort(np.random.default_rng(0).integers(0, 64, 500)).astype(np.uint8)
    odd = np.ones((500, GROUP), int)  # of a trellis, odd symbols only
    tables = books.in_file_order(classes, lambda places, _: odd[places])
    assert (tables % ODD == classes[:, None]).all()
    mine = books.trellised[classes]
    assert (tables[~mine] == classes[~mine, None]).all() and (tables[mine] >= ODD).any()
    width = -(-mine.sum() // ROUNDS)
    assert (tables[mine][:width, 0] < ODD).all()
