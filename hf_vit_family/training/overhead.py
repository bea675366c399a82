"""Measures what the training loop costs compared with a bare PyTorch step."""

import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from .config import OptimizationOptions, RunOptions
from .loop import Log, TrainingBatches, TrainingLoop
from .objectives.classification import ClassificationObjective, make_loss


@dataclass
class Overhead:
    """Median milliseconds of a step, and by what share the loop's is longer, as the median over pairs of steps."""

    bare_milliseconds: float
    loop_milliseconds: float
    share: float


class _Repeated(Dataset):
    """One random image, as often as asked for."""

    def __init__(self, shape: tuple[int, int, int], length: int):
        self.image = torch.randn(shape)
        self.length = length

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.image, "labels": 0}


def loop_overhead(model: PreTrainedModel, shape: tuple[int, int, int], batch_size: int, steps: int = 30) -> Overhead:
    """
    Times steps of the loop (random numbers, schedule, forward, backward, optimiser, metrics, progress bar) and bare
    PyTorch steps (forward, backward, optimiser) of the same model, optimiser and batch, in turns: neighbours share the
    machine's moods. Both leave out loading. The model is changed.

    Args:
        model: An image classifier. shape: (channels, H, W) of an image. batch_size: Images in a step.
        steps: Pairs of steps that are timed, after three that are not.
    """
    accelerator = Accelerator()
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop(
            ClassificationObjective(model, make_loss("cross_entropy", 0.0)),
            TrainingBatches(
                _Repeated(shape, batch_size), torch.utils.data.default_collate, batch_size, 1, 0, accelerator
            ),
            OptimizationOptions(epochs=steps + 3, batch_size=batch_size, schedule="constant"),
            RunOptions(output=folder),
            accelerator,
            identity={},
        )
        loop.objective.train()
        (batches,) = loop.batches.epoch(0)
        batch = {name: value.to(accelerator.device) for name, value in batches[0].items()}
        pairs = []
        with tqdm(total=steps + 3, desc="steps", leave=False) as bar:
            log = Log(loop, bar)
            for _ in range(steps + 3):
                began = _now(accelerator.device)
                loss = nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
                loss.backward()
                loop.optimizer.optimizer.step()
                loop.optimizer.optimizer.zero_grad()
                middle = _now(accelerator.device)
                metrics = loop.step(batches)
                loop.position.step += 1
                log.step(metrics)
                pairs.append((middle - began, _now(accelerator.device) - middle))
    bare, looped = zip(*pairs[3:], strict=True)
    return Overhead(
        bare_milliseconds=1e3 * statistics.median(bare),
        loop_milliseconds=1e3 * statistics.median(looped),
        share=statistics.median(ours / theirs for theirs, ours in pairs[3:]) - 1,
    )


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
