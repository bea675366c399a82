"""The examples of docs/pretraining.md run."""

import re
import shlex
from pathlib import Path

import safetensors.torch
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from vit_family_launcher import main

from hf_vit_family.publishing.cards import Training

PAGE = Path(__file__).parents[1] / "docs" / "pretraining.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if not kind for line in text.splitlines()]
QUICK = ["--max_steps", "2", "--max_eval_samples", "20", "--num_workers", "0"]


def test_the_commands_pretrain_and_fine_tune(tmp_path, monkeypatch, forget_accelerate):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    on_digits = [words for words in COMMANDS if "train" in words and "./photos" not in words]
    assert len(on_digits) >= 3
    for words in on_digits:
        forget_accelerate()
        assert main([*words[1:], *QUICK]) == 0
    assert Training.read("runs/simmim").objective.startswith("SimMIM")
    assert Training.read("runs/tuned").pretrained_by == [Training.read("runs/simmim").objective]
    assert Training.read("runs/dino").objective.startswith("DINO")


def test_an_objective_of_ones_own_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    assert '"epochs": 20' in code
    exec(compile(code.replace('"epochs": 20', '"epochs": 1'), str(PAGE), "exec"), {"__name__": "rotations"})
    training = Training.read("runs/rotations")
    assert training.objective == "rotation prediction (arXiv 1803.07728)"
    assert training.command == "python rotations.py"
    assert not any("classifier" in name for name in safetensors.torch.load_file("runs/rotations/model.safetensors"))
