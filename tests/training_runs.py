"""Tiny training runs, and processes to run and kill them in."""

import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from hf_vit_family.errors import UserError
from hf_vit_family.training import launch
from hf_vit_family.training.run import TrainingOptions, train
from hf_vit_family.training.stopping import Interrupted

# The tests' processes share few cores, and these models are too small for threads.
torch.set_num_threads(1)

# A model of two layers on a few digits, with dropout and random augmentation: a lost random number shows.
TINY_RUN = {
    "model": "vit_tiny_patch16_224",
    "set": {
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "hidden_dropout_prob": 0.1,
    },
    "drop_path_rate": 0.1,
    "dataset": "digits",
    "image_size": 8,
    "max_train_samples": 96,
    "max_eval_samples": 40,
    "num_workers": 0,
    "crop": "random",
    "crop_padding": 1,
    "mixup": 0.2,
    "epochs": 3,
    "batch_size": 16,
    "lr": 1e-2,
    "warmup_steps": 3,
    "ema_decay": 0.9,
    "log_steps": 1,
    "mixed_precision": "no",
}
# The same without anything random but the order of images.
STILL_RUN = {
    **TINY_RUN,
    "set": {**TINY_RUN["set"], "hidden_dropout_prob": 0.0},
    "drop_path_rate": 0.0,
    "crop": "center",
    "horizontal_flip": 0.0,
    "mixup": 0.0,
    "ema_decay": None,
    # Adam would make large steps of what rounding leaves of gradients that are 0, such as those of the keys' biases.
    "optimizer": "SGD",
    "lr": 0.1,
}

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hf_vit_family.training.run"])


def train_tiny(output: Path, base: dict[str, Any] = TINY_RUN, **options: Any) -> dict[str, float]:
    """Trains in this process; options as in a recipe."""
    return train(TrainingOptions.from_values({**base, "output": str(output), **options}), "vit-family train")


def train_in_two(output: Path, base: dict[str, Any], **options: Any) -> None:
    """
    Trains in two processes. They are forked from one that has imported what they need, which takes a third of the time;
    tests/test_interruption.py starts them as users do.
    """
    with mock.patch.object(launch, "PROCESSES", PROCESSES):
        launch.launch({**base, "output": str(output), **options}, "vit-family train", processes=2)


def _child(values: dict[str, Any], file_size: int | None, message) -> None:
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.dup2(null, 1)
    torch.set_num_threads(1)
    try:
        train(TrainingOptions.from_values(values), "vit-family train")
    except UserError as error:
        message.put(str(error))
    except Interrupted as stopped:
        message.put(str(stopped))
        sys.exit(stopped.exit_code)


class Run:
    """A training run in a process of its own. `file_size`: no file of it can grow beyond this many bytes."""

    def __init__(self, output: Path, file_size: int | None = None, base: dict[str, Any] = TINY_RUN, **options: Any):
        self.message = PROCESSES.SimpleQueue()
        values = {**base, "output": str(output), **options}
        self.process = PROCESSES.Process(target=_child, args=(values, file_size, self.message))
        self.process.start()

    def wait(self) -> str | None:
        """
        Until it ends; returns the message of its UserError, if it had one. Anything else it failed with fails here.
        """
        self.process.join(timeout=300)
        assert self.process.exitcode == 0
        return None if self.message.empty() else self.message.get()


def read_lines(output: Path, split: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of one split."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]
