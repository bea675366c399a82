"""Pictures of a run: learning curves and confusion matrices."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # without pyplot, which would look for a screen and keep every figure

from ..errors import UserError
from ..files import UNFINISHED, naming_what_is_written

COLORS = {"train": "#6b7a8f", "evaluation": "#c8553d"}
# Fields of a line that are drawn; the first two are in every line.
DRAWN = ("epoch", "step", "loss", "accuracy")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG; the file appears whole or not at all. Parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}{UNFINISHED}") as folder:
        temporary = Path(folder) / "figure.png"
        with naming_what_is_written(path):
            figure.savefig(temporary, dpi=120)
        os.replace(temporary, path)


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; UserError names a line that is no JSON object, or that cannot be drawn."""
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not valid JSON") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is no JSON object")
        if row.get("split") in COLORS:
            drawn = {"epoch": None, "step": None, **row}
            wrong = [name for name in DRAWN if name in drawn and type(drawn[name]) not in (int, float)]
            if wrong:
                raise UserError(f"{path}: line {number} has no number as its {wrong[0]!r}")
        rows.append(row)
    return rows


def plot_curves(metrics_jsonl: str | Path, png: str | Path) -> None:
    """
    Draws the loss, and the accuracy where there is one, over epochs, of training and evaluation, from the
    `metrics.jsonl` of a run.

    Args:
        metrics_jsonl: Lines with `split` ("train" or "evaluation"), `epoch`, and any of `loss` and `accuracy`.
        png: The picture to write.
    """
    rows = read_metrics(metrics_jsonl)
    metrics = [metric for metric in ("loss", "accuracy") if any(metric in row for row in rows)] or ["loss"]
    figure = Figure(figsize=(4.5 * len(metrics), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for split, color in COLORS.items():
            points = [(row["epoch"], row[metric]) for row in rows if row.get("split") == split and metric in row]
            if not points:
                continue
            epochs, values = np.array(points, dtype=np.float64).T
            marker = "o" if len(points) <= 30 else None
            axes.plot(epochs, values, color=color, label=split, linewidth=1.5, marker=marker, markersize=3)
            if metric == "accuracy" and split == "evaluation":
                axes.annotate(
                    f"{values[-1]:.2%}",
                    (epochs[-1], values[-1]),
                    textcoords="offset points",
                    xytext=(-2, -12),
                    ha="right",
                    color=color,
                )
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    save_figure(figure, png)


def plot_confusion(confusion: np.ndarray, labels: Sequence[str], png: str | Path) -> None:
    """
    Draws a confusion matrix, each row as fractions of its true class.

    Args:
        confusion: Counts (K, K), true class by predicted class.
        labels: K names; they are written, as the fractions are, where there is room for them.
        png: The picture to write.
    """
    count = len(confusion)
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    edge = min(max(4.0, 1.2 + 0.48 * count), 12.0)
    figure = Figure(figsize=(edge + 1.1, edge), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, label="fraction of the true class", shrink=0.8)
    if count <= 60:
        size = 9 if count <= 20 else 6
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(count), labels, fontsize=size)
    if count <= 20:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            value = fractions[row, column]
            color = "white" if value > 0.5 else "#333333"
            axes.text(
                column, row, f"{value:.1%}" if value < 1 else "100%", ha="center", va="center", fontsize=7, color=color
            )
    save_figure(figure, png)


def plot_comparison(runs: Mapping[str, str | Path], png: str | Path, chance: float) -> None:
    """
    Draws the accuracy on held-out data over the optimiser steps of several runs.

    Args:
        runs: Name of each run to its `metrics.jsonl`.
        png: The picture to write.
        chance: Accuracy of guessing, a fraction of 1; a dotted line.

    Raises:
        UserError: if a file cannot be read or has no evaluation.
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, path), color in zip(runs.items(), colormaps["tab10"].colors, strict=False):
        rows = [row for row in read_metrics(path) if row.get("split") == "evaluation" and "accuracy" in row]
        if not rows:
            raise UserError(f"{path}: has no accuracy of an evaluation")
        steps, values = [row["step"] for row in rows], [row["accuracy"] for row in rows]
        axes.plot(steps, values, color=color, marker="o", markersize=3, label=f"{name}: {values[-1]:.1%}")
    axes.axhline(chance, color="#999999", linestyle=":", label=f"chance: {chance:.0%}")
    axes.set(xlabel="step", ylabel="accuracy on held-out data", ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, png)
