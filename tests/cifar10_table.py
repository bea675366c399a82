"""
What stands behind the table of CIFAR-10 in the README: a small model of every architecture, two epochs each.

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
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_vit_family import create_model

RESULTS = Path(__file__).with_suffix(".json")
BATCH_SIZE, NUM_LABELS = 128, 10
_PLAIN = {"patch_size": 4, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 2}
_PYRAMID = {"patch_size": 2, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "num_heads": [1, 2, 4]}
# Architecture to a variant and the fields that make it small. Images have 32 x 32 pixels where `image_size` is not given.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**_PLAIN}),
    "deit": ("deit_tiny_distilled_patch16_224", {**_PLAIN}),
    "cct": (
        "cct_2_3x2_32",
        {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 2},
    ),
    "pit": (
        "pit_ti",
        {
            "patch_size": 4,
            "stride": 2,
            "base_dims": [16] * 3,
            "depths": [1, 2, 2],
            "num_heads": [2, 4, 8],
            "mlp_ratio": 2,
        },
    ),
    "convit": ("convit_tiny", {**_PLAIN, "local_up_to_layer": 3}),
    "cait": ("cait_xxs24_224", {**_PLAIN, "class_attention_mlp_ratio": 2, "layer_scale_init_value": 0.1}),
    "t2t_vit": (
        "t2t_vit_7",
        {
            "image_size": 64,
            "token_dim": 32,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "mlp_ratio": 2,
        },
    ),
    "deepvit": ("deepvit_patch16_224_re_attn_16b", {**_PLAIN}),
    "localvit": ("localvit_tiny_mlp4_act3_r192", {**_PLAIN, "se_reduction": 16}),
    "crossvit": (
        "crossvit_tiny_224",
        {
            "patch_sizes": [4, 8],
            "large_branch_scale": [1, 1],
            "hidden_sizes": [64, 96],
            "depths": [[1, 2], [1, 2]],
            "num_heads": [4, 4],
            "mlp_ratios": [2, 2],
        },
    ),
    "levit": (
        "levit_128s",
        {"patch_size": 4, "hidden_sizes": [64, 96, 128], "depths": [1, 1, 1], "num_heads": [2, 3, 4]},
    ),
    "cvt": (
        "cvt_13",
        {**_PYRAMID, "patch_kernel_sizes": [3, 3, 3], "patch_paddings": [1, 1, 1], "mlp_ratio": 2},
    ),
    "pvt": ("pvt_tiny", {**_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1]}),
    "pvt_v2": ("pvt_v2_b0", {**_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1]}),
    "twins": (
        "twins_svt_small",
        {**_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1], "window_sizes": [4, 4, 4]},
    ),
    "nest": ("nest_tiny_s16_32", {**_PYRAMID, "block_size": 4, "mlp_ratio": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {**_PYRAMID, "window_size": 4, "mlp_ratio": 2}),
    "swinv2": (
        "swinv2_tiny_patch4_window8_256",
        {**_PYRAMID, "window_size": 4, "pretrained_window_sizes": [0, 0, 0], "mlp_ratio": 2},
    ),
    "localvit_pvt": (
        "localvit_pvt_tiny",
        {**_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1], "se_reductions": [8, 16, 32]},
    ),
    "localvit_swin": (
        "localvit_swin_tiny_patch4_window7_224",
        {**_PYRAMID, "window_size": 4, "mlp_ratio": 2, "se_reductions": [8, 16, 32]},
    ),
    "localvit_tnt": (
        "localvit_tnt_t_patch16_224",
        {**_PLAIN, "pixel_hidden_size": 8, "num_pixel_attention_heads": 2, "pixel_stride": 2, "se_reduction": 16},
    ),
    "regionvit": (
        "regionvit_tiny_224",
        {**_PYRAMID, "patch_conv_type": "1conv", "window_sizes": [4, 4, 4], "mlp_ratio": 2},
    ),
    "coatnet": (
        "coatnet_0_224",
        {**_PYRAMID, "patch_size": 1, "stem_channels": [32, 32], "conv_depths": [2, 0, 0], "representation_size": None},
    ),
    "mvit": ("mvitv2_tiny", {**_PYRAMID, "kv_strides": [4, 2, 1], "kv_kernel_sizes": [3, 3, 3], "mlp_ratio": 2}),
}


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
    """What was measured so far: for each architecture `parameters`, `accuracy`, `command`, `images_per_second`."""
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
    training.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help="these alone (default: all)")
    timing = actions.add_parser("speed", help="time a training step of every model")
    timing.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    options = parser.parse_args()
    if options.action == "train":
        train(options.dataset, options.runs, options.architectures)
    else:
        speed(options.rounds)


if __name__ == "__main__":
    main()
