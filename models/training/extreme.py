"""``nic train extreme``: the extreme mode, from the transforms of a fidelity codec.

The first codebook is found by K-means among the principal components of the fidelity codec's latents, so that
training starts from pictures instead of noise. Then everything learns together; a second run with
``synthesis_only`` fits the final codebooks and the bases to the encoder and lets the synthesis learn from these.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nic.errors import BadInput, UsageError
from nic.models import store
from nic.models.bases import BASES, CONTEXTS, RATE_WEIGHTS, VECTORS, WEIGHTS, choices
from nic.models.codec import ImageCodec
from nic.models.config import ExtremeConfig, ImageConfig, TrainConfig
from nic.models.extreme import BITS_MIN, ExtremeCodec, apart, book_quality, books_of, nearest, to_fixed_point
from nic.models.indices import LOGIT_CLASSES
from nic.models.prior import UNIT
from nic.models.training.adversary import LEARNING_RATE, Adversary
from nic.models.training.data import Photos, read_photos, to_images
from nic.models.training.loop import Training, read_checkpoint
from nic.models.training.perceptual import Lpips, Perceptual
from nic.models.training.soap import optimizers_of, with_filter_apart
from nic.models.training.start import read_start, take_over, with_new_weights
from nic.models.transforms import Analysis, Synthesis
from nic.models.vq import TOTAL

__all__ = ["evaluate", "train"]

CROPS = 500  # of 256x256, on which codebooks are fitted: 128,000 vectors
ITERATIONS = 10  # of K-means
SLOW = 0.2  # learning rate of the analysis, relative to the others': faster, latents run away from their codewords
ADDING_SHARE = 0.4  # of the crops that train the synthesis alone add vectors of the bases
FIT_WEIGHT = 0.01  # rate weight in squared distances of siblings, that bases are fitted with
SPREAD = 2.0  # root mean square of the first latents


def train(
    config: ExtremeConfig,
    options: TrainConfig,
    data: Sequence[Path],
    run: Path,
    minutes: float,
    perceptual: Path,
    start_from: Path,
    device: str = "cpu",
    workers: int = 2,
    synthesis_only: bool = False,
    bfloat16: bool = False,
    adversary_weight: float = 0.0,
    dists_weight: float = 0.0,
    into: Path | None = None,
) -> Path:
    """Trains for ``minutes`` of wall-clock and returns the final checkpoint; ``run`` as in ``Training.fit``.

    perceptual: the folder of LPIPS's weights, and DISTS's. start_from: checkpoint or weight file of this mode or of a
    fidelity codec, with trunks of the same width and no more blocks. With synthesis_only, of this mode: its analysis
    stays as it is, and codebooks are fitted to its latents, if they are not yet. bfloat16: the precision
    of the convolutions. adversary_weight: of the adversarial loss; with 0 there is none. dists_weight: of DISTS. into:
    with synthesis_only, a weight file with the same codebooks, which gets the synthesis in the end.
    """
    if into and not synthesis_only:
        raise UsageError("a weight file takes the synthesis of a run with --synthesis-only")
    training = Training(run, minutes, options, device, bfloat16)
    where = training.device
    photos = Photos(read_photos(data, "train", workers), where)
    validation = read_photos(data, "val", workers)[:16] if training.first else []
    seen = Perceptual(perceptual, dists_weight, adversary_weight).to(where)

    model = ExtremeCodec(config).to(where, memory_format=torch.channels_last)
    resumed = (run / "last.pt").exists()
    if synthesis_only:
        prepare_synthesis(model, seen.adversary, start_from, photos, resumed)
        if into:
            check_codebooks(model, into)
    elif not resumed:
        prepare_everything(model, seen.adversary, start_from, photos)
    learning = with_filter_apart(model.synthesis)
    learning += [] if synthesis_only else [(model.codebook, 1.0), (model.analysis, SLOW)]
    books, (low, high) = books_of(config), RATE_WEIGHTS
    learning += [(seen.adversary, LEARNING_RATE)] if seen.adversary else []

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        book = (books * torch.rand(options.batch, device=where).sqrt()).long()  # large ones are chosen more often
        weight = None
        if synthesis_only:
            rows = torch.rand(options.batch, device=where) < ADDING_SHARE
            book = torch.where(rows, books - 1, book)
            weight = rows * low * (high / low) ** torch.rand(options.batch, device=where)
        return model.loss(photos.crops(options.batch, options.crop), book, weight, seen)

    checkpoint = training.fit(model, optimizers_of(learning, options), loss, photos.seed, config, seen.adversary)
    if validation:
        for row in evaluate(model.eval(), validation, seen.lpips, range(books)[::3]):
            training.write({"validation": row})
    if into and training.first:
        store.put_network(into, "synthesis", model.synthesis, config)
    training.close()
    return checkpoint


def prepare_synthesis(
    model: ExtremeCodec, adversary: Adversary | None, start_from: Path, photos: Photos, resumed: bool
) -> None:
    """Takes over a run, of which only the synthesis goes on learning; a resumed run has its codebooks already."""
    start_from_run(model, adversary, start_from)
    model.analysis.requires_grad_(False)
    model.codebook.requires_grad_(False)
    if not resumed and model.codebook.fitted.isnan().any():
        fit_codebooks(model, photos)
        fit_bases(model, photos)


def prepare_everything(model: ExtremeCodec, adversary: Adversary | None, start_from: Path, photos: Photos) -> None:
    """Takes over a run, whose codebook learns again, or a fidelity codec."""
    if is_run(start_from):
        start_from_run(model, adversary, start_from)
        model.codebook.release()
    else:
        start_from_fidelity(model, *read_start(start_from), photos)


def check_codebooks(model: ExtremeCodec, weights: Path) -> None:
    """Raises UsageError unless a weight file has the codebooks of ``model``."""
    theirs = store.load_extreme(weights).codewords
    ours = [to_fixed_point(model.codebook.codewords(book).cpu()) for book in range(books_of(model.config))]
    if len(ours) != len(theirs) or not all(map(torch.equal, ours, theirs)):
        raise UsageError(f"{weights} has other codebooks: make a weight file with nic train indices")


def is_run(path: Path) -> bool:
    """Whether a file is a checkpoint or a weight file of this mode."""
    try:
        if path.suffix != ".pt":
            return store.read_metadata(path)["mode"] == store.EXTREME
        read_checkpoint(path, ExtremeConfig)
    except BadInput:
        return False
    return True


def start_from_run(model: ExtremeCodec, adversary: Adversary | None, path: Path) -> None:
    """Takes over the averaged weights of a run, and its adversary, if it had one; or those of a weight file.

    Blocks that they lack start as the identity. Raises BadInput, UnknownModel and UsageError.
    """
    if path.suffix == ".pt":
        state, _ = read_checkpoint(path, ExtremeConfig, model.codebook.anchors.device)
    else:
        state = {"average": state_of(store.load_extreme(path, str(model.codebook.anchors.device)))}
    take_over(model, with_new_weights(model, state["average"]), path)
    if adversary and "adversary" in state:
        take_over(adversary, state["adversary"], path)


def state_of(model: store.ExtremeModel) -> dict[str, Tensor]:
    """What a weight file holds of a codec's state: its codebooks are fitted."""
    counts = np.stack(model.tables[LOGIT_CLASSES:]).reshape(BASES, CONTEXTS, -1)[:, :2]  # after a mask, and after none
    bits = torch.from_numpy(-np.log2(counts / TOTAL)).float()
    state = {"codebook.fitted": torch.cat(model.codewords) / UNIT}
    state |= {"bases.vectors": model.bases / UNIT, "bases.bits": bits.to(model.bases.device)}
    for part, network in {"analysis": model.analysis, "synthesis": model.synthesis}.items():
        state |= {f"{part}.{name}": value for name, value in network.state_dict().items()}
    return state


@torch.no_grad()
def start_from_fidelity(model: ExtremeCodec, state: dict[str, Tensor], old: ImageConfig, photos: Photos) -> None:
    """Makes ``model`` the fidelity codec at its lowest quality, its latents projected and quantized.

    New blocks start as the identity: after the old ones in the analysis, before them in the synthesis. Raises
    UsageError for a codec of other widths, or with more blocks or fewer latents.
    """
    new = model.config
    more = old.trunk_blocks > new.trunk_blocks or old.deep_blocks > new.deep_blocks
    if (old.trunk, old.deep) != (new.trunk, new.deep) or more or old.latent < new.latent:
        raise UsageError("the codec to start from has other widths, more blocks or fewer latents than the config")
    donor = ImageCodec(old).to(photos.pixels.device, memory_format=torch.channels_last)
    donor.load_state_dict(state)
    donor.analysis.linear = donor.synthesis.linear = None  # for high rates
    analysis, synthesis = model.analysis, model.synthesis
    copy_blocks(analysis, donor.analysis, "down", last=False)
    copy_blocks(synthesis, donor.synthesis, "up", last=True)
    quality = torch.zeros(1, device=photos.pixels.device)
    y = torch.cat([donor.analysis(photos.crops(1, 256), quality).movedim(1, -1).flatten(0, 2) for _ in range(CROPS)])
    mean = y.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(y.T))
    basis = vectors[:, -model.config.latent :].flip(1).T  # [D, M], the largest first
    scale = SPREAD / values[-1].sqrt()
    gain = donor.analysis.gain(quality)[0, :, 0, 0]
    weight, bias = gain[:, None] * donor.analysis.latent.weight[:, :, 0, 0], gain * donor.analysis.latent.bias
    load(analysis.latent, scale * basis @ weight, scale * basis @ (bias - mean))
    weight = donor.synthesis.latent.weight[:, :, 0, 0] * donor.synthesis.gain(quality)[0, :, 0, 0]
    load(synthesis.latent, weight @ basis.T / scale, donor.synthesis.latent.bias + weight @ mean)
    points = (y - mean) @ basis.T * scale
    codewords, use = k_means(points, 2**model.config.index_bits)
    order = tree_order(codewords, use)
    model.codebook.anchors.copy_(codewords[order])
    model.codebook.use.copy_(use[order] / use.mean())


def copy_blocks(part: Analysis | Synthesis, donor: Analysis | Synthesis, resampling: str, last: bool) -> None:
    """Takes over patches, resampling, and blocks, as the first or the last ones; the other blocks do nothing."""
    kept = [name for name in part.state_dict() if name.split(".")[0] in ("patch", resampling)]
    part.load_state_dict({name: donor.state_dict()[name] for name in kept}, strict=False)
    part.trunk_gain.knots.copy_(donor.trunk_gain.knots[:1].expand_as(part.trunk_gain.knots))
    for blocks, theirs in ((part.trunk, donor.trunk), (part.deep, donor.deep)):
        for name, value in blocks.named_parameters():
            if name.split(".")[1] in ("leave", "contract"):
                value.zero_()
        first = len(blocks) - len(theirs) if last else 0
        for place, block in enumerate(theirs):
            blocks[first + place].load_state_dict(block.state_dict())


def load(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Sets a 1x1 convolution."""
    conv.load_state_dict({"weight": weight[..., None, None], "bias": bias})


@torch.no_grad()
def fit_codebooks(model: ExtremeCodec, photos: Photos) -> None:
    """K-means of every codebook, among the latents that the analysis gives for it; the order of the tree stays."""
    device = photos.pixels.device
    fitted = []
    for book in range(books_of(model.config)):
        codewords = model.codebook.codewords(book)
        quality = book_quality(torch.tensor([book], device=device), model.config)
        crops = max(CROPS // 5, len(codewords) // 8)
        latents = [model.analysis(photos.crops(1, 256), quality) for _ in range(crops)]
        points = torch.cat([x.movedim(1, -1).flatten(0, 2) for x in latents])
        for _ in range(ITERATIONS):
            sums, use = cluster(points, codewords)
            joined = codewords[busy_neighbours(use)]  # an unused codeword takes a part of a used one's cell
            joined = joined * (1 + 0.01 * torch.randn_like(joined))
            codewords = torch.where(use[:, None] > 0, sums / use.clamp(min=1)[:, None], joined)
        fitted.append(codewords)
    model.codebook.fitted.copy_(torch.cat(fitted))


@torch.no_grad()
def fit_bases(model: ExtremeCodec, photos: Photos) -> None:
    """Entropy-constrained K-means of the bases, each on what the codewords and the bases before it leave."""
    device, book = photos.pixels.device, books_of(model.config) - 1
    codewords = model.codebook.codewords(book)
    weight = FIT_WEIGHT * float(apart(codewords))
    quality = book_quality(torch.tensor([book], device=device), model.config)
    latents = [model.analysis(photos.crops(1, 256), quality).movedim(1, -1).flatten(0, 2) for _ in range(CROPS // 2)]
    left = torch.cat([x - codewords[nearest(x, codewords)] for x in latents])
    before = torch.zeros(len(left), dtype=torch.long, device=device)  # 1 after a vector, 0 after a mask
    factors = torch.tensor([0.0, *(factor for factor in WEIGHTS for _ in range(VECTORS))], device=device)
    for basis in range(BASES):
        vectors = k_means(left, VECTORS)[0] / WEIGHTS[1]
        bits = torch.where(factors > 0, math.log2(len(factors)), 1.0).expand(2, -1)  # else a short vector is the mask
        for _ in range(ITERATIONS):
            added = choices(vectors)
            distances = torch.addmm(added.square().sum(dim=1), left, added.T, alpha=-2)
            symbols = (distances + weight * bits[before]).argmin(dim=1)
            places, scale = (symbols - 1).clamp(min=0) % VECTORS, factors[symbols]
            sums = torch.zeros_like(vectors).index_add_(0, places, left * scale[:, None])
            squares = torch.zeros(VECTORS, device=device).index_add_(0, places, scale.square())
            vectors = torch.where(squares[:, None] > 0, sums / squares.clamp(min=1)[:, None], vectors)
            counts = 0.5 + torch.bincount(before * len(factors) + symbols, minlength=bits.numel()).view_as(bits)
            bits = -torch.log2(counts / counts.sum(dim=1, keepdim=True))
        left, before = left - choices(vectors)[symbols], (symbols > 0).long()
        model.bases.vectors[basis], model.bases.bits[basis] = vectors, bits


def k_means(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on points [n, D]: codewords [count, D] and the use of each; unused ones move."""
    codewords = points[torch.randperm(len(points), device=points.device)[:count]].clone()
    for _ in range(ITERATIONS):
        sums, use = cluster(points, codewords)
        codewords = sums / use.clamp(min=1)[:, None]
        unused = (use == 0).nonzero()[:, 0]
        codewords[unused] = points[torch.randint(len(points), (len(unused),), device=points.device)]
    return codewords, cluster(points, codewords)[1]


def cluster(points: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """The sum [K, D] and the number [K] of the points nearest to each codeword."""
    sums, use = torch.zeros_like(codewords), torch.zeros(len(codewords), device=points.device)
    for part in points.split(8192):
        indices = nearest(part, codewords)
        sums.index_add_(0, indices, part)
        use += torch.bincount(indices, minlength=len(codewords))
    return sums, use


def busy_neighbours(use: Tensor) -> Tensor:
    """For each of 2^b codewords, the most used one of the smallest subtree around it that has two points: [2^b] int."""
    places = torch.arange(len(use), device=use.device)
    neighbours = use.argmax().expand(len(use))
    size = len(use) // 2
    while size > 1:
        best = (use.view(-1, size).argmax(dim=1) + places[::size]).repeat_interleave(size)
        neighbours = torch.where(use[best] > 1, best, neighbours)
        size //= 2
    return neighbours


def tree_order(codewords: Tensor, use: Tensor) -> Tensor:
    """An order of 2^b codewords [K, D] in which each half, quarter, ... is a cluster: cut across the longest axis."""
    if len(codewords) == 1:
        return torch.zeros(1, dtype=torch.long, device=codewords.device)
    weight = (use + 1) / (use + 1).sum()
    centred = codewords - weight @ codewords
    axis = torch.linalg.eigh((centred * weight[:, None]).T @ centred)[1][:, -1]
    first, second = (centred @ axis).argsort().chunk(2)
    return torch.cat([half[tree_order(codewords[half], use[half])] for half in (first, second)])


@torch.no_grad()
def evaluate(model: ExtremeCodec, photos: list[np.ndarray], lpips: Lpips, books: Sequence[int]) -> list[dict[str, Any]]:
    """Mean PSNR and LPIPS of whole photographs (cropped to multiples of 64) with some of the codebooks."""
    device = next(model.parameters()).device
    rows = []
    for book in books:
        psnrs, distances = [], []
        for photo in photos:
            pixels = to_images(photo, device)
            images = model(pixels, torch.tensor([book], device=device))["images"].clamp(0, 1)
            psnrs.append(-10 * math.log10((images - pixels).square().mean().item()))
            distances.append(lpips(images, pixels).item())
        rows.append(
            {"codewords": 2 ** (book + BITS_MIN), "psnr": float(np.mean(psnrs)), "lpips": float(np.mean(distances))}
        )
    return rows
