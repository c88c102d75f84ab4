"""Weight files: one safetensors file a model, named by what decides its symbols.

The model id is the first 8 bytes of a SHA-256 over the integer prior and the codebooks: everything that a file's
symbols depend on, and nothing else, so a better synthesis keeps the id and older files just look better.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from nic.errors import UnknownModel

if TYPE_CHECKING:
    import torch

    from nic.models.codec import ImageCodec
    from nic.models.config import ImageConfig
    from nic.models.prior import Prior
    from nic.models.transforms import Analysis, HyperAnalysis, Synthesis
    from nic.models.vq import Codebooks

__all__ = ["DEFAULT", "VIDEO", "Model", "available", "find", "load", "model_id", "read_codebooks", "save"]

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "fidelity"
SYMBOLS = ("prior.", "codebooks.")  # prefixes of the tensors that decide symbols
VIDEO = "video"  # name and mode of the model of videos: they code differences to its synthesis, so its id covers that


@dataclass(frozen=True)
class Model:
    """A model ready to code: float transforms, integer prior, codebooks."""

    id: bytes
    config: "ImageConfig"
    analysis: "Analysis"
    hyper_analysis: "HyperAnalysis"
    prior: "Prior"
    codebooks: "Codebooks"
    synthesis: "Synthesis"
    device: "torch.device"


def model_id(tensors: dict[str, np.ndarray], mode: str = DEFAULT) -> bytes:
    """8 bytes that name the tensors that decide symbols and, of the model of videos, those of the synthesis."""
    named = (*SYMBOLS, "synthesis.") if mode == VIDEO else SYMBOLS
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(named):
            array = tensors[name]
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()[:8]


def available() -> Iterator[dict[str, Any]]:
    """What is installed: id (hex), name, mode, bytes, path and model card of each model. Loads no torch."""
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
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
    codec: "ImageCodec", prior: "Prior", codebooks: "Codebooks", path: Path, card: dict[str, Any], mode: str = DEFAULT
) -> bytes:
    """Writes a weight file, transforms in float16, the rest in integers, and returns the model id."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for part in ("analysis", "hyper_analysis", "synthesis"):
        for name, value in getattr(codec, part).state_dict().items():
            tensors[f"{part}.{name}"] = value.cpu().half().numpy()
    for name, value in prior.state_dict().items():
        tensors[f"prior.{name}"] = smallest_integers(value.cpu().numpy())
    tensors |= {f"codebooks.{name}": value for name, value in codebooks.to_arrays().items()}
    identity = model_id(tensors, mode)
    metadata = {
        "mode": mode,
        "id": identity.hex(),
        "config": json.dumps(asdict(codec.config)),
        "card": json.dumps(card),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return identity


def smallest_integers(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest signed type that holds them all."""
    for dtype in (np.int8, np.int16, np.int32):
        integers = values.astype(dtype)
        if np.array_equal(integers, values):
            return integers
    raise ValueError("not integers of 32 bits")


def load(wanted: bytes | str = DEFAULT, device: str = "cpu") -> Model:
    """Loads an installed model by id or name; raises UnknownModel."""
    import torch
    from safetensors.numpy import load_file

    from nic.models.config import ImageConfig
    from nic.models.prior import Prior
    from nic.models.transforms import Analysis, HyperAnalysis, Synthesis
    from nic.models.vq import Codebooks

    entry = find(wanted)
    with safe_open(entry["path"], framework="numpy") as file:
        config = ImageConfig(**json.loads(file.metadata()["config"]))
    tensors = load_file(entry["path"])
    if model_id(tensors, entry["mode"]).hex() != entry["id"]:
        raise UnknownModel(f"{entry['path']} is damaged: its tensors do not match its id; reinstall nic")
    with torch.random.fork_rng(devices=[]):  # not on the meta device, whose initialisers take a second to import
        parts = {"analysis": Analysis(config), "hyper_analysis": HyperAnalysis(config)}
        parts |= {"prior": Prior(config).to_integer(), "synthesis": Synthesis(config)}
    for part, module in parts.items():
        state = {name: torch.from_numpy(value).float() for name, value in part_of(tensors, part).items()}
        module.load_state_dict(state, assign=True)
        module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    codebooks = Codebooks.from_arrays(part_of(tensors, "codebooks")).to(torch.device(device))
    return Model(bytes.fromhex(entry["id"]), config, codebooks=codebooks, device=torch.device(device), **parts)


def part_of(tensors: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(part + "."): value for name, value in tensors.items() if name.startswith(part + ".")}


def read_codebooks(path: Path) -> "Codebooks":
    """The codebooks of a weight file."""
    from safetensors.numpy import load_file

    from nic.models.vq import Codebooks

    return Codebooks.from_arrays(part_of(load_file(path), "codebooks"))
