"""
Reading images: files of every mode of Pillow give the same pixels on every way into a model, of 1 and of 3 channels.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from models import tiny_model
from PIL import Image, ImageCms
from transformers import pipeline

from hf_vit_family.data.images import UnreadableImageError, read_image
from hf_vit_family.data.load import DataConfig, load_data, load_evaluation
from hf_vit_family.modeling.image_processing_pil_vitf import VitfImageProcessorPil
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor

CLASSES = (VitfImageProcessor, VitfImageProcessorPil)
PHOTO = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB").resize((60, 40))
GREY = PHOTO.convert("L")


def processor_of(cls, channels: int):
    return cls(size={"height": 24, "width": 32}, crop_pct=0.9, image_mean=[0.4] * channels, image_std=[0.3] * channels)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(GREY)
    return image


def on_white(image: Image.Image) -> np.ndarray:
    pixels = np.array(image.convert("RGBA")).astype(np.int64)
    color, alpha = pixels[..., :3], pixels[..., 3:]
    return (color * alpha + 255 * (255 - alpha) + 127) // 255


def lying() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    return encode(PHOTO.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def sixteen(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(np.uint16) * 257


# Written by hand: older versions of Pillow only read it.
PGM = f"P5 {GREY.width} {GREY.height} 65535\n".encode() + sixteen(GREY).astype(">u2").tobytes()


def sixteen_bit_colors(image: Image.Image) -> bytes:
    """A PNG with 16 bits a sample, which Pillow does not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in sixteen(image).reshape(image.height, -1))
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def animation(kind: str) -> bytes:
    others = [Image.new("RGB", PHOTO.size, color) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(PHOTO, kind, save_all=True, append_images=others, **options)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


JPEG_CMYK = encode(PHOTO.convert("CMYK"), "JPEG", quality=95)  # with Adobe's marker, which says that it is inverted
PALETTE = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE)
LAB = ImageCms.applyTransform(
    PHOTO,
    ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
)
BIG_ENDIAN = Image.frombytes("I;16B", GREY.size, sixteen(GREY).astype(">u2").tobytes())
TRANSPARENT_LEVEL = int(np.array(GREY)[0, 0])


def without_level(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return np.where(pixels == TRANSPARENT_LEVEL, 255, pixels)


# Kind of file: (its bytes, what it means in grey or RGB, whether transformers' own loader reads it without loss).
FILES: dict[str, tuple[bytes, Callable[[], np.ndarray | Image.Image], bool]] = {
    "1": (encode(PHOTO.convert("1"), "PNG"), lambda: PHOTO.convert("1").convert("L"), True),
    "L": (encode(GREY, "PNG"), lambda: GREY, True),
    "L with a transparent level": (
        encode(GREY, "PNG", transparency=TRANSPARENT_LEVEL),
        lambda: without_level(GREY),
        False,
    ),
    "LA": (encode(with_alpha(GREY), "PNG"), lambda: on_white(with_alpha(GREY))[..., 0], False),
    "P": (encode(PALETTE, "PNG"), lambda: PALETTE.convert("RGB"), True),
    "P with transparency": (
        encode(PALETTE, "PNG", transparency=3),
        lambda: on_white(opened(encode(PALETTE, "PNG", transparency=3))),
        False,
    ),
    "PA": (
        encode(with_alpha(GREY).convert("PA"), "TIFF"),
        lambda: on_white(opened(encode(with_alpha(GREY).convert("PA"), "TIFF"))),
        False,
    ),
    "RGB": (encode(PHOTO, "PNG"), lambda: PHOTO, True),
    "RGBA": (encode(with_alpha(PHOTO), "PNG"), lambda: on_white(with_alpha(PHOTO)), False),
    "CMYK": (encode(PHOTO.convert("CMYK"), "TIFF"), lambda: PHOTO.convert("CMYK").convert("RGB"), True),
    "CMYK of Adobe": (JPEG_CMYK, lambda: opened(JPEG_CMYK).convert("RGB"), True),
    "YCbCr": (
        encode(PHOTO, "JPEG", quality=95),
        lambda: opened(encode(PHOTO, "JPEG", quality=95)).convert("RGB"),
        True,
    ),
    "LAB": (encode(LAB, "TIFF"), lambda: LAB.convert("RGB"), True),
    "16-bit PNG": (encode(Image.fromarray(sixteen(GREY)), "PNG"), lambda: GREY, False),
    "16-bit TIFF": (encode(Image.fromarray(sixteen(GREY)), "TIFF"), lambda: GREY, False),
    "16-bit TIFF, big-endian": (encode(BIG_ENDIAN, "TIFF"), lambda: GREY, False),
    "16-bit PGM": (PGM, lambda: GREY, False),
    "16-bit PNG in colour": (sixteen_bit_colors(PHOTO), lambda: PHOTO, True),
    "EXIF": (lying(), lambda: PHOTO, True),
    "GIF": (animation("GIF"), lambda: opened(animation("GIF")).convert("RGB"), True),
    "animated PNG": (animation("PNG"), lambda: PHOTO, True),
    "animated WebP": (animation("WEBP"), lambda: PHOTO, True),
}


def expected_pixels(kind: str, channels: int) -> np.ndarray:
    """(channels, H, W) of what a file means."""
    meaning = Image.fromarray(np.asarray(FILES[kind][1]()).astype(np.uint8))
    pixels = np.array(meaning.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_every_way_into_a_model_gives_the_same_pixels(tmp_path, kind, channels):
    data, _, pipelines_read_it = FILES[kind]
    path = tmp_path / "class" / "image"
    path.parent.mkdir()
    path.write_bytes(data)
    pixels = torch.from_numpy(expected_pixels(kind, channels))
    image = read_image(path, num_channels=channels)
    assert np.array_equal(np.asarray(image), pixels.squeeze(0) if channels == 1 else pixels.permute(1, 2, 0))
    config = DataConfig(dataset=str(path.parent.parent), num_workers=0)
    for cls in CLASSES:
        processor = processor_of(cls, channels)
        options = {"input_data_format": "channels_first", "return_tensors": "pt"}
        expected = processor(pixels, **options).pixel_values
        assert torch.equal(processor(pixels.numpy(), **options).pixel_values, expected)
        text = base64.b64encode(data).decode()
        for source in (image, opened(data), str(path), path, text, f"data:image/png;base64,{text}"):
            assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected), source
        evaluation, _, bad_images = load_evaluation(config, processor)  # what `vit-family evaluate` reads
        assert not list(bad_images)
        assert torch.equal(evaluation[0]["pixel_values"], expected[0])
        if pipelines_read_it:
            classify = pipeline(
                "image-classification", tiny_model("vit", num_channels=channels), image_processor=processor
            )
            assert torch.equal(classify.preprocess(str(path))["pixel_values"], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_training_reads_the_same_pixels(tmp_path, channels):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number, (data, _, _) in enumerate(FILES.values()):
            (tmp_path / label / f"{number:02d}").write_bytes(data)
    config = DataConfig(dataset=str(tmp_path), eval_fraction=0.1, num_workers=0)
    store = load_data(config, processor_of(VitfImageProcessor, channels), seed=0).train.store
    kinds = list(FILES)
    seen = set()
    for position in range(len(store)):
        kind = kinds[int(Path(store.name(position)).name)]
        assert np.array_equal(store.pixels(position).numpy(), expected_pixels(kind, channels)), kind
        seen.add(kind)
    assert seen == set(kinds)


def converted(mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        order = ">" if mode == "I;16B" else "<" if mode == "I;16L" else "="
        return Image.frombytes(mode, GREY.size, sixteen(GREY).astype(np.dtype("u2").newbyteorder(order)).tobytes())
    if mode == "LAB":
        return LAB
    if mode in ("La", "RGBa", "PA"):
        return with_alpha(PHOTO if mode == "RGBa" else GREY).convert(mode)
    return (with_alpha(PHOTO) if mode in ("RGBA", "LA") else PHOTO).convert(mode)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode not in ("I", "F")])
def test_every_mode_of_pillow_is_read(cls, channels, mode):
    image = converted(mode)
    processor = processor_of(cls, channels)
    if mode.startswith("I;16"):
        meaning = GREY
    elif image.has_transparency_data:
        through = {"La": "LA"}.get(mode)
        meaning = Image.fromarray(on_white(image.convert(through) if through else image).astype(np.uint8))
    else:
        meaning = image.convert("RGB")
    pixel_values = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values, processor(meaning, return_tensors="pt").pixel_values)
    if mode in ("1", "L", "LA", "RGB", "RGBA") or mode.startswith("I;16"):  # arrays that mean what they hold
        assert torch.equal(processor(np.array(image), return_tensors="pt").pixel_values, pixel_values)


@pytest.mark.parametrize("cls", CLASSES)
def test_colours_and_grey_become_one_another_in_floating_point(cls):
    colors = np.array(PHOTO, dtype=np.float32) / 255
    grey = processor_of(cls, 1)(colors, do_rescale=False, return_tensors="pt").pixel_values
    expected = processor_of(cls, 1)(PHOTO, return_tensors="pt").pixel_values
    assert (grey - expected).abs().mean() * 0.3 < 1 / 255
    levels = np.array(GREY, dtype=np.float32)[None] / 255
    pixel_values = processor_of(cls, 3)(levels, do_rescale=False, return_tensors="pt").pixel_values
    single = processor_of(cls, 1)(levels, do_rescale=False, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values, single.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("cls", CLASSES)
def test_conversion_is_off_on_demand(cls):
    for channels, image in ((1, PHOTO), (3, GREY)):
        with pytest.raises(ValueError, match=f"does not have {channels} channels"):
            processor_of(cls, channels)(image, do_convert_rgb=False)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(np.array(GREY).astype(np.int32) * 1000), "32-bit integer pixels"),
        (Image.fromarray(np.array(GREY).astype(np.float32)), "floating-point pixels"),
    ],
)
def test_pixels_without_a_range_are_refused_by_every_reader(tmp_path, image, kind):
    path = tmp_path / "image.tif"
    image.save(path)
    with pytest.raises(UnreadableImageError, match=kind) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "8 or 16 bits" in str(error.value)
    for cls in CLASSES:
        for source in (image, str(path), Image.open(path)):
            with pytest.raises(ValueError, match=kind):
                processor_of(cls, 3)(source)
    for values in (np.array(GREY).astype(kind) for kind in (np.int16, np.int32, np.uint32, np.int64)):
        with pytest.raises(ValueError, match="no known range"):
            processor_of(VitfImageProcessor, 3)(values)


def test_text_that_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"nowhere/cat\.jpg"):
        processor_of(VitfImageProcessor, 3)("nowhere/cat.jpg")


def test_formats_that_run_other_programs_are_not_opened(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(Image.UnidentifiedImageError):
        processor_of(VitfImageProcessor, 3)(str(path))


def test_batches_of_files_of_every_kind(tmp_path):
    processor = processor_of(VitfImageProcessor, 3)
    paths = []
    for number, (data, _, _) in enumerate(FILES.values()):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(data)
    together = processor(paths, return_tensors="pt").pixel_values
    assert torch.equal(together, torch.cat([processor(path, return_tensors="pt").pixel_values for path in paths]))
