"""Pillow's way to .nic files: Image.open("x.nic") and image.save("x.nic", quality=50, effort=4).

`import nic` registers it. Opening reads the header and the metadata alone; the first use of the pixels decodes them,
and only then is torch loaded. Pillow has no mode for 16-bit colour, so such files open as 8 bits a sample.
"""

from io import BytesIO
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageFile

from nic.bitstream.container import SIGNATURE, unpack
from nic.errors import NicError

if TYPE_CHECKING:
    from PIL._imaging import PixelAccess

__all__ = ["NicImageFile"]

_OPTIONS = ("quality", "bpp", "size", "psnr", "effort", "mode", "mask_rate", "device")
_METADATA = ("icc_profile", "exif", "xmp")


class NicImageFile(ImageFile.ImageFile):
    """An opened .nic file. Opening and loading raise OSError for damaged or unsupported files, as Pillow's own do."""

    format = "NIC"
    format_description = "nic learned image codec"

    def _open(self) -> None:
        from nic.pixels import pil_mode

        assert self.fp is not None
        self._compressed = self.fp.read()
        try:
            file = unpack(self._compressed)
        except NicError as error:
            raise OSError(f"cannot open .nic file: {error}") from error
        self._size = file.header.width, file.header.height
        self._mode = pil_mode(file.header.channels, file.header.bit_depth, file.alpha is not None)
        exif = file.exif and b"Exif\0\0" + file.exif
        blocks = zip(_METADATA, (file.icc, exif, file.xmp), strict=True)
        self.info = {name: block for name, block in blocks if block}
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]

    def load(self) -> "PixelAccess | None":
        """Decode the file on the first call."""
        if self.tile:
            from nic.codec import decompress
            from nic.pixels import to_pil

            try:
                picture = decompress(self._compressed)
            except NicError as error:
                raise OSError(f"cannot decode .nic file: {error}") from error
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = BytesIO(to_pil(picture).tobytes())
        return super().load()

    def load_seek(self, pos: int) -> None:
        """The decoded samples start at 0 of `fp`, whatever Pillow asks for."""


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(SIGNATURE)


def _save(image: Image.Image, target: IO[bytes], filename: str | bytes) -> None:
    """Options are those of nic.encode; icc_profile, exif and xmp replace what the image's info holds."""
    from nic.api import encode

    given = image.encoderinfo
    metadata = {name: given[name] for name in _METADATA if name in given}
    if isinstance(metadata.get("exif"), Image.Exif):
        metadata["exif"] = metadata["exif"].tobytes()
    if metadata:
        image = image.copy()
        image.info.update(metadata)
    try:
        target.write(encode(image, **{name: given[name] for name in _OPTIONS if name in given}))
    except NicError as error:
        raise OSError(f"cannot write .nic file: {error}") from error


Image.register_open(NicImageFile.format, NicImageFile, _accept)
Image.register_save(NicImageFile.format, _save)
Image.register_extension(NicImageFile.format, ".nic")
Image.register_mime(NicImageFile.format, "image/x-nic")
