"""Installed models, each loaded once for each device, and the tables that its symbols are coded with."""

from functools import lru_cache

import torch

from nic.bitstream.entropy import Tables
from nic.bitstream.header import Header, Mode
from nic.errors import BadFile, UsageError
from nic.models import store

__all__ = ["entropy_tables", "load_model", "model_of"]

DEVICES = ("auto", "cpu", "cuda")


def load_model(wanted: bytes | str, device: str = "auto") -> store.AnyModel:
    """The installed model with this id or name, on "cpu", "cuda" or whichever there is ("auto"); kept in memory.

    Raises UnknownModel, and UsageError for a device that there is not.
    """
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is none of {', '.join(DEVICES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return cached_model(store.find(wanted)["path"], device)


def model_of(header: Header, device: str) -> store.AnyModel:
    """The model that a file needs; raises UnknownModel, and BadFile where it is one of another mode."""
    model = load_model(header.model_id, device)
    if header.mode != Mode[model.mode.upper()]:
        raise BadFile(f"its mode is {header.mode.name.lower()}, but model {model.id.hex()} is for {model.mode}")
    return model


@lru_cache(maxsize=4)
def cached_model(path: str, device: str) -> store.AnyModel:
    with torch.inference_mode(False):  # whoever is the first to ask: an encoder needs gradients
        return store.load_from(path, device)


@lru_cache(maxsize=4)
def entropy_tables(model: store.AnyModel) -> Tables:
    if isinstance(model, store.ExtremeModel):
        return Tables(model.tables)
    return Tables(model.codebooks.frequency_tables())
