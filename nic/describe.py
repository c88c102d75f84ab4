"""What a .nic file says of itself, read from its headers: needs neither torch nor the model."""

from nic.bitstream.container import chunks, unpack
from nic.bitstream.header import FORMAT_MAJOR, Kind, Mode
from nic.errors import UnknownModel
from nic.models import store

__all__ = ["describe"]


def describe(data: bytes) -> dict[str, object]:
    """Header, model and chunks (tag and payload bytes) of a .nic file; raises BadFile or UnsupportedFile.

    Every checksum is tested, no symbol is decoded. ``model`` is None where the model is not installed.
    """
    file = unpack(data)
    header = file.header
    try:
        model = store.find(header.model_id)["name"]
    except UnknownModel:
        model = None
    return {
        "format": FORMAT_MAJOR,
        "kind": Kind(header.kind).name.lower(),
        "mode": Mode(header.mode).name.lower(),
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "bit_depth": header.bit_depth,
        "alpha": file.alpha is not None,
        "quality": round(header.quality / 2.52, 1),
        "model_id": header.model_id.hex(),
        "model": model,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 4),
        "chunks": [{"tag": chunk.tag, "bytes": len(chunk.payload)} for chunk in chunks(data)],
    }
