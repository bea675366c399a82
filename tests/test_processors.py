"""The image processor: equal to timm and transformers on photographs, whatever form an image comes in."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from models import tiny_config, tiny_model
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from torchvision.transforms import CenterCrop
from transformers import AutoImageProcessor, AutoVideoProcessor, ViTImageProcessor, ViTImageProcessorPil, pipeline
from transformers.image_utils import PILImageResampling

from hf_vit_family import ARCHITECTURES, create_processor, list_variants
from hf_vit_family.errors import UserError
from hf_vit_family.modeling import image_processing_pil_vitf
from hf_vit_family.modeling.configuration_vitf import logger
from hf_vit_family.modeling.image_processing_pil_vitf import VitfImageProcessorPil, covering_size, crop_centre
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.registry import modality_of
from hf_vit_family.variants import find_variant

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
CLASSES = (VitfImageProcessor, VitfImageProcessorPil)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
LEVEL = 1 / 255
# Without normalisation the output is the pixels themselves, 0 to 1.
RAW = {"do_normalize": False, "size": {"height": 30, "width": 40}, "crop_pct": 0.9}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    images += [Image.open(PHOTOGRAPHS / name).convert("RGB") for name in ("chelsea.png", "rocket.jpg", "retina.jpg")]
    china, flower, cat = images[:3]
    return [*images, china.crop((3, 5, 336, 256)), flower.crop((0, 0, 97, 401)), cat.resize((101, 99))]


def process(cls, image, **fields) -> torch.Tensor:
    return cls(**fields)(image, return_tensors="pt").pixel_values[0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("size", "crop_pct", "resample"),
    [
        ((224, 224), 0.875, "bicubic"),
        ((224, 224), 0.9, "bicubic"),
        ((384, 384), 1.0, "bicubic"),
        ((224, 224), 1.0, "bilinear"),
        ((160, 224), 0.875, "bicubic"),
        ((223, 97), 0.95, "bilinear"),
    ],
)
def test_equals_timm(photographs, cls, size, crop_pct, resample):
    transform = create_transform((3, *size), crop_pct=crop_pct, interpolation=resample)
    fields = {"size": {"height": size[0], "width": size[1]}, "resample": PILImageResampling[resample.upper()]}
    for image in photographs:
        ours = process(cls, image, crop_pct=crop_pct, **fields, **IMAGENET)
        difference = ((transform(image) - ours) * torch.tensor(IMAGENET["image_std"])[:, None, None]).abs()
        if cls is VitfImageProcessorPil:
            assert difference.max() < 1e-5
        else:  # the backends round differently, twice; both roundings add up in a few samples of a million
            assert difference.max() < 2.01 * LEVEL
            assert (difference > 1.01 * LEVEL).float().mean() < 2e-5


@pytest.mark.parametrize("have", range(8, 16))
def test_odd_margins_are_split_as_in_torchvision(have):
    image = torch.arange(have * (have + 1)).view(1, have, have + 1)
    assert torch.equal(crop_centre(image, (8, 7)), CenterCrop((8, 7))(image))


@pytest.mark.parametrize("edges", [(427, 640), (640, 427), (97, 401), (300, 300)])
def test_resized_image_covers_the_crop(edges):
    for size in ((224, 224), (160, 224), (384, 128)):
        resized = covering_size(*edges, size, 0.875)
        assert all(have >= int(keep / 0.875) for have, keep in zip(resized, size, strict=True))


@pytest.mark.parametrize(
    ("cls", "native"), [(VitfImageProcessor, ViTImageProcessor), (VitfImageProcessorPil, ViTImageProcessorPil)]
)
@pytest.mark.parametrize("off", [{"crop_pct": None}, {"crop_pct": 0.9, "do_center_crop": False}])
def test_plain_resize_equals_transformers(photographs, cls, native, off):
    size = {"height": 224, "width": 160}
    for image in photographs:
        expected = native(size=size, resample=2)(image, return_tensors="pt").pixel_values[0]
        assert torch.equal(process(cls, image, size=size, resample=2, **off), expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_form_of_input_gives_the_same(photographs, cls, tmp_path):
    image = photographs[2]
    pixels = np.array(image)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    image.save(tmp_path / "image.png")
    forms = [
        pixels,
        pixels.transpose(2, 0, 1),
        pixels[:, ::-1].copy()[:, ::-1],
        read_only,
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        str(tmp_path / "image.png"),
    ]
    processor = cls(crop_pct=0.9)
    expected = processor(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, 3, 224, 224)
    assert expected.dtype == torch.float32
    for form in forms:
        assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor(forms, return_tensors="pt").pixel_values, expected.expand(len(forms), -1, -1, -1))
    assert torch.equal(
        processor(np.stack([pixels] * 2), return_tensors="pt").pixel_values, expected.expand(2, -1, -1, -1)
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_batches_mix_sizes(photographs, cls):
    processor = cls(crop_pct=0.9)
    together = processor(photographs, return_tensors="pt").pixel_values
    alone = [processor(image, return_tensors="pt").pixel_values[0] for image in photographs]
    assert torch.equal(together, torch.stack(alone))


def rotated(image: Image.Image) -> Image.Image:
    """The image lying on its side, with the EXIF tag that turns it upright."""
    side = image.transpose(Image.Transpose.ROTATE_90)
    side.getexif()[0x0112] = 6  # turn by 90 degrees clockwise
    return side


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)


def palette_with_transparency(image: Image.Image) -> Image.Image:
    palette = image.convert("P")
    palette.info["transparency"] = 7
    return palette


def on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.convert("L"))
    return image


# Name: (what is made of a photograph, what it means in RGB).
MODES = {
    "grey": (lambda i: i.convert("L"), lambda i: i.convert("L").convert("RGB")),
    "bits": (lambda i: i.convert("1"), lambda i: i.convert("1").convert("RGB")),
    "palette": (lambda i: i.convert("P"), lambda i: i.convert("P").convert("RGB")),
    "palette with transparency": (palette_with_transparency, lambda i: on_white(palette_with_transparency(i))),
    "RGBA": (with_alpha, lambda i: on_white(with_alpha(i))),
    "grey with alpha": (lambda i: with_alpha(i).convert("LA"), lambda i: on_white(with_alpha(i).convert("LA"))),
    "CMYK": (lambda i: i.convert("CMYK"), lambda i: i.convert("CMYK").convert("RGB")),
    "16 bits": (sixteen_bits, lambda i: i.convert("L").convert("RGB")),
    "EXIF": (rotated, lambda i: i),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_pillow(photographs, cls, mode):
    image = photographs[2]
    make, meaning = MODES[mode]
    ours, expected = process(cls, make(image), **RAW), process(cls, meaning(image), **RAW)
    # Pillow rounds an alpha composite in another way than the arithmetic that all forms of input share.
    composited = mode in ("palette with transparency", "RGBA", "grey with alpha")
    assert (ours - expected).abs().max() < (1.01 * LEVEL if composited else 1e-6)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("make", [with_alpha, sixteen_bits, lambda image: image.convert("1")])
def test_arrays_of_other_kinds_equal_pillow(photographs, cls, make):
    image = make(photographs[2])
    pixels = np.array(image)
    for form in (pixels, torch.from_numpy(pixels)):
        assert torch.equal(process(cls, form, **RAW), process(cls, image, **RAW))
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    assert torch.equal(process(cls, big_endian, **RAW), process(cls, image, **RAW))


@pytest.mark.parametrize("size", [(96, 128), (223, 97), (500, 640)])
@pytest.mark.parametrize("resample", PILImageResampling)
def test_backends_agree(photographs, resample, size):
    """Only by rounding: on photographs and on noise, 8 bits and floating point, smaller and larger than the image."""
    noise = np.random.default_rng(0).integers(0, 256, (101, 87, 3), dtype=np.uint8)
    for pixels in (np.array(photographs[2]), noise):
        fields = {"size": {"height": size[0], "width": size[1]}, "crop_pct": 0.9, "resample": resample}
        fields["do_normalize"] = False
        first, second = (process(cls, pixels, **fields) for cls in CLASSES)
        assert (first - second).abs().max() < 2.01 * LEVEL
        assert ((first - second).abs() > 1.01 * LEVEL).float().mean() < 1e-4
        exact = pixels.astype(np.float32) / 255
        first, second = (process(cls, exact, do_rescale=False, **fields) for cls in CLASSES)
        assert (first - second).abs().max() < 5e-5


@pytest.mark.parametrize("cls", CLASSES)
def test_floating_point(photographs, cls):
    image = with_alpha(photographs[2])
    ours = process(cls, np.array(image) / 255, do_rescale=False, **RAW)
    # torchvision rounds 8-bit images after each direction, and cuts off what bicubic interpolation overshoots
    assert (ours - process(cls, image, **RAW)).abs().mean() < LEVEL


@pytest.mark.parametrize("cls", CLASSES)
def test_floats_that_would_become_black_bring_a_warning(photographs, cls, monkeypatch):
    warnings = []
    monkeypatch.setattr(image_processing_pil_vitf.logger, "warning_once", warnings.append)
    pixels = np.array(photographs[2], dtype=np.float32)
    process(cls, pixels, **RAW)
    process(cls, pixels / 255, do_rescale=False, **RAW)
    assert not warnings
    process(cls, pixels / 255, **RAW)
    assert "do_rescale=False" in warnings[0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_numbers_of_channels(photographs, cls, channels):
    pixels = np.concatenate([np.array(image.resize((60, 50))) for image in photographs[:2]], axis=2)[..., :channels]
    mean, std = [0.1 * i for i in range(1, channels + 1)], [0.2] * channels
    fields = {"size": {"height": 30, "width": 40}, "crop_pct": 0.9}
    ours = process(cls, pixels, image_mean=mean, image_std=std, **fields)
    assert torch.equal(process(cls, pixels.transpose(2, 0, 1), image_mean=mean, image_std=std, **fields), ours)
    for band, m, s in zip(range(channels), mean, std, strict=True):
        alone = process(cls, pixels[..., band], image_mean=[m], image_std=[s], **fields)[0]
        assert (ours[band] - alone).abs().max() * s < 1.01 * LEVEL


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("image", "fields", "message"),
    [
        (np.zeros((50, 60, 5), np.uint8), {}, "shape (50, 60, 5) does not have 1 to 4 channels"),
        (
            np.zeros((50, 60, 3), np.uint8),
            {"image_mean": [0.5] * 5, "image_std": [0.5] * 5},
            "does not have 5 channels",
        ),
        (np.zeros((0, 60, 3), np.uint8), {}, "shape (0, 60, 3)"),
        (np.zeros((50, 60, 3), np.int64), {}, "torch.int64"),
        (np.full((50, 60, 4), 2.0), {}, "alpha"),
        (Image.new("F", (60, 50)), {}, "mode 'F'"),
        (Image.new("RGB", (60, 50)), {"do_resize": False, "crop_pct": 1.0}, "too small to be cropped to (224, 224)"),
    ],
)
def test_bad_images_are_named(cls, image, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        cls(**fields)(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_pcr": 0.9}, "unknown field 'crop_pcr'; did you mean 'crop_pct'?"),
        ({"size": 0}, "size needs a positive height and width"),
        ({"size": {"height": 224, "width": -1}}, "size needs a positive height and width"),
        ({"size": {"shortest_edge": 224}}, "size needs a positive height and width"),
        ({"crop_pct": 0}, "crop_pct=0"),
        ({"crop_pct": 1.5}, "crop_pct=1.5"),
        ({"crop_size": 224}, "crop_size is not used"),
        ({"image_mean": [0.5]}, "one value for each channel"),
        ({"resample": "bicubi"}, "did you mean 'bicubic'?"),
        ({"backend": "pill"}, "did you mean 'pil'?"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError) as caught:
        create_processor("vit_base_patch16_224", **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "loader", "backend"),
    [
        ("vit_base_patch16_224", AutoImageProcessor, "torchvision"),
        ("vit_base_patch16_224", AutoImageProcessor, "pil"),
        ("timesformer_base_k400", AutoVideoProcessor, "torchvision"),
    ],
)
def test_unknown_keys_of_a_processor_file_are_kept_with_a_warning(variant, loader, backend, tmp_path, caplog):
    processor = create_processor(variant, backend=backend)
    processor.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.json")
    own = {"optimum_version": "1.2", "my_note": {"a": 1}, "crop_pcr": 0.5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own, "to_dict": 3}))
    choice = {"backend": backend} if loader is AutoImageProcessor else {}
    logger.warning_once.cache_clear()
    loaded = [loader.from_pretrained(tmp_path, **choice) for _ in range(2)][1]
    for name in own:
        assert sum(f"key {name!r}" in record.getMessage() for record in caplog.records) == 1, name
    assert "Did you mean 'crop_pct'?" in caplog.text
    assert loaded.crop_pct == processor.crop_pct
    loaded.save_pretrained(tmp_path)
    assert json.loads(path.read_text()) == {**json.loads(processor.to_json_string()), **own}
    with pytest.raises(ValueError, match="unknown field 'crop_pcr'; did you mean 'crop_pct'"):
        type(processor)(crop_pcr=0.5)


def test_unknown_variant_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'vit_base_patch16_224'"):
        create_processor("vit_base_patch16_225")


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_of_a_call_equal_those_of_a_processor(photographs, cls):
    image, fields = photographs[0], {"size": {"height": 96, "width": 128}, "crop_pct": 0.8, "resample": 2}
    for change in (fields, {**fields, "crop_pct": None}, {"do_center_crop": False}):
        called = cls(crop_pct=0.9)(image, return_tensors="pt", **change).pixel_values[0]
        assert torch.equal(called, process(cls, image, **{"crop_pct": 0.9, **change}))
    with pytest.raises(ValueError, match="crop_pct=2"):
        cls()(image, crop_pct=2)


@pytest.mark.parametrize("name", list_variants())
def test_variant_gives_its_preprocessing(name):
    processor = create_processor(name)
    expected = find_variant(name).config_class.preprocessing(name)
    assert (processor.size.height, processor.size.width) == expected["image_size"]
    assert processor.crop_pct == expected["crop_pct"]
    assert processor.resample == PILImageResampling[expected["resample"].upper()]
    assert processor.image_mean == tuple(expected["image_mean"])
    assert processor.image_std == tuple(expected["image_std"])


@pytest.mark.parametrize(("backend", "cls"), [("torchvision", VitfImageProcessor), ("pil", VitfImageProcessorPil)])
@pytest.mark.parametrize("crop_pct", [0.8, None])
def test_saved_and_loaded(photographs, tmp_path, backend, cls, crop_pct):
    processor = create_processor("deit_tiny_patch16_224", backend, size=96, crop_pct=crop_pct, resample="bilinear")
    assert type(processor) is cls
    processor.save_pretrained(tmp_path)
    expected = processor(photographs[0], return_tensors="pt").pixel_values
    by_default = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(by_default) is VitfImageProcessor
    for loaded in (cls.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path, backend=backend)):
        assert type(loaded) is cls
        assert loaded.to_dict() == processor.to_dict() == by_default.to_dict()
        assert torch.equal(loaded(photographs[0], return_tensors="pt").pixel_values, expected)
    changed = AutoImageProcessor.from_pretrained(tmp_path, backend=backend, crop_pct=0.7)
    assert changed.crop_pct == 0.7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_model_type_finds_the_processor(name, tmp_path):
    config = tiny_config(name)
    config.save_pretrained(tmp_path)
    modality = modality_of(config)
    (tmp_path / modality.file).write_text('{"crop_pct": 0.7}')
    for backend, cls in modality.processors.items():
        processor = modality.auto_processor.from_pretrained(tmp_path, backend=backend)
        assert type(processor) is cls
        assert processor.crop_pct == 0.7


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_pipeline(photographs, backend):
    model = tiny_model("vit")
    processor = create_processor("vit_base_patch16_224", backend, size=32)
    results = pipeline("image-classification", model=model, image_processor=processor)(photographs[0], top_k=5)
    with torch.no_grad():
        probabilities = model(**processor(photographs[0], return_tensors="pt")).logits[0].softmax(-1)
    assert {r["label"]: pytest.approx(r["score"], abs=1e-6) for r in results} == {
        model.config.id2label[i]: value for i, value in enumerate(probabilities.tolist())
    }


def test_without_torchvision(tmp_path):
    create_processor("vit_base_patch16_224").save_pretrained(tmp_path)
    code = """
import sys
sys.modules["torchvision"] = None  # import torchvision raises, find_spec finds nothing
import numpy as np
from transformers import AutoImageProcessor
import hf_vit_family
image = np.arange(50 * 60 * 3, dtype=np.uint8).reshape(50, 60, 3)
made = hf_vit_family.create_processor("vit_base_patch16_224")
for processor in (made, AutoImageProcessor.from_pretrained(sys.argv[1])):
    assert type(processor).__name__ == "VitfImageProcessorPil", type(processor)
    np.save(sys.argv[1] + "/pixels.npy", processor(image, return_tensors="np").pixel_values)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = np.arange(50 * 60 * 3, dtype=np.uint8).reshape(50, 60, 3)
    expected = create_processor("vit_base_patch16_224", "pil")(image, return_tensors="np").pixel_values
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), expected)
