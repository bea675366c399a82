"""The only training loop, on Accelerate: whatever is trained plugs in as an objective."""

import itertools
import json
import math
import operator
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import DistributedType, set_seed
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from ..data.augmentation import mix_seed
from ..data.image_sets import EpochSampler
from ..errors import UserError
from ..evaluation.metrics import HIGHER_IS_BETTER
from ..files import write_text
from ..modeling.layers import BatchTooSmallError
from ..notices import say
from .checkpoint import Checkpoints, Tensors, step_folder
from .config import OptimizationOptions, RunOptions
from .objectives.momentum import MomentumTeacher
from .objectives.objective import Objective
from .optim import (
    WeightAverage,
    clip_each,
    cosine,
    learning_rate,
    make_optimizer,
    own_parameter_groups,
    parameter_groups,
)
from .output import CHECKPOINTS, METRICS
from .state import check_same_names, first_not_finite, load_optimizer, load_weights, optimizer_state, weights_state
from .stopping import Interrupted, StopRequest, StopRequested, leave_signals_to_the_parent

Batch = dict[str, torch.Tensor]


_REMEDY = "try a lower lr, a longer warm-up, clip_grad_norm or mixed_precision=bf16"


class TrainingBatches:
    """
    The batches of this process, epoch by epoch, from any position.

    An optimiser step takes `accumulation` batches of `batch_size` images from each process. The order of images is a
    function of (seed, epoch), cut into steps first and into processes then: two processes see in a step what one
    process with the double batch sees. Images that do not fill the last step of an epoch wait for a later epoch.

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
            "worker_init_fn": leave_signals_to_the_parent if num_workers else None,
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
    """The progress of a run: what a checkpoint says besides tensors."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # the epoch that the next step belongs to, and
    step_in_epoch: int = 0  # how many steps of it are done
    best_step: int | None = None
    best_value: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)  # the latest
    evaluation_due: bool = False  # the epoch has ended, and its evaluation has not
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
        evaluate: From the prepared objective to metrics; None where nothing is evaluated.
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
        self.best_metric = run.best_metric or objective.best_metric
        self.position = Position()
        self.output = Path(run.output)
        self.total_steps = self._count_steps()
        self.warmup_steps = self._count_warmup_steps()

        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise UserError(
                "DeepSpeed keeps its checkpoints as pickles, which can run code when they are read: share the work by "
                "FSDP, or by several processes with the whole model"
            )
        has_teacher = any(isinstance(module, MomentumTeacher) for module in objective.modules())
        if accelerator.distributed_type == DistributedType.FSDP and has_teacher:
            raise UserError("a momentum teacher needs whole weights on every process: leave FSDP out")
        groups = [
            *parameter_groups(
                objective.model,
                optimization.weight_decay,
                optimization.layer_decay,
                objective.names_without_decay(),
            ),
            *own_parameter_groups(objective, optimization.weight_decay, objective.decays_vectors),
        ]
        optimizer = make_optimizer(optimization.optimizer, groups, optimization.lr, optimization.optimizer_options)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.trainable = [p for p in self.objective.parameters() if p.requires_grad]
        self.average = None
        if optimization.ema_decay is not None:
            if accelerator.distributed_type == DistributedType.FSDP:
                raise UserError("ema_decay needs whole weights on every process: leave it out under FSDP")
            self.average = WeightAverage(accelerator.unwrap_model(self.objective).model, optimization.ema_decay)
        self.checkpoints = Checkpoints(self.output / CHECKPOINTS, accelerator, run.checkpoint_limit)
        self.stop = StopRequest(accelerator)

    def _count_steps(self) -> int:
        per_epoch, limit = self.batches.steps_per_epoch, self.optimization.max_steps
        if per_epoch is None and limit is None:
            raise UserError("a stream has no known length: say how long to train with max_steps")
        return self.optimization.epochs * per_epoch if limit is None else limit

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
            UserError: if a checkpoint does not fit or cannot be written, the loss or a weight is not finite, or a batch
                is too small for the model's batch norms.
            Interrupted: after SIGTERM or SIGINT, with a checkpoint of the step that was under way.
        """
        self.checkpoints.discard_leftovers()
        log_state = self._resume()
        began = time.monotonic() - self.position.wall_seconds
        bar = tqdm(
            total=self.total_steps,
            initial=self.position.step,
            unit="step",
            disable=not self.accelerator.is_local_main_process,
            dynamic_ncols=True,
        )
        log = Log(self, bar, log_state)
        objective = self.accelerator.unwrap_model(self.objective)
        objective.begin(self.total_steps, self.batches.steps_per_epoch, self.position.step)
        self.objective.train()
        with bar, self.stop:
            try:
                self._run(log, began)
            except StopRequested:
                self._save_checkpoint(log, began)
                name = signal.Signals(self.stop.number).name
                raise Interrupted(
                    f"{name} ended the run after step {self.position.step} of {self.total_steps}, which has a "
                    f"checkpoint in {self.checkpoints.folder}: go on with --resume",
                    self.stop.number,
                ) from None
        log.finish()
        return self.position

    def _run(self, log: "Log", began: float) -> None:
        position = self.position
        self._evaluate_if_due(log, began)  # a run that ended before it had been
        while position.step < self.total_steps:
            before = position.step
            epoch = self.batches.epoch(position.epoch, position.step_in_epoch)
            while (batches := log.wait_for(epoch)) is not None:
                metrics = self.step(batches)
                position.step += 1
                position.step_in_epoch += 1
                log.step(metrics)
                if position.step == self.total_steps or position.step_in_epoch == self.batches.steps_per_epoch:
                    break
                self.stop.check()
                if self._checkpoint_is_due():
                    self._save_checkpoint(log, began)
            if position.step == before and position.step_in_epoch == 0:
                raise UserError(f"the training data gave no batch of {self.batches.batch_size} images")
            finished = position.step == self.total_steps
            position.epoch += 1
            position.step_in_epoch = 0
            position.evaluation_due = finished or position.epoch % self.run_options.eval_epochs == 0
            if finished or self.run_options.checkpoint_steps is None or self._checkpoint_is_due():
                # Before the evaluation: whatever becomes of that, the epoch is not lost.
                self._save_checkpoint(log, began)
            self.stop.check()
            self._evaluate_if_due(log, began)

    def step(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        """One optimiser step over the batches of its accumulation; metrics are means over them, on the device."""
        step, accelerator, options = self.position.step, self.accelerator, self.optimization
        objective = accelerator.unwrap_model(self.objective)
        set_seed(mix_seed(options.seed, step, accelerator.process_index))
        lr, weight_decay = self.learning_rate(step), self.weight_decay(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        objective.before_step(step)
        totals: dict[str, torch.Tensor] = {}
        for batch in batches:
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            with accelerator.accumulate(self.objective):
                try:
                    metrics = self.objective(batch)
                except BatchTooSmallError as error:
                    raise UserError(f"batch_size={self.batches.batch_size} on each process: {error}") from error
                accelerator.backward(metrics["loss"])
                if accelerator.sync_gradients:
                    if options.clip_grad_norm is not None:
                        totals["grad_norm"] = self._clip(options.clip_grad_norm)
                    objective.after_backward(step)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / len(batches)
        if self.average is not None:
            self.average.update()
        objective.after_step(step + 1)
        return totals

    def _clip(self, limit: float) -> torch.Tensor:
        """Shortens the gradient, or that of each parameter, to a norm; returns the norm of all before."""
        if self.optimization.clip_grad_by == "all":
            return self.accelerator.clip_grad_norm_(self.trainable, limit)
        self.accelerator.unscale_gradients(self.optimizer)
        return clip_each(self.trainable, limit)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the head in optimiser step `step`, counted from 0."""
        options = self.optimization
        return learning_rate(step, self.total_steps, self.warmup_steps, options.lr, options.min_lr, options.schedule)

    def weight_decay(self, step: int) -> float:
        """The weight decay in optimiser step `step`, counted from 0, of what decays."""
        options = self.optimization
        if options.weight_decay_end is None:
            return options.weight_decay
        return cosine(options.weight_decay, options.weight_decay_end, step / self.total_steps)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights of the model to save: the moving average if there is one. Every process calls it."""
        if self.average is not None:
            with self.average.applied():
                return self._model_state()
        return self._model_state()

    def _model_state(self) -> dict[str, torch.Tensor]:
        prefix = self.accelerator.unwrap_model(self.objective).saved + "."
        state = self.accelerator.get_state_dict(self.objective)
        return {
            name.removeprefix(prefix): tensor.detach().clone()
            for name, tensor in state.items()
            if name.startswith(prefix)
        }

    def load_best(self) -> Position:
        """Goes back to the checkpoint with the best evaluation."""
        progress = self.checkpoints.progress(self.position.best_step)
        self._load(self.position.best_step, progress)
        return Position(**progress["position"])

    def interruptible(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of an evaluation, until the run is asked to end."""
        for batch in batches:
            self.stop.check()
            yield batch

    def _resume(self) -> "LogState":
        step = self.checkpoints.newest()
        if step is None:
            return LogState()
        progress = self.checkpoints.progress(step)
        saved = progress.get("identity")
        if not isinstance(saved, dict):
            raise self._not_a_checkpoint(step, KeyError("identity"))
        for name in {**self.identity, **saved}:
            if saved.get(name) != self.identity.get(name):
                raise UserError(
                    f"{self.output} was trained with {name}={saved.get(name)}, not {self.identity.get(name)}: resume "
                    "with the same options, or start over with --overwrite or another output"
                )
        tensors = self._load(step, progress)
        try:
            self.position = Position(**progress["position"])
            device, process = self.accelerator.device, self.accelerator.process_index
            mine = {name: values[process].to(device) for name, values in tensors["log"].items()}
            log_state = LogState(mine, int(progress["log_steps"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._not_a_checkpoint(step, error) from error
        best = self.position.best_step
        if best is not None and best not in self.checkpoints.steps():
            if self.accelerator.is_main_process:
                say(f"the best checkpoint, of step {best}, is gone: the best of those to come is kept")
            self.position.best_step = self.position.best_value = None
        return log_state

    def _load(self, step: int, progress: dict[str, Any]) -> Tensors:
        """
        Puts weights, average and optimiser back to where they were after a step; returns all that was saved with it.
        """
        accelerator = self.accelerator
        tensors = self.checkpoints.read(step)
        try:
            load_weights(accelerator, self.objective, tensors["objective"])
            load_optimizer(accelerator, self.objective, self.optimizer, tensors["optimizer"], progress["optimizer"])
            if self.average is not None:
                check_same_names(tensors["average"], self.average.average)
                updates = int(progress["average_updates"])
                self.average.load_state_dict({"average": tensors["average"], "updates": updates})
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(progress["scaler"])
        except (
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            OverflowError,
        ) as error:  # whole, but not as it was written
            raise self._not_a_checkpoint(step, error) from error
        return tensors

    def _not_a_checkpoint(self, step: int, error: Exception) -> UserError:
        folder = self.checkpoints.folder / step_folder(step)
        return UserError(f"{folder} does not hold what this run needs ({error!r}): move it away")

    def _checkpoint_is_due(self) -> bool:
        every = self.run_options.checkpoint_steps
        return every is not None and self.position.step % every == 0

    def _save_checkpoint(self, log: "Log", began: float) -> None:
        accelerator = self.accelerator
        self.position.wall_seconds = time.monotonic() - began
        sums = log.gather()
        optimizer, numbers = optimizer_state(accelerator, self.objective, self.optimizer)
        self._check_finite(sums, optimizer)
        tensors = {"objective": weights_state(accelerator, self.objective), "optimizer": optimizer, "log": sums}
        progress = {
            "position": vars(self.position),
            "identity": self.identity,
            "optimizer": numbers,
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "log_steps": log.state.steps,
        }
        if self.average is not None:
            tensors["average"] = {name: tensor.contiguous() for name, tensor in self.average.average.items()}
            progress["average_updates"] = self.average.updates
        self.checkpoints.save(self.position.step, tensors, progress, self.position.best_step)

    def _check_finite(self, sums: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor] | None = None) -> None:
        """
        Raises UserError if the loss of the steps that are not logged yet, a weight, or what the optimiser remembers of
        one is not finite: the checkpoints that there are would be deleted for ones without worth.
        """
        step, whole = self.position.step, self.checkpoints.steps()
        kept = f"; the checkpoint of step {whole[-1]} is whole" if whole else ""
        if "loss" in sums and not bool(sums["loss"].isfinite().all()):
            raise UserError(f"the loss is not finite before step {step}: {_REMEDY}{kept}")
        objective = self.accelerator.unwrap_model(self.objective)
        tensors = [*objective.named_parameters(), *objective.named_buffers()]
        if self.average is not None:
            tensors += [(f"average of {name}", tensor) for name, tensor in self.average.average.items()]
        # What is to be saved of the optimiser is on the CPU.
        remembered = [(f"the optimizer's {name}", tensor) for name, tensor in (optimizer or {}).items()]
        if (name := first_not_finite(tensors) or first_not_finite(remembered)) is not None:
            raise UserError(f"{name} is not finite after step {step}: {_REMEDY}{kept}")

    def _evaluate_if_due(self, log: "Log", began: float) -> None:
        """
        Evaluates where that is due; of the best so far, and of a step that has a checkpoint, it is recorded there.
        """
        if not self.position.evaluation_due:
            return
        self._check_finite(log.gather())
        improved = self._evaluate(log)
        self.position.evaluation_due = False
        if improved or self.position.step in self.checkpoints.steps():
            self._save_checkpoint(log, began)

    def _evaluate(self, log: "Log") -> bool:
        """Evaluates; returns whether it was the best so far."""
        if self.evaluate is None:
            return False
        self.objective.eval()
        with nullcontext() if self.average is None else self.average.applied():
            metrics = self.evaluate(self.objective)
        self.objective.train()
        name, best = self.best_metric, self.position.best_value
        if name not in metrics or name not in HIGHER_IS_BETTER:
            choices = ", ".join(metric for metric in metrics if metric in HIGHER_IS_BETTER)
            raise UserError(f"best_metric={name}: choose one of {choices}")
        self.position.evaluation = metrics
        log.write("evaluation", metrics)
        value = metrics[name]
        better = operator.gt if HIGHER_IS_BETTER[name] else operator.lt
        improved = best is None or math.isnan(best) or better(value, best)
        if improved:
            self.position.best_step, self.position.best_value = self.position.step, value
        return improved


@dataclass
class LogState:
    """The metrics that no line has told yet: sums over steps, of this process, and the number of steps."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int = 0


class Log:
    """
    What a run says: the progress bar, `metrics.jsonl` and the trackers.

    Lines of `metrics.jsonl` have `split` ("train" or "evaluation"), `step`, `epoch` (a fraction) and metrics; those of
    training also `lr`, `images_per_second` and `data_wait`, the share of the time spent waiting for data.
    """

    def __init__(self, loop: TrainingLoop, bar: tqdm, state: LogState | None = None):
        self.loop = loop
        self.bar = bar
        self.path = loop.output / METRICS
        self.wait = self.total_wait = 0.0
        self.began = self.started = time.monotonic()
        self.state = state or LogState()
        self.timed_steps = 0  # those since `began`
        if loop.accelerator.is_main_process:
            self._forget_later_lines()

    def _forget_later_lines(self) -> None:
        """Drops what a killed run wrote after its last checkpoint; the last line may be a part of one."""
        position, kept = self.loop.position, []
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                step, evaluation = int(row["step"]), row["split"] == "evaluation"
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise UserError(f"{self.path}: line {number} is no line of a run's metrics: remove it") from error
            if step < position.step or (step == position.step and not (evaluation and position.evaluation_due)):
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def gather(self) -> dict[str, torch.Tensor]:
        """The sums of every process, (processes,) of each metric. Every process calls it."""
        accelerator = self.loop.accelerator
        sums = {name: value.detach().reshape(1).to(accelerator.device) for name, value in self.state.sums.items()}
        return accelerator.gather(sums) if sums else {}

    def wait_for(self, epoch: Iterator[list[Batch]]) -> list[Batch] | None:
        """The next step's batches, or None at the end of an epoch; the time is counted."""
        began = time.monotonic()
        batches = next(epoch, None)
        self.wait += time.monotonic() - began
        return batches

    def step(self, metrics: dict[str, torch.Tensor]) -> None:
        """Takes in the metrics of a step; writes a line when it is due."""
        state = self.state
        for name, value in metrics.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.steps += 1
        self.timed_steps += 1
        self.bar.update()
        position = self.loop.position
        if position.step % self.loop.run_options.log_steps and position.step != self.loop.total_steps:
            return
        # The only place where the host waits for the device.
        means = {name: total / state.steps for name, total in state.sums.items()}
        means = {name: value.item() for name, value in self.loop.accelerator.reduce(means, "mean").items()}
        if not math.isfinite(means["loss"]):
            raise UserError(f"the loss is {means['loss']} at step {position.step}: {_REMEDY}")
        heard = self.loop.accelerator.unwrap_model(self.loop.objective).watch(means)
        if heard and self.loop.accelerator.is_main_process:
            self.bar.write(f"step {position.step}: {heard}")
        seconds = time.monotonic() - self.began
        speed = self.timed_steps * self.loop.batches.images_per_step / seconds
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
        self.state, self.timed_steps, self.wait, self.began = LogState(), 0, 0.0, time.monotonic()

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
            say(f"waited for data: {self.total_wait / seconds:.1%} of {seconds:.0f} s")
