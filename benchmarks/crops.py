"""Draws docs/crops.png: a detail of a photograph as it is, from a .nic file, and from a JPEG file of the same size.

python benchmarks/crops.py -o docs/crops.png
"""

import argparse
from pathlib import Path

import skimage.data
from PIL import Image, ImageDraw, ImageFont

from nic.bench import codecs
from nic.bench.metrics import psnr

BPP = 0.36
BOX = (150, 20, 342, 212)  # left, top, right, bottom of the detail, in pixels
ZOOM = 2
LABEL_HEIGHT = 44


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent.parent / "docs" / "crops.png")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    original = Image.fromarray(skimage.data.astronaut())
    panels = [panel(original, "original", "uncompressed")]
    for codec in (codecs.load("nic"), codecs.load("jpeg")):
        _, file = codecs.at_rate(codec, original, BPP, {})
        decoded = codec.decode(file, original.size)
        bpp = 8 * len(file) / (original.width * original.height)
        note = f"{len(file):,} bytes, {bpp:.2f} bpp, {psnr(original, decoded):.1f} dB"
        panels.append(panel(decoded, codec.label, note))
    side_by_side(panels).save(arguments.output, optimize=True)


def panel(image: Image.Image, name: str, note: str) -> Image.Image:
    """The enlarged detail with two lines of text below."""
    detail = image.crop(BOX)
    detail = detail.resize((detail.width * ZOOM, detail.height * ZOOM), Image.Resampling.NEAREST)
    result = Image.new("RGB", (detail.width, detail.height + LABEL_HEIGHT), "white")
    result.paste(detail)
    text = f"{name}\n{note}"
    ImageDraw.Draw(result).multiline_text((4, detail.height + 2), text, "black", ImageFont.load_default(15))
    return result


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    gap = 8
    width = panels[0].width + gap
    result = Image.new("RGB", (width * len(panels) - gap, panels[0].height), "white")
    for index, image in enumerate(panels):
        result.paste(image, (index * width, 0))
    return result


if __name__ == "__main__":
    main()
