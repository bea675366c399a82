"""Measures a classifier: one pass over a data set, and the metrics of `hf_vit_family.evaluation.metrics`."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from ..data.image_sets import IGNORED_LABEL
from ..errors import UserError
from .metrics import HIGHER_IS_BETTER, CalibrationError, ConfusionMatrix, RealAccuracy, TopKAccuracy


def average_views(logits: torch.Tensor, view_average: str) -> torch.Tensor:
    """
    One score a class from those of several views of each video.

    Args:
        logits: (B, V, num_labels).
        view_average: `"logits"`: their mean. `"softmax"`: the logarithm of the mean probability. PySlowFast's MViT,
            whose head ends in a softmax, averages these; TimeSformer, ViViT and X-ViT average logits.

    Returns:
        (B, num_labels), logits.
    """
    if view_average == "logits":
        return logits.mean(1)
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def _logits(model: nn.Module, pixel_values: torch.Tensor, view_average: str) -> torch.Tensor:
    """Logits (B, num_labels) of images (B, C, H, W), clips (B, T, C, H, W), or views of videos (B, V, T, C, H, W)."""
    if pixel_values.ndim < 6:
        return model(pixel_values=pixel_values).logits.float()
    # One view after the other: there are as many activations as of a batch of single clips.
    views = [model(pixel_values=view).logits.float() for view in pixel_values.unbind(1)]
    return average_views(torch.stack(views, dim=1), view_average)


@torch.no_grad()
def _predict(
    model: nn.Module, loader: Iterable[dict], accelerator: Accelerator | None, progress: bool, view_average: str
) -> dict[str, torch.Tensor]:
    """
    What the metrics need of every image, on the CPU, in the order of the loader: `ranked` (N, up to 5) class indices,
    `confidences`, `losses` and `labels` (N,).
    """
    device = accelerator.device if accelerator else next(model.parameters()).device
    parts: dict[str, list[torch.Tensor]] = {}
    read, broken = 0, 0
    shown = progress and (accelerator is None or accelerator.is_local_main_process)
    for batch in tqdm(loader, desc="evaluating", unit="batch", disable=not shown, leave=False):
        labels = batch["labels"].to(device)
        with accelerator.autocast() if accelerator else nullcontext():
            logits = _logits(model, batch["pixel_values"].to(device), view_average)
        if labels.max() >= logits.shape[1]:
            raise UserError(
                f"label {int(labels.max())} of the data lies outside the {logits.shape[1]} classes of the model"
            )
        kept = labels != IGNORED_LABEL
        read += int(kept.sum())
        broken += int((kept & ~logits.isfinite().all(1)).sum())
        top = logits.softmax(1).topk(min(5, logits.shape[1]))
        results = {
            "ranked": top.indices,
            "confidences": top.values[:, 0],
            "losses": nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL),
            "labels": labels,
        }
        if accelerator:
            results = accelerator.gather_for_metrics(results)
        for name, values in results.items():
            parts.setdefault(name, []).append(values.cpu())
    if accelerator:
        read, broken = accelerator.reduce(torch.tensor([read, broken], device=device)).tolist()
    if broken:
        raise UserError(
            f"the model's outputs are not finite for {broken} of {read} images: its weights are broken, or its "
            f"precision is too low"
        )
    return {name: torch.cat(values) for name, values in parts.items()}


def check_metric(name: str) -> None:
    """
    Raises UserError unless evaluations have a metric of this name, after a try: what stops metrics from being computed
    shows before a model is trained.
    """
    tried = _metrics(np.zeros((1, 1), np.int64), *np.zeros((3, 1), np.int64), 1)
    metrics = [metric for metric in tried if metric in HIGHER_IS_BETTER]
    if name not in metrics:
        raise UserError(f"best_metric={name}: choose one of {', '.join(metrics)}")


def _metrics(
    ranked: np.ndarray, confidences: np.ndarray, losses: np.ndarray, labels: np.ndarray, num_labels: int
) -> dict[str, Any]:
    """All metrics of what `_predict` gives, as arrays."""
    best = ranked[:, 0]
    return {
        **TopKAccuracy().compute(predictions=ranked, references=labels),
        "loss": float(losses.mean(dtype="float64")),
        **CalibrationError().compute(predictions=best, references=labels, confidences=confidences),
        **ConfusionMatrix().compute(predictions=best, references=labels, num_labels=num_labels),
    }


def evaluate_model(
    model: nn.Module,
    loader: Iterable[dict],
    accelerator: Accelerator | None = None,
    num_labels: int | None = None,
    progress: bool = True,
    valid_labels: Sequence[Sequence[int]] | None = None,
    view_average: str = "logits",
) -> dict[str, Any]:
    """
    Evaluates a classifier; it is in evaluation mode meanwhile, and in its own mode afterwards.

    Args:
        model: Called with `pixel_values` (B, C, H, W), or (B, T, C, H, W) of videos; its output has `logits`
            (B, num_labels).
        loader: Batches of `pixel_values` and integer `labels` (B,); images with the label -100 are left out. Videos may
            come in several views, (B, V, T, C, H, W).
        accelerator: Gathers the results of all processes (the loader is prepared by it), and casts.
        num_labels: `model.config.num_labels` by default.
        progress: Whether to show a progress bar.
        valid_labels: For each image of the loader, in order, the class indices that are right (ImageNet-ReaL).
        view_average: What is averaged over views; see `average_views`.

    Returns:
        Fractions of 1 `accuracy`, `top5_accuracy`, `mean_per_class_accuracy`, `ece` and, with `valid_labels`,
        `real_accuracy`; `loss`, the mean cross entropy in nats; `per_class_accuracy` (num_labels,) and `confusion`
        (num_labels, num_labels), true class by predicted class, as numpy arrays.

    Raises:
        UserError: for a label that the model does not have, outputs that are not finite, or if no image could be read.
    """
    training = model.training
    model.eval()
    try:
        results = _predict(model, loader, accelerator, progress, view_average)
    finally:
        model.train(training)
    kept = results["labels"] != IGNORED_LABEL if results else torch.zeros(0, dtype=torch.bool)
    if not kept.any():
        raise UserError("there is no readable image to evaluate on")
    ranked, confidences, losses, labels = (
        results[name][kept].numpy() for name in ("ranked", "confidences", "losses", "labels")
    )
    best = ranked[:, 0]
    num_labels = model.config.num_labels if num_labels is None else num_labels
    metrics = _metrics(ranked, confidences, losses, labels, num_labels)
    if valid_labels is not None:
        if len(valid_labels) != len(kept):
            raise UserError(f"there are valid labels for {len(valid_labels)} images, but {len(kept)} images")
        references = [list(valid) for valid, keep in zip(valid_labels, kept.tolist(), strict=True) if keep]
        metrics |= RealAccuracy().compute(predictions=best, references=references)
    return metrics


def read_valid_labels(path: str | Path, image_names: Sequence[str]) -> list[list[int]]:
    """
    The labels that are valid for each image, from a JSON list of lists such as ImageNet-ReaL's real.json.

    An image named `ILSVRC2012_val_<number>` has the entry of its number, counted from 1; another that of its position.

    Args:
        path: The file. image_names: Of all images to evaluate, in order.

    Raises:
        UserError: if the file cannot be read, is no such list, or has no entry for an image.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and all(isinstance(label, int) for label in entry) for entry in entries
    ):
        raise UserError(f"{path}: expected a list with a list of class indices for each image")
    valid = []
    for position, name in enumerate(image_names):
        number = re.search(r"ILSVRC2012_val_(\d{8})", name)
        index = position if number is None else int(number[1]) - 1
        if not 0 <= index < len(entries):
            raise UserError(f"{path}: has {len(entries)} entries, none for {name}")
        valid.append(entries[index])
    return valid
