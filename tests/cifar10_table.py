"""
Makes the table of CIFAR-10 in the README: a small model of every architecture, two epochs each.

    python tests/cifar10_table.py train --dataset uoft-cs/cifar10 --runs runs   # those that cifar10_table.json lacks
    python tests/cifar10_table.py speed                                         # all of them, in interleaved rounds

Both keep what they measure in tests/cifar10_table.json; `python tests/readme_table.py` then writes the table.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measured
import torch
from architectures import DOSSIERS
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_vit_family import create_model

RESULTS = Path(__file__).with_suffix(".json")
BATCH_SIZE, NUM_LABELS = 128, 10
# Architecture to a variant and the fields that make it small. Images have 32 x 32 pixels where `image_size` is not
# given.
MODELS = {name: each.cifar10 for name, each in DOSSIERS.items() if each.cifar10 is not None}


def image_size(architecture: str) -> int:
    """Height and width of the images that the small model is given, in pixels."""
    return MODELS[architecture][1].get("image_size", 32)


def create(architecture: str) -> PreTrainedModel:
    """The small model, with random weights, as the recipe builds it."""
    variant, fields = MODELS[architecture]
    fields = {**fields, "image_size": image_size(architecture), "drop_path_rate": 0.0}
    return create_model(variant, num_labels=NUM_LABELS, **fields)


def command(architecture: str) -> list[str]:
    """The words of the command that trains the small model; data and output folder come on top."""
    variant, fields = MODELS[architecture]
    fields = {name: value for name, value in fields.items() if name != "image_size"}
    words = ["vit-family", "train", "--recipe", "cifar10_short", "--model", variant]
    if image_size(architecture) != 32:
        words += ["--image_size", str(image_size(architecture))]
    if fields:
        words += ["--set", *(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in fields.items())]
    return words


def results() -> dict[str, dict[str, Any]]:
    """Reads what was measured: for each architecture `parameters`, `accuracy`, `command`, `images_per_second`."""
    return measured.results(RESULTS)


def train(dataset: str, runs: Path, architectures: list[str]) -> None:
    """Trains what has no accuracy yet, one after the other."""
    missing = [name for name in architectures or MODELS if "accuracy" not in results().get(name, {})]
    for name in tqdm(missing, desc="architectures"):
        words, output = command(name), runs / f"cifar10_{name}"
        program = Path(sys.executable).with_name(words[0])
        subprocess.run([program, *words[1:], "--dataset", dataset, "--output", output], check=True)
        evaluation = json.loads((output / "evaluation.json").read_text())
        measured.keep(
            RESULTS,
            MODELS,
            name,
            parameters=evaluation["parameters"],
            accuracy=evaluation["metrics"]["accuracy"],
            command=shlex.join(words),
        )


def speed(rounds: int) -> None:
    """Images a second of a training step on one thread: each round times every model once, and medians are kept."""
    torch.set_num_threads(1)
    images, labels = torch.randn(BATCH_SIZE, 3, 64, 64), torch.arange(BATCH_SIZE) % NUM_LABELS
    models = {name: create(name).train() for name in MODELS}
    optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}

    def step(name: str) -> float:
        start, size = time.perf_counter(), image_size(name)
        models[name](images[..., :size, :size].contiguous(), labels=labels).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        return time.perf_counter() - start

    for name in models:  # what is set up at the first use
        step(name)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name in models:
            times[name].append(step(name))
    for name, seconds in times.items():
        measured.keep(RESULTS, MODELS, name, images_per_second=round(BATCH_SIZE / statistics.median(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    training = actions.add_parser("train", help="train the models that have no accuracy yet")
    training.add_argument("--dataset", required=True, help="Hub id of CIFAR-10, or a folder of its parquet files")
    training.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    training.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help="only these (default: all)")
    timing = actions.add_parser("speed", help="time a training step of every model")
    timing.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    options = parser.parse_args()
    if options.action == "train":
        train(options.dataset, options.runs, options.architectures)
    else:
        speed(options.rounds)


if __name__ == "__main__":
    main()
