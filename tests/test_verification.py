"""
`vit-family convert --verify`: a converted model compared with the same checkpoint in its own library, and what the
card says.
"""

import json
from importlib.metadata import version
from pathlib import Path

import golden
import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from vit_family_launcher import main
from vit_pytorch import SimpleViT, ViT
from vit_pytorch.rvt import RvT

from hf_vit_family.conversion.parity import Parity
from hf_vit_family.conversion.verification import NotComparedError, relative_difference
from hf_vit_family.loading import load_saved_model
from hf_vit_family.publishing.cards import FACTS, Conversion, make_card


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def verify(source: Path, output: Path, *options: str) -> tuple[Conversion, str]:
    """Converts with --verify: the facts, and the card as one line."""
    assert main(["convert", str(source), "--output", str(output), "--verify", *options]) == 0
    facts = Conversion.read(output)
    card = make_card(load_saved_model(str(output)), {**dict.fromkeys(FACTS), Conversion: facts}, "someone/model")
    return facts, " ".join(card.content.split())


def check_equal(facts: Conversion, card: str, library: str) -> None:
    assert facts.parity <= 1e-6
    assert f"{library} {version(library)}" in facts.parity_method
    assert f"{facts.parity:.3g} ({facts.parity_method})" in card


_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
_TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
    "num_classes": 5,
}


def timm_folder(folder: Path, name: str, arguments: dict) -> Path:
    folder.mkdir()
    model = randomise(timm.create_model(name, **arguments))
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "model_args": arguments, "num_classes": 5, "pretrained_cfg": {"crop_pct": 0.9}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_base_patch16_224", _TIMM),
        ("deit3_base_patch16_224", _TIMM),
        ("deit_base_distilled_patch16_224", _TIMM),
        ("cait_s24_224", _TIMM),
        ("convit_base", _TIMM | {"embed_dim": 8, "local_up_to_layer": 1}),
        ("swin_tiny_patch4_window7_224", _TIMM_SWIN),
        ("swinv2_tiny_window8_256", _TIMM_SWIN | {"pretrained_window_sizes": [2, 4, 0]}),
    ],
)
def test_folders_of_timm(tmp_path, name, arguments):
    folder = timm_folder(tmp_path / "theirs", name, arguments)
    facts, card = verify(folder, tmp_path / "ours")
    check_equal(facts, card, "timm")


_NATIVE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_NATIVE_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}


@pytest.mark.parametrize(
    ("peer_class", "fields"),
    [
        ("ViTForImageClassification", _NATIVE),
        ("ViTModel", _NATIVE),
        ("DeiTForImageClassificationWithTeacher", _NATIVE),
        ("SwinForImageClassification", _NATIVE_SWIN),
        ("Swinv2ForImageClassification", _NATIVE_SWIN | {"pretrained_window_sizes": [2, 0, 0]}),
        ("TimesformerForVideoClassification", _NATIVE | {"num_frames": 3}),
    ],
)
def test_folders_of_transformers(tmp_path, peer_class, fields):
    peer_class = getattr(transformers, peer_class)
    randomise(peer_class(peer_class.config_class(**fields))).save_pretrained(tmp_path / "theirs")
    facts, card = verify(tmp_path / "theirs", tmp_path / "ours")
    check_equal(facts, card, "transformers")


@pytest.mark.parametrize(
    ("peer_class", "more"),
    [(RvT, {}), (RvT, {"use_rotary": False}), (ViT, {}), (ViT, {"pool": "mean"}), (SimpleViT, {})],
)
def test_files_of_vit_pytorch(tmp_path, peer_class, more):
    kwargs = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48}
    kwargs |= {"dim_head": 8, **more}
    torch.save(randomise(peer_class(**kwargs)).state_dict(), tmp_path / "file.pt")
    facts, card = verify(tmp_path / "file.pt", tmp_path / "ours", "--kwargs", json.dumps(kwargs))
    check_equal(facts, card, "vit-pytorch")


def test_files_of_authors_with_timms_names(tmp_path):
    case = golden.load("deit", "distilled")
    torch.save({"model": case.state_dict}, tmp_path / "file.pth")
    facts, card = verify(tmp_path / "file.pth", tmp_path / "ours", "--kwargs", json.dumps(case.kwargs))
    check_equal(facts, card, "timm")


@pytest.mark.parametrize(("folder", "name"), [("vit", "plain"), ("pvt", "tiny_like")])
def test_what_no_library_has_is_not_compared(tmp_path, capsys, folder, name):
    case = golden.load(folder, name)
    path = tmp_path / ("file.npz" if folder == "vit" else "file.pth")
    if folder == "vit":
        np.savez(path, **{key: tensor.numpy() for key, tensor in case.state_dict.items()})
    else:
        torch.save(case.state_dict, path)
    facts, card = verify(path, tmp_path / "ours", "--kwargs", json.dumps(case.kwargs))
    assert facts.parity is None
    assert f"not compared: {facts.parity_method}" in capsys.readouterr().out
    assert f"not compared with those of the original weights ({facts.parity_method})" in card


def test_a_library_that_is_not_installed_is_not_compared(tmp_path, monkeypatch):
    folder = timm_folder(tmp_path / "theirs", "vit_base_patch16_224", _TIMM)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    facts, _ = verify(folder, tmp_path / "ours")
    assert (facts.parity, facts.parity_method) == (None, "timm is not installed")


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_difference_fails_and_nothing_is_written(tmp_path, capsys, library):
    source, output = tmp_path / "theirs", tmp_path / "ours"
    if library == "timm":
        timm_folder(source, "vit_base_patch16_224", _TIMM)
    else:
        randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**_NATIVE))).save_pretrained(source)
    options = ["--output", str(output), "--verify", "--set", "layer_norm_eps=0.001"]
    capsys.readouterr()
    assert main(["convert", str(source), *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--verify: logits differ from those of {library} {version(library)}" in line
    assert not output.exists()


def test_small_and_senseless_differences():
    assert relative_difference(Parity({"a": 1.0, "b": 1.0}, {"a": 4.0, "b": 2.0}, 1e-6)) == 0.5
    assert relative_difference(Parity({"a": 1.0}, {"a": 0.0}, 1e-6)) == float("inf")
    nan = relative_difference(Parity({"a": 0.0, "b": float("nan")}, {"a": 1.0, "b": 1.0}, 1e-6))
    assert nan != nan
    with pytest.raises(NotComparedError):
        relative_difference(Parity({"a": 0.0}, {"a": 0.0}, 1e-6))
