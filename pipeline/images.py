"""Encoded image bytes to pixels, the same for every stage and expert."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import BadImage

MAX_PIXELS = 100_000_000
"""Largest image decoded. A larger header is refused before any pixel is read: a bomb costs nothing."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats read. Of the others that Pillow knows, some run programs (EPS) and some hide their true size (ICO)."""

_PILLOW_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders let through for corrupt files, which is more than they document (found by fuzzing)."""

# MAX_PIXELS is the limit. Set once: changing the filters around each call would not be thread-safe.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode_image(data: bytes) -> np.ndarray:
    """Pixels of an encoded image as read-only uint8 RGB (height, width, 3), EXIF orientation applied.

    First frame of an animation; alpha over white; CMYK, palette and grey converted; 16 bits scaled to 8.

    Raises:
        BadImage: as for `open_image`, or floating-point pixels, whose range no format defines.
    """
    image = open_image(data)
    if image.mode == "F":
        raise BadImage("the image has floating-point pixels: convert it to 8 or 16 bits")
    try:
        return np.asarray(_to_rgb(image))
    except ValueError as error:
        raise BadImage(f"the image cannot be converted to RGB: {error}") from error


def open_image(data: bytes) -> Image.Image:
    """An encoded image, decoded whole, in its own mode, EXIF orientation applied.

    Raises:
        BadImage: empty, of no known format, truncated, or over `MAX_PIXELS`.
    """
    if not data:
        raise BadImage("the image file is empty (zero bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"the image has {width}x{height} pixels, the limit is {MAX_PIXELS:,}")
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except _PILLOW_ERRORS as error:
        raise BadImage(f"the image cannot be decoded: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits, in mode I also those of PGM; Pillow would clip them to 255 instead of scaling.
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
