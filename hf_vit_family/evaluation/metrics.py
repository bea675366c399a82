"""
Metrics of classification as `evaluate.Metric` classes that need no network, since nothing is loaded by name.

They take a few numbers an image rather than its logits, so that a large set with many classes fits into memory. All may
be fed batch by batch with `add_batch`. N images, K classes.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

# Of what an evaluation gives, the metrics that say which of two models is better, and whether by a higher value.
HIGHER_IS_BETTER = {
    "accuracy": True,
    "top5_accuracy": True,
    "mean_per_class_accuracy": True,
    "real_accuracy": True,
    "loss": False,
    "ece": False,
}

INTEGER, FLOAT = datasets.Value("int64"), datasets.Value("float32")
INTEGERS = datasets.Sequence(datasets.Value("int64"))


class OfflineMetric(evaluate.Metric):
    """Base: a metric described by its class attributes, whose inputs stay in memory."""

    DESCRIPTION: str
    CITATION: str = ""
    FEATURES: dict[str, Any]

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        """
        Where results would be kept that do not fit into memory: `evaluate` makes the folder, we have no use for it.
        """
        return ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.DESCRIPTION,
            citation=self.CITATION,
            features=datasets.Features(self.FEATURES),
        )


class TopKAccuracy(OfflineMetric):
    """
    `compute(predictions, references)`: `accuracy` and `top5_accuracy`, fractions of 1.

    Args:
        predictions: (N, at least min(5, K)) class indices, the most probable first. references: (N,) class indices.
    """

    DESCRIPTION = "How often the true class is the most probable one, and among the five most probable ones."
    FEATURES = {"predictions": INTEGERS, "references": INTEGER}

    def _compute(self, predictions, references) -> dict[str, float]:
        hits = np.asarray(predictions)[:, :5] == np.asarray(references)[:, None]
        return {"accuracy": float(hits[:, 0].mean()), "top5_accuracy": float(hits.any(1).mean())}


class ConfusionMatrix(OfflineMetric):
    """
    `compute(predictions, references, num_labels=K)`: `confusion`, int64 (K, K), counts by true class (row) and
    predicted class (column); `per_class_accuracy`, (K,), NaN for a class without images; `mean_per_class_accuracy`,
    over the others.
    """

    DESCRIPTION = "Counts of every pair of true and predicted class, and the accuracy of each class."
    FEATURES = {"predictions": INTEGER, "references": INTEGER}

    def _compute(self, predictions, references, num_labels: int) -> dict[str, Any]:
        pairs = np.asarray(references) * num_labels + np.asarray(predictions)
        confusion = np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)
        totals = confusion.sum(1)
        per_class = np.full(num_labels, np.nan)
        np.divide(confusion.diagonal(), totals, out=per_class, where=totals > 0)
        return {
            "confusion": confusion,
            "per_class_accuracy": per_class,
            "mean_per_class_accuracy": float(np.nanmean(per_class)),
        }


class CalibrationError(OfflineMetric):
    """
    `compute(predictions, references, confidences)`: `ece`, the expected calibration error over 15 bins of equal width
    (arXiv 1706.04599, equation 3): the mean distance between a bin's confidence and its accuracy, weighted by its
    images.

    Args:
        predictions, references: (N,) class indices. confidences: (N,) probability of the prediction.
    """

    DESCRIPTION = "How far a model's confidence is from its accuracy."
    CITATION = "Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599"
    FEATURES = {"predictions": INTEGER, "references": INTEGER, "confidences": FLOAT}
    BINS = 15

    def _compute(self, predictions, references, confidences) -> dict[str, float]:
        confidences = np.asarray(confidences, dtype=np.float64)
        hits = np.asarray(predictions) == np.asarray(references)
        # Bins are open below and closed above, as in the paper: 1.0 belongs to the last one.
        bins = (np.ceil(confidences * self.BINS) - 1).clip(0, self.BINS - 1).astype(np.int64)
        gaps = np.bincount(bins, weights=confidences - hits, minlength=self.BINS)
        return {"ece": float(np.abs(gaps).sum() / len(hits))}


class RealAccuracy(OfflineMetric):
    """
    `compute(predictions, references)`: `real_accuracy`, how often the prediction is one of an image's valid labels;
    images without a valid label are left out (arXiv 2006.07159, section 3; google-research/reassessed-imagenet
    real.json).

    Args:
        predictions: (N,) class indices. references: N lists of class indices, which may be empty.
    """

    DESCRIPTION = "How often the predicted class is one of the labels that people found valid for the image."
    CITATION = "Beyer et al., Are we done with ImageNet?, arXiv 2006.07159"
    FEATURES = {"predictions": INTEGER, "references": INTEGERS}

    def _compute(self, predictions, references) -> dict[str, float]:
        hits = [p in valid for p, valid in zip(predictions, references, strict=True) if len(valid)]
        return {"real_accuracy": float(np.mean(hits)) if hits else float("nan")}
