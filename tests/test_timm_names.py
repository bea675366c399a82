"""
Every published name of timm's classes: what it stands for, its checkpoint as it lies on the Hub, and the way back.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm_models import CLASSES, FOREIGN_NAMES, NAMES, cut, entry, hub_folder, refusal, small_names
from vit_family_launcher import main

from hf_vit_family.conversion.convert import as_lists, convert_checkpoint, export_checkpoint, find_layout
from hf_vit_family.conversion.timm_source import timm_model
from hf_vit_family.conversion_scripts.timm_variants import timm_vit_arguments
from hf_vit_family.errors import ConversionError
from hf_vit_family.registry import get_architecture

KNOWN = [name for name in NAMES if refusal(name) is None]


def _spelled(value):
    """A class or a partial function as the tables spell it."""
    if hasattr(value, "func"):
        name = getattr(value.func, "__name__", "")
        return "SwiGLUPacked" if name == "GluMlp" else f"{name}(eps={value.keywords['eps']:g})".replace("e-0", "e-")
    if isinstance(value, type):
        return {"SiLU": "silu"}.get(value.__name__, value.__name__)
    return as_lists(value)


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_stands_for_the_arguments_that_timm_passes(name):
    _, theirs = entry(name)
    ours = timm_model({"architecture": name}).arguments
    if timm_vit_arguments(name) is not None:
        extra = {"embed_layer", "pretrained_strict", "dynamic_img_size"}
        assert set(theirs) - set(ours) <= extra, "an argument that the table does not have"
    for argument, value in theirs.items():
        if argument not in ours or argument == "embed_layer":
            continue
        if argument == "mlp_ratio" and "embed_dim" in theirs and isinstance(value, int | float):
            width = theirs["embed_dim"]
            assert int(width * value) == int(width * ours[argument])
        elif argument == "init_values":
            assert bool(value) == bool(ours[argument])
        elif argument == "img_scale":
            assert value[1] == pytest.approx(ours[argument][1], abs=1e-6)
        else:
            assert _spelled(value) == as_lists(ours[argument]), argument


def _check(name, folder, theirs):
    """Checks that a folder is converted without a hint and is equal, and that what is written back is equal in timm."""
    config = json.loads((folder / "config.json").read_text())
    ours, report = convert_checkpoint(folder)
    size = timm_model(config).arguments.get("img_size", config["pretrained_cfg"]["input_size"][1:])
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, outputs = theirs(pixels), ours(pixels)
        logits = outputs.logits if report.head.startswith("For") else outputs.pooler_output
    assert (expected - logits).abs().max() < 1e-12 * expected.abs().max()
    # The conversion to and fro is bit exact, so the weights of the way back are those of the file.
    layout = find_layout(get_architecture(report.architecture), ours.config, report.layout)[1]
    native = json.loads(json.dumps(layout.native_config(ours)))
    again = timm.create_model(native["architecture"], **native["model_args"]).double().eval()
    again.load_state_dict(export_checkpoint(ours, report.layout))
    with torch.no_grad():
        assert (again(pixels) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in KNOWN if cut(name) is not None])
def test_a_hub_folder_with_model_args_converts_and_goes_back(name, tmp_path):
    _check(name, tmp_path, hub_folder(name, tmp_path, **cut(name)))


# LeViT's names without published weights, which people train themselves and push.
_UNPUBLISHED = [name for name in timm.list_models("levit*") if name not in NAMES]


@pytest.mark.parametrize("name", _UNPUBLISHED)
def test_levit_of_a_name_without_published_weights_converts_and_goes_back(name, tmp_path):
    _check(name, tmp_path, hub_folder(name, tmp_path, depth=[1, 1, 1]))


@pytest.mark.parametrize("name", small_names())
def test_a_hub_folder_without_model_args_converts_and_goes_back(name, tmp_path):
    model = hub_folder(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("model_args", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    _check(name, tmp_path, model)


@pytest.mark.parametrize("name", [*FOREIGN_NAMES, *(name for name in NAMES if name not in KNOWN)])
def test_another_family_is_refused_by_its_own_name(name):
    assert "not in this library" in refusal(name)


def test_weights_that_lack_a_layer_of_the_named_model_are_refused(tmp_path):
    arguments = cut("vit_tiny_patch16_224")
    hub_folder("vit_tiny_patch16_224", tmp_path, **arguments)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"blocks\.2\."):
        convert_checkpoint(tmp_path)


def test_timms_name_as_the_variant_tells_what_bare_weights_do_not(tmp_path):
    name = "vit_base_patch32_clip_quickgelu_224"
    model = hub_folder(name, tmp_path / "folder", embed_dim=96, depth=12, img_size=224)
    bare = tmp_path / "bare.safetensors"
    (tmp_path / "folder" / "model.safetensors").rename(bare)
    with pytest.raises(ConversionError, match="--variant"):
        convert_checkpoint(bare)
    arguments = ["convert", str(bare), "--output", str(tmp_path / "out"), "--variant", name]
    assert main([*arguments, "--set", "hidden_size=96"]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["hidden_act"], written["num_attention_heads"]) == ("quick_gelu", 12)
    assert model.blocks[0].attn.num_heads == 12


_LABELS = {
    "list": (["n01", "n02", "n03"], None, ["n01", "n02", "n03"]),
    "descriptions": (["n01", "n02", "n03"], {"n01": "cat", "n02": "dog"}, ["cat", "dog", "n03"]),
    "described twice": (["n01", "n02", "n03"], {"n01": "crane", "n02": "crane"}, ["crane (n01)", "crane (n02)", "n03"]),
    "numbers with gaps": ({"0": "n01", "2": "n03"}, {"n03": "bird"}, ["n01", "LABEL_1", "bird"]),
    "too few": (["n01", "n02"], None, None),
    "numbers beyond": ({"0": "n01", "3": "n04"}, None, None),
}


@pytest.mark.parametrize("place", ["top", "pretrained_cfg", "labels"])
@pytest.mark.parametrize("kind", _LABELS)
def test_the_names_of_classes_are_those_of_timms_config(kind, place, tmp_path):
    names, descriptions, expected = _LABELS[kind]
    hub_folder("vit_tiny_patch16_224", tmp_path, num_classes=3, **cut("vit_tiny_patch16_224"))
    config = json.loads((tmp_path / "config.json").read_text())
    entries = {"labels" if place == "labels" else "label_names": names, "label_descriptions": descriptions}
    (config["pretrained_cfg"] if place == "pretrained_cfg" else config).update(entries)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, report = convert_checkpoint(tmp_path)
    labels = model.config.id2label
    assert [labels[i] for i in range(3)] == (expected or [f"LABEL_{i}" for i in range(3)])
    assert {name: i for i, name in labels.items()} == model.config.label2id
    assert any("label_names" in note for note in report.notes) == (expected is None)


def test_the_names_of_classes_go_back_to_timm(tmp_path):
    hub_folder("vit_tiny_patch16_224", tmp_path / "timm", num_classes=2, **cut("vit_tiny_patch16_224"))
    path = tmp_path / "timm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_names": ["cat", "dog"]}))
    assert main(["convert", str(tmp_path / "timm"), "--output", str(tmp_path / "ours")]) == 0
    assert main(["convert", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "timm"]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["label_names"] == ["cat", "dog"]


def test_convit_without_positions_converts_and_goes_back(tmp_path):
    model = hub_folder("convit_tiny", tmp_path, **cut("convit_tiny"), use_pos_embed=False)
    _check("convit_tiny", tmp_path, model)
    bare = model.state_dict()
    with pytest.raises(ConversionError, match="image_size is not told"):
        convert_checkpoint(bare)
    ours, report = convert_checkpoint(bare, image_size=32)
    assert (report.layout, ours.config.position_embedding_type) == ("original", "none")


# Names of another family whose files have the very keys and shapes of one that is here.
@pytest.mark.parametrize("name", ["vit_small_patch16_rope_ape_224", "vit_base_patch16_rope_ape_224"])
def test_bare_weights_with_the_keys_of_two_families_are_asked_about(name, tmp_path):
    state_dict = timm.create_model(name, depth=1, embed_dim=64, num_heads=4, img_size=32).state_dict()
    with pytest.raises(ConversionError, match=r"two readings fit.*rotary positions.*--layout original_deit3"):
        convert_checkpoint(state_dict, num_attention_heads=4)
    with pytest.raises(ConversionError, match="two readings fit"):  # both are called ViT
        convert_checkpoint(state_dict, "vit", num_attention_heads=4)
    for stem, family in ((name, "rotary positions"), ("rope_axial_ape_deit_small_patch16_LS", "naver-ai/rope-vit")):
        torch.save({"model": state_dict}, tmp_path / f"{stem}.pth")
        with pytest.raises(ConversionError, match=f"this is a ViT.*{family}.*not in this library"):
            convert_checkpoint(tmp_path / f"{stem}.pth", num_attention_heads=4)
    torch.save({"model": state_dict}, tmp_path / "deit_3_small_224_1k.pth")
    for told in ({"layout": "original_deit3"}, {"original_kwargs": {"num_heads": 4}}):
        assert convert_checkpoint(state_dict, num_attention_heads=4, **told)[1].layout == "original_deit3"
    _, report = convert_checkpoint(tmp_path / "deit_3_small_224_1k.pth", num_attention_heads=4)
    assert report.layout == "original_deit3"


def test_an_image_vit_under_a_trainers_prefix_is_asked_about(tmp_path):
    model = hub_folder("vit_tiny_patch16_224", tmp_path, **cut("vit_tiny_patch16_224"))
    nested = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    with pytest.raises(ConversionError, match="two readings"):
        convert_checkpoint(nested)


def test_what_is_not_recognised_is_compared_with_its_own_kind_of_file():
    with pytest.raises(ConversionError) as error:
        convert_checkpoint({"conv.weight": torch.zeros(2, 3, 4, 4), "fc.weight": torch.zeros(2, 2)})
    assert "the nearest is" in str(error.value)
    assert "/" not in str(error.value)
    assert str(error.value).count("no key like") == 3


def test_every_class_has_a_name():
    assert {entry(name)[0] for name in NAMES} == set(CLASSES)


def count() -> str:
    """Counts the names that convert, as the README says it."""
    return (
        f"timm {timm.__version__} publishes {len(NAMES)} architectures in the classes that this library "
        f"has: {len(KNOWN)} convert from their folders on the Hub without a hint and go "
        f"back, {len(NAMES) - len(KNOWN)} are refused"
    )


def test_the_readme_counts_what_converts():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert count() in " ".join(readme.split())


if __name__ == "__main__":
    print(count())
