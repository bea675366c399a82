"""
`vit-family convert` from the Hub: a repository in transformers' layout, one file of a repository, and what is not
there.
"""

import os
import subprocess
import sys

import torch
from hub_server import Commit, Repository
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_vit_family import convert_checkpoint, export_checkpoint
from hf_vit_family.conversion.checkpoint_files import CheckpointFile, write_checkpoint

CODE = """
import sys
from pathlib import Path
from vit_family_launcher import main

folder = Path(sys.argv[1])
assert main(["convert", "some/vit", "--output", str(folder / "whole")]) == 0
heads = ["--set", "num_attention_heads=2"]
assert main(["convert", "some/vit:model.npz", "--output", str(folder / "file"), *heads]) == 0
for source in ("some/vit:nothing.npz", "some/nothing", "some/empty", "no/such/file.pth", "nothing.pth"):
    assert main(["convert", source, "--output", str(folder / "refused")]) == 2, source
"""


def test_sources_on_the_hub(hub, tmp_path):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64, "num_labels": 5}
    config = ViTConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"
    )
    theirs = ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "theirs")
    ours, _ = convert_checkpoint(CheckpointFile(theirs.state_dict(), metadata=config.to_dict()))
    write_checkpoint(export_checkpoint(ours, "original"), tmp_path / "model.npz")
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    files["model.npz"] = (tmp_path / "model.npz").read_bytes()
    hub.repositories["some/vit"] = Repository(False, [Commit("push", files)])
    hub.repositories["some/empty"] = Repository(False, [Commit("push", {"README.md": b""})])

    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "refused").exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("vit-family convert: ")]
    assert len(errors) == 5, done.stderr
    named = ("nothing.npz", "some/nothing", "some/empty: no weights", "no/such/file.pth", "nothing.pth")
    for line, names in zip(errors, named, strict=True):
        assert names in line
    for name in ("whole", "file"):
        converted = load_file(tmp_path / name / "model.safetensors")
        expected = ours.state_dict()
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)
