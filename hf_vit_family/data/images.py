"""Reading images from files that nobody has checked."""

from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..modeling.image_processing_pil_vitf import open_image, read_pixels, to_colors
from ..modeling.video_reading_vitf import UnreadableFileError


class UnreadableImageError(UnreadableFileError, UserError):
    """An image cannot be decoded."""


# Channels of a model to the mode of the images that it takes.
_MODES = {1: "L", 3: "RGB"}


def read_image(source: bytes | str | Path, name: str | None = None, num_channels: int | None = None) -> Image.Image:
    """
    Decodes an image as people see it, with the pixels that the family's processors see: see
    `modeling.image_processing_pil_vitf.read_pixels`.

    Args:
        source: The encoded image, or its path.
        name: What error messages call the image; the path by default.
        num_channels: Of the model that it is for: with 1 it becomes grey, with 3 RGB.

    Returns:
        An image of mode `"L"` (8-bit grey) or `"RGB"`.

    Raises:
        UnreadableImageError: if it is missing, empty, truncated, too large, no image of a known format, or has pixels
            without a known range.
    """
    name = str(source) if name is None else name
    try:
        encoded = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not encoded:
            raise ValueError("empty file")
        with open_image(encoded) as file:
            pixels = read_pixels(file)
    except Exception as error:  # Pillow's readers raise errors of any type on broken bytes
        # Pillow's own message shows the file object, which tells a user nothing.
        reason = "no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UnreadableImageError(f"cannot read image {name}: {' '.join(str(reason).split())}") from error
    if num_channels in _MODES:
        pixels = to_colors(pixels, num_channels)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
