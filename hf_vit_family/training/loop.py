"""The only training loop, on Accelerate: whatever is trained plugs in as an objective."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import DistributedType, set_seed
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from ..augmentation import mix_seed
from ..errors import UserError
from ..files import write_text
from ..image_sets import EpochSampler
from .checkpoint import Checkpoints
from .config import OptimizationOptions, RunOptions
from .objective import Objective
from .optim import WeightAverage, learning_rate, make_optimizer, parameter_groups

Batch = dict[str, torch.Tensor]
METRICS = "metrics.jsonl"


class TrainingBatches:
    """
    The batches of this process, epoch by epoch, from any position.

    An optimiser step takes `accumulation` batches of `batch_size` images from each process. The order of images is a
    function of (seed, epoch), cut into steps first and into processes then: two processes see in a step what one process
    with the double batch sees. Images that do not fill the last step of an epoch wait for a later epoch.

    Args:
        dataset: Map-style or iterable, with `set_epoch`.
        collate: From a list of samples to a batch.
        num_workers: Loader processes.
        repeats: How often in a row an image comes, in as many augmentations.

    Raises:
        UserError: if there are too few images for one step.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[Any]], Batch],
        batch_size: int,
        accumulation: int,
        seed: int,
        accelerator: Accelerator,
        num_workers: int = 0,
        repeats: int = 1,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.processes, self.process = accelerator.num_processes, accelerator.process_index
        self.images_per_step = batch_size * accumulation * self.processes
        self.settings = {
            "collate_fn": collate,
            "num_workers": num_workers,
            "pin_memory": accelerator.device.type == "cuda",
            # Loaders draw a seed for their workers: not from the generator that the model's dropout uses.
            "generator": torch.Generator().manual_seed(seed),
        }
        self.sampler = None
        if not isinstance(dataset, IterableDataset):
            self.sampler = EpochSampler(len(dataset), seed, repeats)
            if len(self.sampler) < self.images_per_step:
                raise UserError(
                    f"{len(self.sampler)} training images do not fill one optimiser step of {self.images_per_step} "
                    "(batch_size x gradient_accumulation_steps x processes): choose a smaller batch_size"
                )

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps in an epoch; None for a stream, whose length nobody knows."""
        return None if self.sampler is None else len(self.sampler) // self.images_per_step

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """For each optimiser step of an epoch from `first_step` on, its batches."""
        self.dataset.set_epoch(epoch)
        if self.sampler is None:
            shard = IterableDatasetShard(
                self.dataset, self.batch_size, drop_last=True, num_processes=self.processes, process_index=self.process
            )
            loader = DataLoader(shard, batch_size=self.batch_size, drop_last=True, **self.settings)
            batches = itertools.islice(loader, first_step * self.accumulation, None)
        else:
            self.sampler.set_epoch(epoch)
            order = list(self.sampler)
            mine = []
            for start in range(first_step * self.images_per_step, len(order), self.images_per_step):
                step = order[start : start + self.images_per_step]
                if len(step) == self.images_per_step:
                    share = self.batch_size * self.processes
                    for micro in range(0, self.images_per_step, share):
                        begin = micro + self.process * self.batch_size
                        mine.append(step[begin : begin + self.batch_size])
            batches = iter(DataLoader(self.dataset, batch_sampler=mine, **self.settings))
        while len(step := list(itertools.islice(batches, self.accumulation))) == self.accumulation:
            yield step


@dataclass
class Position:
    """How far a run is: what a checkpoint says besides tensors."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # the epoch that the next step belongs to, and
    step_in_epoch: int = 0  # how many steps of it are done
    best_step: int | None = None
    best_value: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)  # the latest
    wall_seconds: float = 0.0


class TrainingLoop:
    """
    Trains an objective, evaluates it and keeps checkpoints.

    Every optimiser step starts from random numbers that follow from (seed, step, process), batches from (seed, epoch):
    a run that was killed and resumed goes through the same numbers as one that was not.

    Args:
        objective: What to minimise; its trainable parameters are those with a gradient.
        batches: The training data.
        optimization, run: Options.
        accelerator: Made with `gradient_accumulation_steps` and `mixed_precision` as in the options.
        identity: What must be equal for a checkpoint to be resumed, as JSON holds it.
        evaluate: From a callable model, `(B, C, H, W)` as `pixel_values` to an object with `logits`, to metrics; None for
            objectives that have nothing to evaluate but their loss.
    """

    def __init__(
        self,
        objective: Objective,
        batches: TrainingBatches,
        optimization: OptimizationOptions,
        run: RunOptions,
        accelerator: Accelerator,
        identity: dict[str, Any],
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    ):
        self.batches = batches
        self.optimization = optimization
        self.run_options = run
        self.accelerator = accelerator
        self.identity = identity
        self.evaluate = evaluate
        self.position = Position()
        self.output = Path(run.output)
        self.total_steps = self._count_steps()
        self.warmup_steps = self._count_warmup_steps()

        groups = parameter_groups(objective.model, optimization.weight_decay, optimization.layer_decay)
        optimizer = make_optimizer(optimization.optimizer, groups, optimization.lr, optimization.optimizer_options)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # DeepSpeed reads the batch size from a prepared loader, or from here.
            plugin = accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batches.batch_size
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.trainable = [p for p in self.objective.parameters() if p.requires_grad]
        self.average = None
        if optimization.ema_decay is not None:
            if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
                raise UserError("ema_decay needs whole weights on every process: leave it out under FSDP and DeepSpeed")
            self.average = WeightAverage(accelerator.unwrap_model(self.objective).model, optimization.ema_decay)
            accelerator.register_for_checkpointing(self.average)
        self.checkpoints = Checkpoints(self.output / "checkpoints", accelerator, run.checkpoint_limit)

    def _count_steps(self) -> int:
        per_epoch, limit = self.batches.steps_per_epoch, self.optimization.max_steps
        if per_epoch is None and limit is None:
            raise UserError("a stream has no known length: say how long to train with max_steps")
        planned = limit if per_epoch is None else self.optimization.epochs * per_epoch
        return planned if limit is None else min(planned, limit)

    def _count_warmup_steps(self) -> int:
        if self.optimization.warmup_steps is not None:
            return self.optimization.warmup_steps
        if self.optimization.warmup_epochs and self.batches.steps_per_epoch is None:
            raise UserError("a stream has no known length: give the warm-up as warmup_steps")
        return round(self.optimization.warmup_epochs * (self.batches.steps_per_epoch or 0))

    def run(self) -> Position:
        """
        Trains to the end, from the newest checkpoint if there is one.

        Raises:
            UserError: if a checkpoint does not fit or cannot be written, or the loss is not finite.
        """
        self._resume()
        began = time.monotonic() - self.position.wall_seconds
        bar = tqdm(
            total=self.total_steps,
            initial=self.position.step,
            unit="step",
            disable=not self.accelerator.is_local_main_process,
            dynamic_ncols=True,
        )
        log = Log(self, bar)
        self.objective.train()
        with bar:
            while self.position.step < self.total_steps:
                before = self.position.step
                epoch = self.batches.epoch(self.position.epoch, self.position.step_in_epoch)
                while self.position.step < self.total_steps and (batches := log.wait_for(epoch)) is not None:
                    metrics = self.step(batches)
                    self.position.step += 1
                    self.position.step_in_epoch += 1
                    log.step(metrics)
                    ended = self.position.step_in_epoch == self.batches.steps_per_epoch
                    if not ended and self._checkpoint_is_due():
                        self._save_checkpoint(time.monotonic() - began)
                if self.position.step == before and self.position.step_in_epoch == 0:
                    raise UserError(f"the training data gave no batch of {self.batches.batch_size} images")
                finished = self.position.step == self.total_steps
                self.position.epoch += 1
                self.position.step_in_epoch = 0
                improved = False
                if finished or self.position.epoch % self.run_options.eval_epochs == 0:
                    improved = self._evaluate(log)
                if finished or improved or self.run_options.checkpoint_steps is None or self._checkpoint_is_due():
                    self._save_checkpoint(time.monotonic() - began)
        log.finish()
        return self.position

    def step(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        """One optimiser step over the batches of its accumulation; metrics are means over them, on the device."""
        step, accelerator = self.position.step, self.accelerator
        set_seed(mix_seed(self.optimization.seed, step, accelerator.process_index))
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        totals: dict[str, torch.Tensor] = {}
        for batch in batches:
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            with accelerator.accumulate(self.objective):
                metrics = self.objective(batch)
                accelerator.backward(metrics["loss"])
                if accelerator.sync_gradients and self.optimization.clip_grad_norm is not None:
                    totals["grad_norm"] = accelerator.clip_grad_norm_(self.trainable, self.optimization.clip_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / len(batches)
        if self.average is not None:
            self.average.update()
        accelerator.unwrap_model(self.objective).after_step(step + 1)
        return totals

    def learning_rate(self, step: int) -> float:
        """The learning rate of the head in optimiser step `step`, counted from 0."""
        options = self.optimization
        return learning_rate(step, self.total_steps, self.warmup_steps, options.lr, options.min_lr, options.schedule)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights of the model to save: the moving average if there is one. Every process calls it."""
        if self.average is not None:
            with self.average.applied():
                return self._model_state()
        return self._model_state()

    def _model_state(self) -> dict[str, torch.Tensor]:
        state = self.accelerator.get_state_dict(self.objective)
        return {
            name.removeprefix("model."): tensor.detach().clone()
            for name, tensor in state.items()
            if name.startswith("model.")
        }

    def load_best(self) -> Position:
        """Goes back to the checkpoint with the best evaluation."""
        self.checkpoints.load(self.position.best_step)
        return self._read_position(self.position.best_step)

    def _read_position(self, step: int) -> Position:
        return Position(**self.checkpoints.progress(step)["position"])

    def _resume(self) -> None:
        steps = self.checkpoints.steps()
        if not steps:
            return
        saved = self.checkpoints.progress(steps[-1])["identity"]
        for name in {**self.identity, **saved}:
            if saved.get(name) != self.identity.get(name):
                raise UserError(
                    f"{self.output} was trained with {name}={saved.get(name)}, not {self.identity.get(name)}: resume "
                    "with the same options, or start over with --overwrite or another output"
                )
        self.checkpoints.load(steps[-1])
        self.position = self._read_position(steps[-1])

    def _checkpoint_is_due(self) -> bool:
        every = self.run_options.checkpoint_steps
        return every is not None and self.position.step % every == 0

    def _save_checkpoint(self, wall_seconds: float) -> None:
        self.position.wall_seconds = wall_seconds
        progress = {"position": vars(self.position), "identity": self.identity}
        self.checkpoints.save(self.position.step, progress, self.position.best_step)

    def _evaluate(self, log: "Log") -> bool:
        """Evaluates; returns whether it was the best so far."""
        if self.evaluate is None:
            return False
        self.objective.eval()
        if self.average is not None:
            with self.average.applied():
                metrics = self.evaluate(self.objective)
        else:
            metrics = self.evaluate(self.objective)
        self.objective.train()
        self.position.evaluation = metrics
        log.write("evaluation", metrics)
        value = metrics.get(self.run_options.best_metric)
        if value is None:
            raise UserError(f"best_metric={self.run_options.best_metric}: the evaluation gives {', '.join(metrics)}")
        improved = self.position.best_value is None or value > self.position.best_value
        if improved:
            self.position.best_step, self.position.best_value = self.position.step, value
        return improved


class Log:
    """
    What a run says: the progress bar, `metrics.jsonl` and the trackers.

    Lines of `metrics.jsonl` have `split` ("train" or "evaluation"), `step`, `epoch` (a fraction) and metrics; those of
    training also `lr`, `images_per_second` and `data_wait`, the share of the time spent waiting for data.
    """

    def __init__(self, loop: TrainingLoop, bar: tqdm):
        self.loop = loop
        self.bar = bar
        self.path = loop.output / METRICS
        self.wait = self.total_wait = 0.0
        self.began = self.started = time.monotonic()
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        if loop.accelerator.is_main_process:
            self._forget_later_lines()

    def _forget_later_lines(self) -> None:
        """Drops what a killed run wrote after its last checkpoint; the last line may be a part of one."""
        kept = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            if line.endswith("}") and json.loads(line)["step"] <= self.loop.position.step:
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def wait_for(self, epoch: Iterator[list[Batch]]) -> list[Batch] | None:
        """The next step's batches, or None at the end of an epoch; the time is counted."""
        began = time.monotonic()
        batches = next(epoch, None)
        self.wait += time.monotonic() - began
        return batches

    def step(self, metrics: dict[str, torch.Tensor]) -> None:
        """Takes in the metrics of a step; writes a line when it is due."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.bar.update()
        position = self.loop.position
        if position.step % self.loop.run_options.log_steps and position.step != self.loop.total_steps:
            return
        # The only place where the host waits for the device.
        means = {name: total / self.steps for name, total in self.sums.items()}
        means = {name: value.item() for name, value in self.loop.accelerator.reduce(means, "mean").items()}
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} at step {position.step}: try a lower lr, a longer warm-up, clip_grad_norm or "
                "mixed_precision=bf16"
            )
        seconds = time.monotonic() - self.began
        speed = self.steps * self.loop.batches.images_per_step / seconds
        self.write(
            "train",
            {
                **means,
                "lr": self.loop.learning_rate(position.step - 1),
                "images_per_second": round(speed, 1),
                "data_wait": round(self.wait / seconds, 4),
            },
        )
        shown = {name: f"{means[name]:.4f}" for name in ("loss", "accuracy") if name in means}
        self.bar.set_postfix({**shown, "images/s": f"{speed:.0f}"}, refresh=False)
        self.total_wait += self.wait
        self.sums, self.steps, self.wait, self.began = {}, 0, 0.0, time.monotonic()

    def write(self, split: str, metrics: dict[str, float]) -> None:
        """One line of metrics."""
        loop = self.loop
        if not loop.accelerator.is_main_process:
            return
        epoch = loop.position.epoch
        if loop.batches.steps_per_epoch:
            epoch = round(loop.position.step / loop.batches.steps_per_epoch, 4)
        line = {"split": split, "step": loop.position.step, "epoch": epoch, **metrics}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        loop.accelerator.log({f"{split}/{name}": value for name, value in metrics.items()}, step=loop.position.step)
        if split == "evaluation":
            text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
            self.bar.write(f"epoch {epoch:g}, step {loop.position.step}: {text}")
            self.began, self.wait = time.monotonic(), 0.0

    def finish(self) -> None:
        """Prints how much of the time the model waited for data."""
        seconds = time.monotonic() - self.started
        if self.loop.accelerator.is_main_process and self.total_wait:
            print(f"waited for data: {self.total_wait / seconds:.1%} of {seconds:.0f} s")
