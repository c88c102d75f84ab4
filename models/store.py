"""Weight files: one safetensors file a model, named by what decides its symbols.

The model id is the first 8 bytes of a SHA-256 over the integer prior and the codebooks: everything that a file's
symbols depend on, and nothing else, so a better synthesis keeps the id and older files just look better.
There is a kind of model for each mode of the format.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open

from nic.errors import UnknownModel
from nic.models.config import LEVELS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nic.models.codec import ImageCodec
    from nic.models.config import ExtremeConfig, ImageConfig, RefinerConfig, TransformConfig
    from nic.models.extreme import ExtremeCodec
    from nic.models.indices import IndexPrior
    from nic.models.prior import Prior
    from nic.models.recovery import Recovery
    from nic.models.refiner import Refiner
    from nic.models.transforms import Analysis, HyperAnalysis, Synthesis
    from nic.models.vq import Codebooks

__all__ = [
    "DEFAULT",
    "EXTREME",
    "FIDELITY",
    "REFINER",
    "VIDEO",
    "AnyModel",
    "ExtremeModel",
    "Model",
    "available",
    "find",
    "load",
    "load_extreme",
    "load_from",
    "load_refiner",
    "model_id",
    "put_network",
    "read_codebooks",
    "save",
    "save_extreme",
    "save_refiner",
]

WEIGHTS = Path(__file__).parent / "weights"
FIDELITY, EXTREME = "fidelity", "extreme"  # modes, and the names of the models that nic itself uses for them
DEFAULT = FIDELITY
SYMBOLS = ("prior.", "codebooks.")  # prefixes of the tensors that decide symbols
TABLES = ("tables", "basis_tables")  # of an extreme model
ADDING_STEPS = 6  # steps of quality that add vectors of the bases, each as wide as that of a codebook
REFINER = "refiner"  # name and mode of what --refine uses
VIDEO = "video"  # name and mode of the model of videos: they code differences to its synthesis, so its id covers that


@dataclass(frozen=True)
class Model:
    """A model of the fidelity mode, ready to code: float transforms, integer prior, codebooks."""

    id: bytes
    config: "ImageConfig"
    analysis: "Analysis"
    hyper_analysis: "HyperAnalysis"
    prior: "Prior"
    codebooks: "Codebooks"
    synthesis: "Synthesis"
    device: "torch.device"

    mode: ClassVar[str] = FIDELITY

    def quality(self, level: int) -> float:
        """The transforms' quality, 0 to 63, at a quality level of the format."""
        return level / 4


@dataclass(frozen=True, eq=False)
class ExtremeModel:
    """A model of the extreme mode, ready to code.

    codewords: of each book, [K, D] in fixed point, the smallest book first. bases: their vectors
    [BASES, VECTORS, D], fixed point. tables: frequencies of the answers in each of 128 classes, then of the symbols in
    each basis and context. recovery: for lost cells; not every weight file has it.
    """

    id: bytes
    config: "ExtremeConfig"
    analysis: "Analysis"
    prior: "IndexPrior"
    codewords: "tuple[Tensor, ...]"
    bases: "Tensor"
    tables: list[np.ndarray]
    synthesis: "Synthesis"
    recovery: "Recovery | None"
    device: "torch.device"

    mode: ClassVar[str] = EXTREME

    @property
    def steps(self) -> int:
        """Ranges of quality levels: one for each codebook, then those that add vectors of the bases."""
        return len(self.codewords) + ADDING_STEPS

    @property
    def first_adding(self) -> int:
        """The lowest quality level that adds vectors of the bases."""
        return -(-(LEVELS + 1) * len(self.codewords) // self.steps)

    def adds(self, level: int) -> bool:
        """Whether a quality level of the format, 0 to 252, adds vectors of the bases to codewords."""
        return level >= self.first_adding

    def book(self, level: int) -> int:
        """The codebook of a quality level."""
        return min(level * self.steps // (LEVELS + 1), len(self.codewords) - 1)

    def quality(self, level: int) -> float:
        """The transforms' quality, 0 to 63, at a quality level: that of its codebook."""
        return self.book(level) * 63 / (len(self.codewords) - 1)


AnyModel = Model | ExtremeModel


def model_id(tensors: dict[str, np.ndarray], mode: str = DEFAULT) -> bytes:
    """8 bytes that name the tensors that decide symbols, of the model of videos those of the synthesis, too.

    The refiner decides no symbols: its id names all of its tensors.
    """
    named = {VIDEO: (*SYMBOLS, "synthesis."), REFINER: ("refiner.",)}.get(mode, SYMBOLS)
    return digest({name: array for name, array in tensors.items() if name.startswith(named)})[:8]


def digest(tensors: dict[str, np.ndarray]) -> bytes:
    """SHA-256 over names, types, shapes and values."""
    result = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        result.update(f"{name} {array.dtype} {array.shape}\n".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.digest()


def available() -> Iterator[dict[str, Any]]:
    """What is installed: id (hex), name, mode, bytes, path and model card of each model. Loads no torch.

    First those in the folder that the environment variable NIC_MODELS names, if it does, so that they are taken before
    shipped ones of the same name. What is no weight file of nic is left out.
    """
    own = os.environ.get("NIC_MODELS")
    folders = [*([Path(own)] if own else []), WEIGHTS]
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        try:
            metadata = read_metadata(path)
        except UnknownModel:
            continue
        yield {
            "id": metadata["id"],
            "name": path.stem,
            "mode": metadata["mode"],
            "bytes": path.stat().st_size,
            "path": str(path),
            "card": json.loads(metadata["card"]),
        }


def find(wanted: bytes | str) -> dict[str, Any]:
    """The installed model with this id (8 bytes) or name; raises UnknownModel."""
    models = list(available())
    for model in models:
        if wanted in (model["name"], bytes.fromhex(model["id"])):
            return model
    name = wanted if isinstance(wanted, str) else wanted.hex()
    known = ", ".join(f"{model['name']} ({model['id']})" for model in models) or "none"
    raise UnknownModel(
        f"model {name} is not installed (installed: {known}); install the nic release that wrote the file"
    )


def save(
    codec: "ImageCodec | Model",
    prior: "Prior",
    codebooks: "Codebooks",
    path: Path,
    card: dict[str, Any],
    mode: str = FIDELITY,
) -> bytes:
    """Writes the weight file of a model of fidelity mode, or of videos, and returns the model id."""
    arrays = {f"codebooks.{name}": value for name, value in codebooks.to_arrays().items()}
    parts = {"analysis": codec.analysis, "hyper_analysis": codec.hyper_analysis, "synthesis": codec.synthesis}
    return write(mode, codec.config, parts, integers_of(prior) | arrays, path, card)


def save_extreme(
    codec: "ExtremeCodec",
    prior: "IndexPrior",
    codewords: "list[Tensor]",
    tables: tuple[np.ndarray, np.ndarray],
    path: Path,
    card: dict[str, Any],
) -> bytes:
    """Writes the weight file of an extreme model and returns the model id.

    codewords as in ExtremeModel. tables: frequencies [128, 2] of the answers, and those of the bases' symbols,
    [BASES * CONTEXTS, symbols].
    """
    from nic.models.prior import UNIT

    words = np.concatenate([book.numpy() for book in codewords])
    vectors = (codec.bases.vectors * UNIT).round().cpu().numpy()
    arrays = {"codebooks.codewords": words.astype(np.int16), "codebooks.bases": vectors.astype(np.int16)}
    for name, values in zip(TABLES, tables, strict=True):
        arrays[f"codebooks.{name}"] = values.astype(np.uint32)
    parts = {"analysis": codec.analysis, "synthesis": codec.synthesis}
    return write(EXTREME, codec.config, parts, integers_of(prior) | arrays, path, card)


def save_refiner(refiner: "Refiner", path: Path, card: dict[str, Any]) -> bytes:
    """Writes the weight file of a refiner and returns the model id."""
    return write(REFINER, refiner.config, {"refiner": refiner}, {}, path, card)


def integers_of(prior: "nn.Module") -> dict[str, np.ndarray]:
    """The tensors of an integer prior."""
    return {f"prior.{name}": smallest_integers(value.cpu().numpy()) for name, value in prior.state_dict().items()}


def write(
    mode: str,
    config: "ImageConfig | ExtremeConfig | RefinerConfig",
    networks: "dict[str, nn.Module]",
    integers: dict[str, np.ndarray],
    path: Path,
    card: dict[str, Any],
) -> bytes:
    """Writes a weight file, networks in float16."""
    tensors: dict[str, np.ndarray] = {}
    for part, network in networks.items():
        tensors |= halves(part, network)
    tensors |= integers
    identity = model_id(tensors, mode)
    metadata = {"mode": mode, "id": identity.hex(), "config": json.dumps(asdict(config)), "card": json.dumps(card)}
    write_tensors(tensors, path, metadata)
    return identity


def halves(part: str, network: "nn.Module") -> dict[str, np.ndarray]:
    """The tensors of a network in float16."""
    return {f"{part}.{name}": value.cpu().half().numpy() for name, value in network.state_dict().items()}


def write_tensors(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Writes a file as a whole or not at all; its metadata get a digest of all tensors."""
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}  # save_file takes memory as it is
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata | {"sha256": digest(tensors).hex()})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def smallest_integers(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest signed type that holds them all."""
    for dtype in (np.int8, np.int16, np.int32):
        integers = values.astype(dtype)
        if np.array_equal(integers, values):
            return integers
    raise ValueError("not integers of 32 bits")


def put_network(path: Path, part: str, network: "nn.Module", config: "TransformConfig | None" = None) -> None:
    """Writes a network, in float16, into a weight file, in place of that part's if it has one.

    The model id stays, unless it is a synthesis of videos. config: of the model, if the network comes with other sizes.
    """
    metadata, tensors = read_weights(path)
    if config:
        metadata["config"] = json.dumps(asdict(config))
    others = {name: value for name, value in tensors.items() if not name.startswith(f"{part}.")}
    tensors = others | halves(part, network)
    metadata["id"] = model_id(tensors, metadata["mode"]).hex()
    write_tensors(tensors, path, metadata)


def load(wanted: bytes | str = DEFAULT, device: str = "cpu") -> AnyModel:
    """Loads an installed model by id or name; raises UnknownModel."""
    return load_from(find(wanted)["path"], device)


def load_extreme(path: Path, device: str = "cpu") -> ExtremeModel:
    """Loads the model in a weight file of the extreme mode."""
    model = load_from(path, device)
    if not isinstance(model, ExtremeModel):
        raise UnknownModel(f"{path} is not of the extreme mode")
    return model


def load_refiner(path: Path | None = None, device: str = "cpu") -> "Refiner":
    """Loads the installed refiner, or that of a weight file; raises UnknownModel."""
    import torch

    from nic.models.config import RefinerConfig
    from nic.models.refiner import Refiner

    path = path or find(REFINER)["path"]
    metadata, tensors = read_weights(path)
    if metadata["mode"] != REFINER:
        raise UnknownModel(f"{path} is no refiner")
    with torch.random.fork_rng(devices=[]):
        refiner = Refiner(RefinerConfig(**json.loads(metadata["config"])))
    fill({"refiner": refiner}, tensors, device)
    return refiner


def load_from(path: str | Path, device: str) -> AnyModel:
    """Loads the codec in a weight file; raises UnknownModel for a damaged one, and for the refiner."""
    metadata, tensors = read_weights(path)
    identity, sizes = bytes.fromhex(metadata["id"]), json.loads(metadata["config"])
    if metadata["mode"] == REFINER:
        raise UnknownModel(f"model {metadata['id']} refines pictures and codes none")
    if metadata["mode"] == EXTREME:
        return build_extreme(identity, sizes, tensors, device)
    return build_fidelity(identity, sizes, tensors, device)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a weight file: mode, id, config and card; raises UnknownModel for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        metadata = {}
    if not metadata.keys() >= {"mode", "id", "config", "card"}:
        raise UnknownModel(f"{path} is damaged, or no weight file of nic")
    return metadata


def read_weights(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and tensors of a weight file; raises UnknownModel if they do not match its id and digest."""
    from safetensors.numpy import load_file

    metadata, tensors = read_metadata(path), load_file(path)
    whole = digest(tensors).hex()  # older files have none
    if model_id(tensors, metadata["mode"]).hex() != metadata["id"] or metadata.get("sha256", whole) != whole:
        raise UnknownModel(f"{path} is damaged: its tensors do not match its id; reinstall nic")
    return metadata, tensors


def build_fidelity(identity: bytes, sizes: dict[str, Any], tensors: dict[str, np.ndarray], device: str) -> Model:
    import torch

    from nic.models.config import ImageConfig
    from nic.models.prior import Prior
    from nic.models.transforms import Analysis, HyperAnalysis, Synthesis
    from nic.models.vq import Codebooks

    config = ImageConfig(**sizes)
    with torch.random.fork_rng(devices=[]):  # not on the meta device, whose initialisers take a second to import
        parts = {"analysis": Analysis(config), "hyper_analysis": HyperAnalysis(config)}
        parts |= {"prior": Prior(config).to_integer(), "synthesis": Synthesis(config)}
    fill(parts, tensors, device)
    codebooks = Codebooks.from_arrays(part_of(tensors, "codebooks")).to(torch.device(device))
    return Model(identity, config, codebooks=codebooks, device=torch.device(device), **parts)


def build_extreme(identity: bytes, sizes: dict[str, Any], tensors: dict[str, np.ndarray], device: str) -> ExtremeModel:
    import torch

    from nic.models.config import ExtremeConfig
    from nic.models.extreme import BITS_MIN, books_of
    from nic.models.indices import IndexPrior
    from nic.models.recovery import Recovery
    from nic.models.transforms import Analysis, Synthesis

    config = ExtremeConfig(**sizes)
    with torch.random.fork_rng(devices=[]):  # not on the meta device, whose initialisers take a second to import
        parts = {"analysis": Analysis(config), "synthesis": Synthesis(config)}
        parts |= {"prior": IndexPrior(config).to_integer()}
        if part_of(tensors, "recovery"):
            parts["recovery"] = Recovery(config)
    fill(parts, tensors, device)
    words = torch.from_numpy(tensors["codebooks.codewords"]).float().to(device)
    codewords = words.split([2 ** (book + BITS_MIN) for book in range(books_of(config))])
    vectors = torch.from_numpy(tensors["codebooks.bases"]).float().to(device)
    tables = [table for name in TABLES for table in tensors[f"codebooks.{name}"]]
    parts.setdefault("recovery", None)
    return ExtremeModel(
        identity, config, codewords=codewords, bases=vectors, tables=tables, device=torch.device(device), **parts
    )


def fill(parts: "dict[str, nn.Module]", tensors: dict[str, np.ndarray], device: str) -> None:
    """Loads the tensors of some networks into them."""
    import torch

    for part, module in parts.items():
        state = {name: torch.from_numpy(value).float() for name, value in part_of(tensors, part).items()}
        module.load_state_dict(state, assign=True)
        module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def part_of(tensors: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(part + "."): value for name, value in tensors.items() if name.startswith(part + ".")}


def read_codebooks(path: Path) -> "Codebooks":
    """The codebooks of a weight file of fidelity mode or of videos; raises UnknownModel for any other."""
    from nic.models.vq import Codebooks

    metadata, tensors = read_weights(path)
    if metadata["mode"] not in (FIDELITY, VIDEO):
        raise UnknownModel(f"{path} is of mode {metadata['mode']}, and has no codebooks of scale classes")
    return Codebooks.from_arrays(part_of(tensors, "codebooks"))
