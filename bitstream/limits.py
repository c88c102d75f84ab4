"""Every cap of the format. Readers check them before they allocate; FORMAT.md §9 lists the same values."""

import os

from nic.errors import UsageError

__all__ = [
    "MAX_CHUNKS",
    "MAX_CHUNK_LENGTH",
    "MAX_FRAMES",
    "MAX_GROUP",
    "MAX_GROUPS",
    "MAX_GROUP_PIXELS",
    "MAX_METADATA_LENGTH",
    "MAX_PIXELS",
    "MAX_SIDE",
    "max_pixels",
]

# Pixels of width and of height. The largest side of a JPEG; it fits 16 bits.
MAX_SIDE = 65535

# Width × height. 16384 × 16384: 768 MiB as 8-bit RGB, the most that a desktop should be asked for by one small file.
MAX_PIXELS = 2**28

# Chunks in a file. The longest strip within MAX_PIXELS needs fewer than 400 cells; the rest is for ancillary chunks.
MAX_CHUNKS = 4096

# Bytes of one chunk's payload. An uncompressed 16-bit alpha plane of MAX_PIXELS takes half of it.
MAX_CHUNK_LENGTH = 2**30

# Bytes of one metadata block once inflated. Real ICC, EXIF and XMP blocks stay below 4 MiB; zlib packs zeros 1000:1.
MAX_METADATA_LENGTH = 2**24

# Frames of a video: three hours at 24 a second.
MAX_FRAMES = 2**18

# Groups of a video; the other chunks are for what else there is. With short groups, this is the tighter limit.
MAX_GROUPS = MAX_CHUNKS - 8

# Frames of a group.
MAX_GROUP = 256

# Width × height × frames of a group, which a reader may hold decoded: 1.5 GiB of 8-bit RGB, 64 frames of 4K.
MAX_GROUP_PIXELS = 2**29


def max_pixels() -> int:
    """MAX_PIXELS, or what $NIC_MAX_PIXELS lowers it to, say for a service that decodes the files of strangers."""
    lower = os.environ.get("NIC_MAX_PIXELS", str(MAX_PIXELS))
    if not lower.isdecimal() or int(lower) < 1:
        raise UsageError(f"NIC_MAX_PIXELS is {lower!r}: it must be a number of pixels")
    return min(MAX_PIXELS, int(lower))
