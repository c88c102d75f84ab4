"""The extreme mode through real files: rates, exactness, damage, bad input, and how the mode is chosen."""

import copy
import dataclasses
from pathlib import Path

import click.testing
import numpy as np
import pytest
import skimage.data
import torch

from nic import codec
from nic.bitstream.container import NicFile, pack, unpack
from nic.bitstream.header import Mode
from nic.cli.main import cli
from nic.decoder import decode_latents
from nic.encoder import PictureEncoder
from nic.errors import BadFile, NicError, UsageError
from nic.extreme import leaf_costs
from nic.loaded import load_model
from nic.models.bases import BASES, visit
from nic.models.indices import STEPS, path_of, step_positions
from nic.models.prior import EXACT_MAX, UNIT, IntegerConv
from nic.models.store import ExtremeModel
from nic.pixels import Picture


@pytest.fixture(scope="module")
def model() -> ExtremeModel:
    model = load_model("extreme", "cpu")
    assert isinstance(model, ExtremeModel)
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return skimage.data.chelsea()[:256, :384].copy()


def decode(data: bytes, model: ExtremeModel) -> torch.Tensor:
    file = unpack(data)
    return decode_latents(file.header, dict(enumerate(file.cells)), model)[0]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_quality_trades_bytes_for_psnr(pixels: np.ndarray) -> None:
    qualities = (0, 20, 40, 60, 80, 100)
    files = [codec.compress(Picture(pixels), quality=quality, mode="extreme").data for quality in qualities]
    assert all(unpack(file).header.mode == Mode.EXTREME for file in files)
    sizes = [len(file) for file in files]
    psnrs = [psnr(codec.decompress(file).pixels, pixels) for file in files]
    assert sizes == sorted(set(sizes)) and psnrs == sorted(psnrs)
    assert 8 * (sizes[3] - 60) < 0.045 * pixels[..., 0].size and psnrs[3] > 20
    assert 8 * (sizes[-1] - 60) < 0.15 * pixels[..., 0].size and psnrs[-1] > psnrs[3] + 0.3


@pytest.mark.parametrize("size", [(1, 1), (65, 33), (40, 1030)])
def test_odd_sizes_and_grey(size: tuple[int, int]) -> None:
    pixels = np.tile(skimage.data.astronaut(), (1, 3, 1))[: size[0], : size[1], :1]
    decoded = codec.decompress(codec.compress(Picture(pixels), quality=100, mode="extreme").data).pixels
    assert decoded.shape == pixels.shape and psnr(decoded, pixels) > 13


def test_every_position_is_coded_once() -> None:
    steps = torch.stack([step_positions(step, 12, 20) for step in range(STEPS)])
    assert (steps.sum(dim=0) == 1).all()


def test_paths_and_costs_agree() -> None:
    """The cost of a leaf is the sum of those on its path."""
    costs = torch.rand(5, 2**4 - 1, 2)
    nodes, answers = path_of(torch.arange(16), 4)
    expected = costs[:, nodes, answers].sum(dim=2)
    assert torch.allclose(leaf_costs(costs), expected)


@pytest.mark.parametrize("mask_rate", [0, 0.5, 1])
def test_additions_are_decoded_as_they_were_coded(mask_rate: float, model: ExtremeModel, pixels: np.ndarray) -> None:
    encoder = PictureEncoder(Picture(pixels), model, mask_rate=mask_rate)
    data, coded = encoder.encode(252)
    latents = coded.latents
    assert torch.equal(decode(data, model), latents)
    codewords = model.codewords[-1] / UNIT
    plain = latents[0].flatten(1).T
    changed = (plain[:, None] != codewords).any(dim=2).all(dim=1)
    assert changed.float().mean() <= 1 - mask_rate and (changed.any() or mask_rate == 1)


def test_symbols_of_bases_are_visited_once_and_know_what_came_before() -> None:
    """Symbols that are all 0 or all 1 by basis: contexts tell of the basis before and of the neighbours."""
    seen = torch.zeros(BASES, 4, 8, dtype=torch.long)
    contexts = torch.full((BASES, 4, 8), -1)

    def source(basis: int, part: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        seen[basis] += part
        contexts[basis][part] = context
        return torch.full(context.shape, basis % 2)

    symbols = visit(4, 8, source, torch.device("cpu"))
    assert (seen == 1).all() and (symbols == torch.arange(BASES)[:, None, None] % 2).all()
    assert contexts[0, 0, :2].tolist() == [0, 2] and contexts[2, 1, :2].tolist() == [7, 1]
    assert contexts[1, 1].tolist() == [5, 0, 6, 0, 6, 0, 6, 0] and contexts[3, 0, 7] == 4


@pytest.mark.parametrize("setting", ["float64", "two threads", "no oneDNN", "low precision around"])
@pytest.mark.parametrize("level", [150, 240])
@pytest.mark.filterwarnings("ignore:TF32")
def test_indices_do_not_depend_on_how_the_prior_runs(
    setting: str, level: int, model: ExtremeModel, pixels: np.ndarray
) -> None:
    encoder = PictureEncoder(Picture(pixels), model)
    data, coded = encoder.encode(level)
    latents = coded.latents
    if setting == "float64":
        words = tuple(book.double() for book in model.codewords)
        other = dataclasses.replace(model, prior=copy.deepcopy(model.prior).double(), codewords=words)
        assert torch.equal(decode(data, other).float(), latents)
    elif setting == "two threads":
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert torch.equal(decode(data, model), latents)
        finally:
            torch.set_num_threads(threads)
    elif setting == "no oneDNN":
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(decode(data, model), latents)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decode(data, model), latents)


def test_the_check_would_notice(model: ExtremeModel, pixels: np.ndarray) -> None:
    data, coded = PictureEncoder(Picture(pixels), model).encode(200)
    latents = coded.latents
    prior = copy.deepcopy(model.prior)
    prior.node.bias[0] += 4 * 2 ** float(prior.node.shift[0]) * 8  # four classes at the root
    try:
        assert not torch.equal(decode(data, dataclasses.replace(model, prior=prior)), latents)
    except BadFile:
        pass


def test_partial_sums_stay_exact_in_float32(model: ExtremeModel) -> None:
    sums = [conv.largest_sum() for conv in model.prior.modules() if isinstance(conv, IntegerConv)]
    assert len(sums) > 10 and max(sums) <= EXACT_MAX


def test_every_flipped_byte_and_truncation_is_refused(photo: np.ndarray) -> None:
    data = codec.compress(Picture(photo[:40, :48]), quality=90, mode="extreme").data
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 0x11
        for wrong in (bytes(damaged), data[:offset]):
            with pytest.raises(NicError):
                codec.decompress(wrong)


def test_a_model_of_the_other_mode_is_refused(photo: np.ndarray) -> None:
    for mode, other in (("fidelity", Mode.EXTREME), ("extreme", Mode.FIDELITY)):
        file = unpack(codec.compress(Picture(photo), quality=10, mode=mode, effort=1).data)
        forged = pack(NicFile(dataclasses.replace(file.header, mode=other), file.cells))
        for work in (codec.decompress, codec.verify, codec.recover):
            with pytest.raises(BadFile, match="mode"):
                work(forged)


@pytest.mark.parametrize("quality", [50, 100])
def test_forged_cells_are_refused(quality: float, photo: np.ndarray) -> None:
    file = unpack(codec.compress(Picture(photo), quality=quality, mode="extreme").data)
    for cell in (b"", file.cells[0][:-4], file.cells[0] + bytes(4), bytes(len(file.cells[0])), b"\xff" * 16):
        with pytest.raises(BadFile):
            codec.verify(pack(NicFile(file.header, (cell,))))


def test_crop_and_lost_cell(tmp_path: Path) -> None:
    pixels = np.tile(skimage.data.astronaut(), (1, 5, 1))[:200, :2200]
    data = codec.compress(Picture(pixels), quality=60, mode="extreme").data
    whole = codec.decompress(data).pixels
    part = codec.decompress(data, crop=(1000, 20, 60, 50)).pixels
    assert np.abs(part.astype(int) - whole[20:70, 1000:1060]).max() <= 1
    cell = unpack(data).cells[1]
    offset = data.index(cell) + len(cell) // 2
    damaged = data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :]
    (tmp_path / "x.nic").write_bytes(damaged)
    result = click.testing.CliRunner().invoke(cli, ["decompress", str(tmp_path / "x.nic"), str(tmp_path / "x.png")])
    assert result.exit_code == 7 and "1 cell(s)" in result.stderr
    recovered = codec.recover(damaged)
    assert recovered.concealed == 1
    same = (recovered.picture.pixels == whole).all(axis=2)
    assert same[:, :800].all() and not same[:, 1024:2048].all()


def test_auto_takes_extreme_only_below_the_reach_of_fidelity(pixels: np.ndarray) -> None:
    picture, area = Picture(pixels), pixels[..., 0].size
    by_rate = codec.compress(picture, bpp=0.03, effort=1)
    assert unpack(by_rate.data).header.mode == Mode.EXTREME
    assert 8 * len(by_rate.data) / area == pytest.approx(0.03, rel=0.2)
    by_size = codec.compress(picture, size=400, effort=1)
    assert unpack(by_size.data).header.mode == Mode.EXTREME and len(by_size.data) <= 400
    assert unpack(codec.compress(picture, bpp=0.03, effort=1, mode="fidelity").data).header.mode == Mode.FIDELITY
    assert unpack(codec.compress(picture, bpp=0.3, effort=1).data).header.mode == Mode.FIDELITY
    with pytest.raises(UsageError, match="mode"):
        codec.compress(picture, mode="best")


def test_command(photo: np.ndarray, tmp_path: Path) -> None:
    skimage.io.imsave(tmp_path / "x.png", photo)
    run = click.testing.CliRunner().invoke
    result = run(cli, ["compress", "-m", "extreme", "-q", "80", str(tmp_path / "x.png"), str(tmp_path / "x.nic")])
    assert result.exit_code == 0, result.output
    shown = run(cli, ["info", str(tmp_path / "x.nic")]).stdout
    assert "mode: extreme" in shown and "model: extreme" in shown
    assert run(cli, ["verify", str(tmp_path / "x.nic")]).exit_code == 0
