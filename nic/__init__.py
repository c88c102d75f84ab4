"""nic: a learned image and video codec. `encode` and `decode` for Python, `nic` for the shell, a plugin for Pillow.

Importing it registers .nic with Pillow and loads neither torch nor numpy: both wait for the first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import nic.pillow_plugin  # noqa: F401  registers itself

if TYPE_CHECKING:
    from nic.api import decode, encode, info, recover

__version__ = "0.1.0"

__all__ = ["__version__", "decode", "encode", "info", "recover"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    if name in ("decode", "encode", "info", "recover"):
        return getattr(import_module("nic.api"), name)
    raise AttributeError(f"module 'nic' has no attribute {name!r}")
