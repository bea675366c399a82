"""
How good features are, by classifiers that leave the encoder as it is: nearest neighbours as DINO measures them
(facebookresearch/dino@7c446df eval_knn.py), and a linear classifier as MAE trains it (facebookresearch/mae@efb2a80
main_linprobe.py), on features that are computed once.

Shapes: N examples to test on, M to learn from, B batch, C channels of a feature, K classes, R learning rates.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..data.sources import stratified_draw
from ..errors import UserError
from .features import FeatureBatch, FeatureCache
from .metrics import ConfusionMatrix, TopKAccuracy

# Similarities that are in memory at a time.
CHUNK = 2**22

# Learning rates of the linear probe for a batch of 256, of which the best is chosen.
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
# Training of the linear probe. The rate is that for 256 examples times `batch_size / 256`, and falls to 0 by a cosine.
LINEAR_PROBE = {"epochs": 90, "batch_size": 1024, "momentum": 0.9, "weight_decay": 0.0, "init_std": 0.01, "eps": 1e-6}
# Part of each class of the training split that the learning rate is chosen on.
HELD_OUT = 0.1


def probe_metrics(ranked: torch.Tensor, labels: torch.Tensor, num_classes: int) -> dict[str, float]:
    """
    Fractions of 1: `accuracy`, `top5_accuracy` and `mean_per_class_accuracy`.

    Args:
        ranked: (N, at least min(5, K)) classes, the best first. labels: (N,).
    """
    best = ranked[:, 0].numpy()
    confusion = ConfusionMatrix().compute(predictions=best, references=labels.numpy(), num_labels=num_classes)
    return {
        **TopKAccuracy().compute(predictions=ranked[:, :5].numpy(), references=labels.numpy()),
        "mean_per_class_accuracy": confusion["mean_per_class_accuracy"],
    }


class Neighbors:
    """
    The k examples nearest to each query by cosine similarity. Examples come batch by batch and are not kept: memory
    holds the queries, and k similarities and labels of each.

    Args:
        queries: (N, C).
    """

    def __init__(self, queries: torch.Tensor, k: int):
        self.queries = nn.functional.normalize(queries, dim=1)
        self.k = k
        self.seen = 0
        self.similarities = queries.new_full((len(queries), k), -math.inf)
        self.labels = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes in examples (B, C) with their labels (B,)."""
        features = nn.functional.normalize(features.to(self.queries), dim=1)
        labels = labels.to(self.labels)
        self.seen += len(labels)
        for rows in torch.arange(len(self.queries)).split(max(1, CHUNK // max(1, len(labels)))):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            similarities = torch.cat((self.similarities[rows], self.queries[rows] @ features.T), 1)
            self.similarities[rows], places = similarities.topk(self.k, dim=1)
            known = torch.cat((self.labels[rows], labels.expand(len(places), -1)), 1)
            self.labels[rows] = known.gather(1, places)

    def votes(self, num_classes: int, temperature: float) -> torch.Tensor:
        """
        Of each class (N, K), the sum of `exp(similarity / temperature)` over the neighbours that belong to it, up to a
        factor of each row, which keeps small temperatures finite.
        """
        nearest = self.similarities[:, :1]
        weights = ((self.similarities - nearest) / temperature).exp()
        return weights.new_zeros(len(weights), num_classes).scatter_add_(1, self.labels, weights)


def knn_probe(
    train: Iterable[FeatureBatch],
    queries: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, Any]:
    """
    A vote of the k nearest training examples, each weighted by `exp(cosine similarity / temperature)`.

    Args:
        train: Examples to choose from; each batch is used once.
        queries: (N, C) features to classify. labels: (N,), their classes.

    Returns:
        `metrics`, as of `probe_metrics`, and `num_train`.

    Raises:
        UserError: if there are fewer than k examples.
    """
    neighbors = Neighbors(queries, k)
    for batch in train:
        neighbors.add(batch.features, batch.labels)
    if neighbors.seen < k:
        raise UserError(f"k={k}: there are only {neighbors.seen} training examples to choose neighbours from")
    ranked = neighbors.votes(num_classes, temperature).topk(min(5, num_classes)).indices
    return {"metrics": probe_metrics(ranked.cpu(), labels, num_classes), "num_train": neighbors.seen}


class LinearProbe:
    """
    Linear classifiers of frozen features, one for each learning rate, trained side by side on the same batches.

    Features are standardised by a BatchNorm without affine parameters, as MAE does. Weights start at a normal
    distribution, and SGD with momentum moves them, while the rate falls by a cosine.

    Args:
        rates: For a batch of 256. seed: Of the first weights and of the order of examples.
    """

    def __init__(self, channels: int, num_classes: int, rates: list[float], seed: int, device: torch.device):
        self.rates = rates
        # Features do not change while it learns, so that the mean of all batches is the best estimate.
        self.norm = nn.BatchNorm1d(channels, eps=LINEAR_PROBE["eps"], affine=False, momentum=None).to(device)
        self.generator = torch.Generator().manual_seed(seed)
        start = torch.randn(num_classes, channels, generator=self.generator) * LINEAR_PROBE["init_std"]
        self.weights = [nn.Parameter(start.clone().to(device)) for _ in rates]
        self.biases = [nn.Parameter(torch.zeros(num_classes, device=device)) for _ in rates]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C) to (R, B, K)."""
        normalized = self.norm(features)
        return torch.stack(
            [nn.functional.linear(normalized, *each) for each in zip(self.weights, self.biases, strict=True)]
        )

    def fit(self, cache: FeatureCache, rows: torch.Tensor, epochs: int, description: str) -> "LinearProbe":
        """Trains on these rows of a cache."""
        size = min(LINEAR_PROBE["batch_size"], len(rows))
        groups = [
            {"params": [weight, bias], "scale": rate * size / 256}
            for rate, weight, bias in zip(self.rates, self.weights, self.biases, strict=True)
        ]
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=LINEAR_PROBE["momentum"], weight_decay=LINEAR_PROBE["weight_decay"]
        )
        steps = len(rows) // size
        self.norm.train()
        for epoch in tqdm(range(epochs), desc=description, unit="epoch", leave=False):
            order = rows[torch.randperm(len(rows), generator=self.generator)]
            for step in range(steps):
                share = (1 + math.cos(math.pi * (epoch + step / steps) / epochs)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = group["scale"] * share
                chosen = order[step * size : (step + 1) * size]
                logits = self.logits(cache.features[chosen].to(self.weights[0]))
                labels = cache.labels[chosen].to(logits.device).expand(len(logits), -1)
                optimizer.zero_grad()
                # Of the classifiers each has its own mean, and its own parameters.
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / size
                loss.backward()
                optimizer.step()
        return self

    @torch.no_grad()
    def ranked(self, features: torch.Tensor) -> torch.Tensor:
        """Of (N, C) the best classes (R, N, min(5, K)), the best first, on the CPU."""
        self.norm.eval()
        parts = []
        for part in features.split(LINEAR_PROBE["batch_size"]):
            logits = self.logits(part.to(self.weights[0]))
            # Where a rate was too high, scores are no numbers, and all classes count alike.
            parts.append(logits.nan_to_num(-math.inf).topk(min(5, logits.shape[2])).indices.cpu())
        return torch.cat(parts, 1)


def linear_probe(
    train: FeatureCache,
    queries: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    rates: list[float] | tuple[float, ...] = LEARNING_RATES,
    epochs: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    The accuracies of a linear classifier: the learning rate is the one that is best on a part of the training examples
    which is held out of training; then all of them are learnt with it, and the test examples are classified once.

    Args:
        train: Examples to learn from. queries: (N, C) features to test on. labels: (N,), their classes.
        rates: To choose from, for a batch of 256. epochs: `LINEAR_PROBE["epochs"]` by default.

    Returns:
        `metrics`, as of `probe_metrics`, `num_train`, the `learning_rate`, and `learning_rates`: of each, the accuracy
        on what was held out.

    Raises:
        UserError: if there are too few examples to hold some out.
    """
    epochs = epochs or LINEAR_PROBE["epochs"]
    held_out = stratified_draw(train.labels.numpy(), HELD_OUT)
    rest = np.setdiff1d(np.arange(len(train)), held_out)
    if not len(held_out) or len(rest) < 2:
        raise UserError(
            f"{len(train)} training examples are too few for a linear probe: a tenth of each class is held out to "
            f"choose the learning rate on"
        )
    channels, device = train.features.shape[1], queries.device
    rates = sorted(rates)
    tried = LinearProbe(channels, num_classes, rates, seed, device)
    tried.fit(train, torch.from_numpy(rest), epochs, f"{len(rates)} learning rates")
    guesses = tried.ranked(train.features[held_out])[:, :, 0]
    accuracies = (guesses == train.labels[held_out]).double().mean(1).tolist()
    best = rates[int(np.argmax(accuracies))]
    final = LinearProbe(channels, num_classes, [best], seed, device)
    final.fit(train, torch.arange(len(train)), epochs, f"learning rate {best:g}")
    return {
        "num_train": len(train),
        "metrics": probe_metrics(final.ranked(queries)[0], labels, num_classes),
        "learning_rate": best,
        "learning_rates": [
            {"learning_rate": rate, "held_out_accuracy": accuracy}
            for rate, accuracy in zip(rates, accuracies, strict=True)
        ],
    }
