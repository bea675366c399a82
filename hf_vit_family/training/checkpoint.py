"""Checkpoints of a run that appear whole or not at all, and from which it goes on exactly where it was."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from torch import nn

from ..errors import UserError
from ..files import sync_folder
from .objective import Frozen

PROGRESS = "progress.json"
WEIGHTS = "objective.safetensors"


def step_folder(step: int) -> str:
    return f"step-{step:09d}"


class Checkpoints:
    """
    The folder `checkpoints` of a run: one `step-...` for each checkpoint kept.

    A checkpoint is what Accelerate's `save_state` writes (model, optimiser, gradient scaler, random numbers of every
    process, and objects registered for checkpointing, such as the moving average) and `progress.json`. It is written
    under another name, flushed to the disk and renamed, so that whatever has its name is complete.

    Args:
        folder: Where they lie.
        accelerator: Has prepared the objective.
        limit: How many are kept; the best is kept besides.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, limit: int):
        self.folder = folder
        self.accelerator = accelerator
        self.limit = limit
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def progress(self, step: int) -> dict[str, Any]:
        """What `save` was given for a step."""
        return json.loads((self.folder / step_folder(step) / PROGRESS).read_text())

    def save(self, step: int, progress: dict[str, Any], best_step: int | None) -> None:
        """
        Writes the checkpoint of a step and deletes those beyond the limit. Every process calls it.

        Args:
            progress: Whatever JSON can hold; `progress(step)` returns it.
            best_step: The step whose checkpoint is kept whatever its age.

        Raises:
            UserError: if it cannot be written, for example because the disk is full; earlier checkpoints are untouched.
        """
        if step in self.steps():  # a finished run that was resumed
            return
        final = self.folder / step_folder(step)
        unfinished = self.folder / f"unfinished-{final.name}"
        try:
            if self.accelerator.is_main_process:
                self.discard_unfinished()
                unfinished.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(unfinished))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (unfinished / PROGRESS).write_text(json.dumps(progress, indent=2))
                sync_folder(unfinished)
                os.rename(unfinished, final)
                sync_folder(self.folder, recursive=False)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            # torch and safetensors report a full disk as errors of their own.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.folder}: {error}; earlier checkpoints are whole: "
                "make room and go on with --resume"
            ) from error
        if self.accelerator.is_main_process:
            for old in self.steps()[: -self.limit]:
                if old != best_step:
                    shutil.rmtree(self.folder / step_folder(old))
        self.accelerator.wait_for_everyone()

    def load(self, step: int) -> None:
        """Puts every prepared object back to where it was after a step. Raises UserError for another architecture."""
        self.accelerator.load_state(str(self.folder / step_folder(step)))

    def discard_unfinished(self) -> None:
        """Deletes what a killed run was writing."""
        for path in self.folder.glob("unfinished-*"):
            shutil.rmtree(path)

    # Accelerate would write the wrapped module, with names that depend on the number of processes, and frozen teachers.
    # FSDP and DeepSpeed have saved or loaded their shards themselves before these hooks run, and leave nothing here.

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for model, _ in zip(models, list(weights), strict=False):
            weights.pop()
            if self.accelerator.is_main_process:
                state = trainable_state(self.accelerator.unwrap_model(model))
                safetensors.torch.save_file(state, str(Path(folder) / WEIGHTS))

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        while models:
            objective = self.accelerator.unwrap_model(models.pop())
            state = safetensors.torch.load_file(str(Path(folder) / WEIGHTS))
            expected = trainable_state(objective)
            wrong = sorted(
                name
                for name in state.keys() | expected.keys()
                if name not in state or name not in expected or state[name].shape != expected[name].shape
            )
            if wrong:
                raise UserError(
                    f"{folder} is a checkpoint of another architecture: {wrong[0]!r} differs, and {len(wrong) - 1} more"
                )
            objective.load_state_dict(state, strict=False)


def trainable_state(objective: nn.Module) -> dict[str, torch.Tensor]:
    """The state of an objective without its frozen modules; tensors are contiguous and shared by no two names."""
    frozen = tuple(name + "." for name, module in objective.named_modules() if isinstance(module, Frozen))
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in objective.state_dict().items()
        if not name.startswith(frozen)
    }
