"""
The commands that `vit-family convert --help` shows, run in its order on small models as their own libraries write them.
"""

import re
import shlex

import pytest
import timm
import torch
from timm_models import cut, hub_folder, randomised
from transformers import ViTConfig, ViTForImageClassification
from vit_family_launcher import main
from vit_pytorch import ViT as VitPytorchViT

from hf_vit_family.commands import convert
from hf_vit_family.loading import load_saved_model
from hf_vit_family.publishing import converted

EXAMPLES = re.findall(r"^  vit-family (convert .+)$", convert.__doc__, re.MULTILINE)


def _deit() -> torch.nn.Module:
    return randomised(timm.create_model("deit_tiny_patch16_224", num_classes=10)).float()


def _authors_file(path):
    model = _deit()
    torch.save({"model": model.state_dict()}, path)
    return model


def _with_average(path):
    model = _deit()
    weights = model.state_dict()
    torch.save({"model": {key: 2 * tensor for key, tensor in weights.items()}, "model_ema": weights}, path)
    return model


def _transformers_folder(path):
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 96}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5))
    model = randomised(model).float()
    model.save_pretrained(path)
    return lambda pixels: model(pixels).logits


def _timm_folder(name):
    def make(path):
        return hub_folder(name, path, **cut(name)).float()

    return make


def _plain_file(path):
    model = randomised(
        timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=40, depth=2, num_heads=5, num_classes=3)
    ).float()
    torch.save(model.state_dict(), path)
    return model


def _vit_pytorch_file(path):
    model = VitPytorchViT(
        image_size=64, patch_size=32, num_classes=3, dim=32, depth=2, heads=16, mlp_dim=64, dim_head=4
    )
    torch.save(randomised(model).float().state_dict(), path)
    return model


def _lightning_file(path):
    model = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0)).float()
    weights = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    content = {
        "state_dict": {**weights, "metric.total": torch.zeros(())},
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
    }
    torch.save(content, path)
    return model


def _published_file(path):
    model = randomised(timm.create_model("deit_small_patch16_224")).float()
    torch.save({"model": model.state_dict()}, path.with_suffix(".pth"))
    return model


# What an example reads to what writes it; the last ones read what an earlier one wrote.
SOURCES = {
    "deit_small_patch16_224": _published_file,
    "deit_tiny_patch16_224-a1311bcf.pth": _authors_file,
    "google/vit-base-patch16-224": _transformers_folder,
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": _timm_folder("vit_base_patch16_224"),
    "timm/cait_s24_224.fb_dist_in1k": _timm_folder("cait_s24_224"),
    "my_vit.pth": _plain_file,
    "vit_pytorch.pt": _vit_pytorch_file,
    "last.ckpt": _lightning_file,
    "checkpoint.pth": _with_average,
}


def test_the_commands_of_the_help_run_and_give_the_same_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        converted, "download_published", lambda key, published, suffix: tmp_path / f"{key.split('.')[0]}{suffix}"
    )
    written, peers = {}, {}
    for example in EXAMPLES:
        words = shlex.split(example)
        source, output = words[1], words[words.index("--output") + 1]
        if "--to" in words:
            assert source in written, f"{example}: no example before it writes {source}"
        else:
            path = tmp_path / source
            path.parent.mkdir(parents=True, exist_ok=True)
            peers[output] = SOURCES[source](path)
        assert main(words) == 0, (example, capsys.readouterr().err)
        written[output] = source
        if "--to" not in words:
            model = load_saved_model(output)
            size = model.config.image_size
            pixels = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))
            with torch.no_grad():
                outputs, expected = model(pixels), peers[output](pixels)
            logits = outputs.logits if "logits" in outputs else outputs.pooler_output
            assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), example
    assert {source for source in written.values() if source not in written} == SOURCES.keys()
    assert sum("--to" in example for example in EXAMPLES) == 3
    original = torch.load("deit_tiny_original/model.pth", weights_only=True)["model"]
    given = torch.load("deit_tiny_patch16_224-a1311bcf.pth", weights_only=True)["model"]
    assert all(torch.equal(original[key], tensor) for key, tensor in given.items())
    native = ViTForImageClassification.from_pretrained("vit_base_transformers")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(native(pixels).logits, peers["vit_base"](pixels))
    again = timm.create_model("local-dir:vit_base_timm", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), peers["vit_base_augreg"](pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", ["--wrapper", "--prefix", "--set", "--verify", "--to", "--architecture"])
def test_the_help_shows_every_option_that_needs_an_example(option):
    assert any(option in shlex.split(example) for example in EXAMPLES)
