"""What a .nic file says of itself, read from its headers: needs neither torch nor the model."""

from typing import Any

from nic.bitstream.clip import salvage_clip
from nic.bitstream.container import Chunk, chunks, holds_video, salvage, scan
from nic.errors import UnknownModel
from nic.models import store
from nic.models.config import LEVELS
from nic.models.order import Layer, coding_order

__all__ = ["describe"]


def model_name(model_id: bytes) -> str | None:
    try:
        return str(store.find(model_id)["name"])
    except UnknownModel:
        return None


def format_version(data: bytes) -> str:
    """The version of the format that a file is written in, "1.1"."""
    major, minor = next(chunks(data)).payload[:2]
    return f"{major}.{minor}"


def describe_video(data: bytes) -> dict[str, Any]:
    """The same of a video. ``parts`` has the bytes of each layer's frames, of the network, of audio, and the rest."""
    file = salvage_clip(data)
    header, clip = file.header, file.clip
    parts = {layer.value: 0 for layer in Layer}
    for group in file.groups.values():
        for coded, words in zip(coding_order(len(group.frames), clip.span), group.frames, strict=True):
            parts[coded.layer.value] += len(words)
    parts |= {"network": len(file.weights or b""), "audio": len(file.audio or b"")}
    parts["rest"] = len(data) - sum(parts.values())
    return {
        "format": format_version(data),
        "kind": header.kind.name.lower(),
        "width": header.width,
        "height": header.height,
        "frames": clip.frames,
        "frames_per_second": file.rate and round(float(file.rate), 3),
        "pixel_aspect": f"{clip.aspect_num}:{clip.aspect_den}",
        "group": clip.group,
        "quality": round(100 * clip.leaf / LEVELS, 1),
        "model_id": header.model_id.hex(),
        "model": model_name(header.model_id),
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height * clip.frames), 5),
        "parts": [{"part": name, "bytes": count} for name, count in parts.items()],
        "problems": list(file.problems),
    }


def describe(data: bytes) -> dict[str, Any]:
    """Header, model and chunks (tag and payload bytes) of a .nic file.

    Every checksum is tested, no symbol is decoded. Of a damaged file, chunks are those that are intact, and
    ``problems`` has a line for each defect. ``format`` is the version of the format that the file is written in, the
    lowest that has what it needs. ``model`` is None where the model is not installed. Raises UnsupportedFile, and
    BadFile without HEAD.
    """
    if holds_video(data):
        return describe_video(data)
    file = salvage(data)
    header = file.header
    return {
        "format": format_version(data),
        "kind": header.kind.name.lower(),
        "mode": header.mode.name.lower(),
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "bit_depth": header.bit_depth,
        "alpha": file.alpha is not None,
        "quality": round(100 * header.quality / LEVELS, 1),
        "model_id": header.model_id.hex(),
        "model": model_name(header.model_id),
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 4),
        "chunks": [{"tag": chunk.tag, "bytes": len(chunk.payload)} for chunk in scan(data) if isinstance(chunk, Chunk)],
        "problems": list(file.problems),
    }
