"""Folders of transformers' own models: converted, compared with the library that wrote them, and written back to it."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from vit_family_launcher import main

from hf_vit_family import ARCHITECTURES
from hf_vit_family.conversion.checkpoint_files import CheckpointFile
from hf_vit_family.conversion.convert import convert_checkpoint
from hf_vit_family.conversion.parity import compare
from hf_vit_family.conversion.preprocessing import find_preprocessing, write_preprocessing
from hf_vit_family.errors import ConversionError
from hf_vit_family.loading import load_saved_model
from hf_vit_family.publishing.cards import Conversion
from hf_vit_family.variants import make_processor

_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 3,
}
_MASKED = {**_VIT, "encoder_stride": 8}
_MAE = {
    **_VIT,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 16,
}
_DINO = {**{name: value for name, value in _VIT.items() if name != "intermediate_size"}, "mlp_ratio": 2}
_GATED = {**_DINO, "use_swiglu_ffn": True}
_VIDEO = {**_VIT, "num_frames": 3}
_VIVIT = {**{name: value for name, value in _VIT.items() if name != "patch_size"}, "num_frames": 4}
_VIVIT["tubelet_size"] = [2, 8, 8]
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
    "encoder_stride": 8,
    "num_labels": 3,
}
_SWINV2 = {**_SWIN, "pretrained_window_sizes": [2, 0, 0]}
_CVT = {
    "patch_sizes": [7, 3, 3],
    "embed_dim": [8, 16, 24],
    "num_heads": [1, 2, 3],
    "depth": [1, 2, 3],
    "mlp_ratio": [2.0, 2.0, 2.0],
    "num_labels": 3,
}
_LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [1, 2, 3],
    "depths": [1, 2, 1],
    "key_dim": [8, 8, 8],
    "num_labels": 3,
}
_PYRAMID = {
    "image_size": 64,
    "depths": [1, 2, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "num_labels": 3,
}
_PVT = {**_PYRAMID, "sequence_reduction_ratios": [4, 2, 2, 1]}
_PVT_V2 = {**_PYRAMID, "sr_ratios": [4, 2, 2, 1]}
_TOWER = {name: value for name, value in _VIT.items() if name != "num_labels"}
_TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_WHOLE = {"vision_config": _TOWER, "text_config": _TEXT, "num_labels": 3}

# Class of transformers, fields of its configuration, and the class that is written back where it is another.
CASES = [
    ("ViTForImageClassification", _VIT),
    ("ViTForImageClassification", {**_VIT, "qkv_bias": False}),
    ("ViTModel", {**_VIT, "pooler_output_size": 20}),
    ("ViTForMaskedImageModeling", _MASKED),
    ("ViTMSNForImageClassification", _VIT, "ViTForImageClassification"),
    ("ViTMSNModel", _VIT),
    ("DeiTForImageClassification", _VIT),
    ("DeiTForImageClassificationWithTeacher", _VIT),
    ("DeiTForMaskedImageModeling", _MASKED),
    ("DeiTModel", _VIT),
    ("ViTMAEModel", _MAE, "ViTMSNModel"),
    ("ViTMAEForPreTraining", _MAE),
    ("ViTMAEForPreTraining", {**_MAE, "norm_pix_loss": True, "qkv_bias": False, "mask_ratio": 0.5}),
    ("IJepaForImageClassification", _VIT),
    ("IJepaModel", _VIT),
    ("Dinov2ForImageClassification", _DINO),
    ("Dinov2ForImageClassification", {**_GATED, "image_size": 35}),
    ("Dinov2Model", _DINO),
    ("Dinov2Model", {**_GATED, "use_mask_token": False}),
    ("Dinov2WithRegistersForImageClassification", _GATED),
    ("Dinov2WithRegistersModel", {**_DINO, "num_register_tokens": 2}),
    ("CLIPVisionModel", _TOWER),
    ("CLIPVisionModel", {**_TOWER, "hidden_act": "gelu"}),
    ("CLIPVisionModelWithProjection", {**_TOWER, "projection_dim": 8}, "CLIPVisionModel"),
    ("CLIPModel", {**_WHOLE, "projection_dim": 8}, "CLIPVisionModel"),
    ("CLIPForImageClassification", _WHOLE),
    ("SiglipVisionModel", _TOWER),
    ("SiglipVisionModel", {**_TOWER, "image_size": 36}),
    ("SiglipVisionModel", {**_TOWER, "vision_use_head": False}),
    ("SiglipModel", _WHOLE, "SiglipVisionModel"),
    ("SiglipForImageClassification", _WHOLE),
    ("SwinForImageClassification", {**_SWIN, "use_absolute_embeddings": True}),
    ("SwinModel", {**_SWIN, "qkv_bias": False}),
    ("SwinForMaskedImageModeling", _SWIN),
    ("Swinv2ForImageClassification", _SWINV2),
    ("Swinv2Model", _SWINV2),
    ("Swinv2ForMaskedImageModeling", _SWINV2),
    ("CvtForImageClassification", _CVT),
    ("LevitForImageClassification", _LEVIT),
    ("LevitForImageClassificationWithTeacher", _LEVIT),
    ("LevitModel", _LEVIT),
    ("PvtForImageClassification", _PVT),
    ("PvtModel", _PVT),
    ("PvtV2ForImageClassification", _PVT_V2),
    ("PvtV2ForImageClassification", {**_PVT_V2, "linear_attention": True}),
    ("PvtV2ForImageClassification", {**_PVT_V2, "patch_sizes": [3, 3, 3, 3], "strides": [2, 2, 2, 2]}),
    ("PvtV2Model", _PVT_V2),
    ("TimesformerForVideoClassification", _VIDEO),
    ("TimesformerForVideoClassification", {**_VIDEO, "attention_type": "joint_space_time"}),
    ("TimesformerModel", _VIDEO),
    ("VivitForVideoClassification", _VIVIT),
    ("VivitModel", _VIVIT),
]


def name_of(case) -> str:
    """Of a test: the class, and the values that are no sizes."""
    options = [f"{key}={value}" for key, value in case[1].items() if isinstance(value, bool | str)]
    return "-".join([case[0], *options])


def make_peer(class_name: str, fields: dict):
    """A model of transformers in float64, with every tensor random, what batch norms counted included."""
    peer_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    peer = peer_class(peer_class.config_class(**fields)).double().eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(std=0.2)
        for name, buffer in peer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return peer


def outputs(model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, or pixels that are predicted for every second patch, or else what the encoder gives."""
    arguments = {}
    name = type(model).__name__
    if name.endswith("ForMaskedImageModeling"):
        patches = pixel_values.shape[-1] // (2 if "swin" in name.lower() else 8)
        arguments["bool_masked_pos"] = (torch.arange(patches**2) % 2 == 0).expand(len(pixel_values), -1)
    elif name in ("CLIPModel", "SiglipModel", "CLIPVisionModelWithProjection"):
        model = model.vision_model
    elif name.endswith("ForPreTraining"):
        arguments["noise"] = torch.rand(len(pixel_values), 16, generator=torch.Generator().manual_seed(0))
    elif name == "ViTMAEModel":
        model.config.mask_ratio = 0.0
        arguments["noise"] = torch.arange(16).expand(len(pixel_values), -1)
    with torch.no_grad():
        result = model(pixel_values, **arguments)
    names = ("logits", "cls_logits", "distillation_logits", "reconstruction", "pooler_output", "last_hidden_state")
    if name.endswith("ForPreTraining"):
        names += ("loss", "mask", "ids_restore")
    found = {key: result[key] for key in names if result.get(key) is not None}
    if name == "PvtV2Model":  # a map
        found["last_hidden_state"] = found["last_hidden_state"].flatten(2).mT
    if name == "TimesformerModel":  # the frames of a patch one after the other
        token, patches = found["last_hidden_state"][:, :1], found["last_hidden_state"][:, 1:]
        patches = patches.unflatten(1, (-1, pixel_values.shape[1])).transpose(1, 2).flatten(1, 2)
        found["last_hidden_state"] = torch.cat((token, patches), dim=1)
    return found


def check_equal(model, peer, pixel_values: torch.Tensor) -> None:
    """All outputs that the peer has are equal to 1e-12 of their scale."""
    ours, theirs = outputs(model, pixel_values), outputs(peer, pixel_values)
    assert theirs
    assert theirs.keys() <= ours.keys()
    parity = compare({key: ours[key] for key in theirs}, theirs, tolerance=1e-12)
    assert parity.passed, parity


@pytest.mark.parametrize("original_names", [True, False], ids=["files", "memory"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_folder_comes_and_goes_back(tmp_path, case, original_names):
    class_name, fields, *others = case
    peer = make_peer(class_name, fields)
    peer.save_pretrained(tmp_path / "theirs", save_original_format=original_names)
    assert main(["convert", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    assert Conversion.read(tmp_path / "ours").parity <= 1e-6
    model = load_saved_model(str(tmp_path / "ours")).double().eval()
    pixel_values = torch.randn(2, *model.config.input_shape, dtype=torch.float64)
    check_equal(model, peer, pixel_values)

    back = tmp_path / "back"
    assert main(["convert", str(tmp_path / "ours"), "--to", "transformers", "--output", str(back)]) == 0
    written = json.loads((back / "config.json").read_text())["architectures"]
    assert written == (others or [class_name])
    again, loading = getattr(transformers, written[0]).from_pretrained(
        back, dtype=torch.float64, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    check_equal(model, again.eval(), pixel_values)


def test_what_a_config_leaves_out_has_transformers_default(tmp_path):
    """Version 4 wrote what differs from the defaults of its day, and lacked fields that later versions have."""
    kept = ("model_type", "architectures", "image_size", "patch_size", "hidden_size", "num_hidden_layers")
    for class_name, fields in [("ViTForImageClassification", _VIT), ("CLIPModel", _WHOLE), ("Dinov2Model", _DINO)]:
        folder = tmp_path / class_name
        fields = {**fields, "vision_config": {**_TOWER}} if "vision_config" in fields else fields
        sizes = fields.get("vision_config", fields)
        sizes |= {"num_attention_heads": 12, "hidden_size": 48} | (
            {"intermediate_size": 3072} if "mlp_ratio" not in sizes else {"mlp_ratio": 4}
        )
        peer = make_peer(class_name, fields)
        peer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        if "vision_config" in config:
            config["vision_config"] = {name: config["vision_config"][name] for name in kept if name in sizes}
            config = {name: config[name] for name in ("model_type", "vision_config")}
        else:
            config = {name: config[name] for name in kept}
        (folder / "config.json").write_text(json.dumps(config))
        model, _ = convert_checkpoint(folder)
        check_equal(model, peer, torch.randn(2, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize(
    ("class_name", "fields", "message"),
    [
        ("BeitForImageClassification", _VIT, r"this is BEiT \(transformers' BeitForImageClassification\); not in"),
        ("Data2VecVisionModel", _VIT, "this is data2vec for images .*; not in this library"),
        ("DINOv3ViTModel", _VIT, r"this is DINOv3 \(transformers' DINOv3ViTModel\); not in"),
        ("VideoMAEForVideoClassification", {**_VIT, "num_frames": 4}, "this is VideoMAE .*; not in this library"),
        ("ConvNextModel", {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}, "this is ConvNext .*; not in"),
        ("CvtModel", _CVT, r"this is Cvt \(transformers' CvtModel\); .* Convert a CvtForImageClassification"),
        ("PvtV2Model", {**_PVT_V2, "patch_sizes": [5, 3, 3, 3]}, "strides"),
        ("PvtV2Model", {**_PVT_V2, "strides": [2, 2, 2, 2]}, "strides"),
        ("PvtModel", {**_PVT, "strides": [4, 2, 2, 1]}, "strides"),
        ("ViTModel", {**_VIT, "pooler_act": "relu"}, "pooler_act"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_name(tmp_path, class_name, fields, message):
    make_peer(class_name, fields).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(tmp_path)


def test_an_unknown_model_type_is_refused_by_its_name(tmp_path):
    make_peer("ViTModel", _VIT).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "model_type": "vit2030",
        "architectures": ["ViT2030"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConversionError, match=r"this is a model of model_type='vit2030' \(ViT2030\); not in this library"
    ):
        convert_checkpoint(tmp_path)


def test_frames_of_a_space_only_timesformer_are_averaged_with_a_note(tmp_path, capsys):
    """transformers gives logits for each frame: equal for clips of one frame, and no model that it could give back."""
    fields = {**_VIDEO, "attention_type": "space_only"}
    peer = make_peer("TimesformerForVideoClassification", fields)
    peer.save_pretrained(tmp_path / "theirs")
    assert main(["convert", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    told = capsys.readouterr().out
    assert "averages frames before the last norm" in told
    assert "not compared" in told
    model = load_saved_model(str(tmp_path / "ours")).double().eval()
    check_equal(model, peer, torch.randn(2, 1, 3, 32, 32, dtype=torch.float64))
    assert main(["convert", str(tmp_path / "ours"), "--to", "transformers", "--output", str(tmp_path / "back")]) == 2
    assert "logits for each frame" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("class_name", "fields", "left_out"),
    [
        ("Dinov2Model", _DINO, "the mask token of pre-training"),
        ("CLIPModel", _WHOLE, "the text encoder"),
        ("SiglipForImageClassification", _WHOLE, "the pooling by attention"),
    ],
)
def test_what_is_left_out_is_said(tmp_path, class_name, fields, left_out):
    make_peer(class_name, fields).save_pretrained(tmp_path)
    _, report = convert_checkpoint(tmp_path)
    assert any(note.startswith(f"left out {left_out}") for note in report.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Processors

SIZES = [(61, 47), (47, 61), (39, 95), (101, 37), (63, 63), (77, 43), (51, 53), (129, 65), (45, 99), (37, 39)]


def images() -> list[np.ndarray]:
    """Ten images of odd sizes, smooth with edges and some noise, as photographs are."""
    generator = np.random.default_rng(0)
    result = []
    for height, width in SIZES:
        coarse = Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((width, height), 3)
        noise = generator.integers(-12, 13, (height, width, 3))
        result.append(np.clip(np.asarray(coarse, np.int64) + noise, 0, 255).astype(np.uint8))
    return result


def processor_from(architecture: str, metadata: dict, preprocessor: dict):
    """Ours, for a folder with this config.json and this file of its processor."""
    file = CheckpointFile({}, metadata=metadata, preprocessor=preprocessor)
    found = ARCHITECTURES[architecture]
    return make_processor(find_preprocessing(file, found, found.config_class(), None))


def check_pixels(ours: torch.Tensor, theirs: torch.Tensor, std) -> None:
    """Within 2/255 in pixel units."""
    assert ours.shape == theirs.shape
    scale = torch.tensor(list(std), dtype=theirs.dtype)[:, None, None]
    assert ((ours - theirs).abs() * scale).max() <= 2 / 255 + 1e-6


_CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
# Architecture, model type, class of its processor, fields of that.
PROCESSORS = [
    ("vit", "vit", "ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("vit", "vit", "ViTImageProcessor", {"size": {"height": 32, "width": 48}, "do_normalize": False}),
    ("vit", "dinov2", "BitImageProcessor", _CROP),
    ("vit", "clip", "CLIPImageProcessor", {**_CROP, "size": {"shortest_edge": 32}}),
    ("vit", "siglip", "SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("deit", "deit", "DeiTImageProcessor", {**_CROP, "size": {"height": 36, "width": 36}}),
    ("swin", "swin", "ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 3}),
    ("pvt", "pvt", "PvtImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("cvt", "cvt", "ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ("cvt", "cvt", "ConvNextImageProcessor", {"size": {"shortest_edge": 36}, "crop_pct": 0.95}),
    ("cvt", "cvt", "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("levit", "levit", "LevitImageProcessor", {**_CROP, "size": {"shortest_edge": 32}}),
    ("levit", "levit", "LevitImageProcessor", {**_CROP, "size": {"shortest_edge": 35}}),
    ("timesformer", "timesformer", "VideoMAEImageProcessor", _CROP),
    ("timesformer", "timesformer", "TimesformerVideoProcessor", _CROP),
    ("vivit", "vivit", "VivitImageProcessor", _CROP),
    ("vivit", "vivit", "VivitImageProcessor", {**_CROP, "offset": False, "rescale_factor": 1 / 255}),
    ("vivit", "vivit", "VivitVideoProcessor", _CROP),
]


def prepared(processor, image: np.ndarray) -> torch.Tensor:
    """Processes an image, or a clip of two frames that are alike: (C, H, W)."""
    name = type(processor).__name__
    if "Video" in name and name != "VideoMAEImageProcessor":
        clip = torch.from_numpy(np.stack([image, image])).permute(0, 3, 1, 2)
        return processor([clip], do_sample_frames=False, return_tensors="pt")["pixel_values"][0, 0]
    if name in ("VivitImageProcessor", "VideoMAEImageProcessor"):
        return processor([image, image], return_tensors="pt")["pixel_values"][0, 0]
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize(("architecture", "model_type", "class_name", "fields"), PROCESSORS)
def test_a_processor_of_transformers_comes_and_goes_back(tmp_path, architecture, model_type, class_name, fields):
    theirs = getattr(transformers, class_name)(**fields)
    theirs.save_pretrained(tmp_path)
    (written,) = tmp_path.glob("*preprocessor_config.json")
    ours = processor_from(architecture, {"model_type": model_type}, json.loads(written.read_text()))
    back = tmp_path / "back"
    back.mkdir()
    write_preprocessing(ours, {"model_type": model_type}, back)
    auto = transformers.AutoVideoProcessor if "num_frames" in vars(ours) else transformers.AutoImageProcessor
    again = auto.from_pretrained(back)
    for image in images():
        expected = prepared(theirs, image)
        check_pixels(prepared(ours, image), expected.float(), ours.image_std)
        check_pixels(prepared(again, image).float(), expected.float(), ours.image_std)


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": [3, 32, 32], "crop_pct": 0.875, "interpolation": "bilinear"},
        {"input_size": [3, 32, 40], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3},
        {"input_size": [3, 32, 32], "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": [3, 33, 33], "crop_pct": 0.9, "crop_mode": "squash"},
        {"input_size": [3, 32, 32], "crop_pct": 1.0, "crop_mode": "border"},
        {"input_size": [3, 33, 36], "crop_pct": 0.9, "crop_mode": "border"},
        {"input_size": [3, 32, 32]},
    ],
)
def test_a_processor_of_timm_comes_and_goes_back(tmp_path, config):
    """Of an architecture whose weights do not tell the size, as CvT's; the defaults are timm's."""
    ours = processor_from("cvt", {"architecture": "none", "pretrained_cfg": config}, {})
    again = write_preprocessing(ours, {"architecture": "none"}, tmp_path)["pretrained_cfg"]
    for each in (config, again):
        transform = create_transform(**resolve_data_config(pretrained_cfg=each))
        for image in images():
            check_pixels(prepared(ours, image), transform(Image.fromarray(image)), ours.image_std)


def test_old_files_of_processors_are_read_by_the_defaults_of_their_class():
    """As transformers 4.2x wrote them: a feature extractor, sizes as one number."""
    preprocessor = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "image_mean": [0.5] * 3, "resample": 2}
    ours = processor_from("vit", {"model_type": "vit"}, preprocessor)
    assert (dict(ours.size), ours.crop_pct, ours.resample) == ({"height": 32, "width": 32}, None, 2)


def test_a_processor_without_a_fixed_size_is_refused():
    preprocessor = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 32}}
    with pytest.raises(ConversionError, match="no fixed size"):
        processor_from("vit", {"model_type": "vit"}, preprocessor)
