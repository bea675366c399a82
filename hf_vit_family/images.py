"""Reading images from files that nobody has checked."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError

# Raster formats alone: Pillow's EPS reader, for one, runs Ghostscript on what the file contains. Which of them there are
# depends on how Pillow was built, and is known once its plugins are loaded.
Image.init()
FORMATS = [
    f for f in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if f in Image.OPEN
]


class UnreadableFileError(UserError):
    """A file cannot be decoded. The message names it and the reason."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's error with the worker's traceback in front; the last line is the message.
        cls = type(self)
        super().__init__(message.strip().rsplit("\n", 1)[-1].removeprefix(f"{cls.__module__}.{cls.__name__}: "))


class UnreadableImageError(UnreadableFileError):
    """An image cannot be decoded."""


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, which Pillow would clip at 255, scaled to 8."""
    levels = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.rint(levels.clip(0, 65535) / 257).astype(np.uint8))


def read_image(source: bytes | str | Path, name: str | None = None) -> Image.Image:
    """
    Decodes an image as people see it: turned as its EXIF data says, the first frame of an animation, CMYK and palettes
    converted, 16-bit grey levels scaled, white where it is transparent.

    Args:
        source: The encoded image, or its path.
        name: What error messages call the image; the path by default.

    Returns:
        An image of mode `"L"` (8-bit grey) or `"RGB"`.

    Raises:
        UnreadableImageError: if it is missing, empty, truncated, too large, or no image of a known format.
    """
    name = str(source) if name is None else name
    try:
        encoded = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not encoded:
            raise ValueError("empty file")
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                return _to_eight_bits(image)
            if image.mode == "F":
                raise ValueError("floating-point pixels have no known range")
            mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert(mode)
    except Exception as error:  # Pillow's readers raise errors of any type on broken bytes
        # Pillow's own message shows the file object, which tells a user nothing.
        reason = "no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UnreadableImageError(f"cannot read image {name}: {' '.join(str(reason).split())}") from error
