"""Checkpoints of a run: each appears whole or not at all, damage is noticed, and nothing in them can run code."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from .. import files
from ..errors import UserError
from ..files import apply_umask, sync_folder, write_text
from ..notices import say

PROGRESS = "progress.json"
# Raised when a checkpoint comes to hold other files or values. Version 1 held pickles.
FORMAT = 2
# Names in front of `step-...`: being written, being deleted, and set aside because it was damaged.
UNFINISHED, DELETING, DAMAGED = "unfinished-", "deleting-", "damaged-"

_STEP = re.compile(r"step-(\d{9,})")
_LEFTOVER = re.compile(rf"({UNFINISHED}|{DELETING}){_STEP.pattern}")
_OURS = re.compile(rf"({UNFINISHED}|{DELETING}|{DAMAGED})?{_STEP.pattern}")


class OtherFormatError(UserError):
    """A checkpoint of another version."""


# Tensors by file: "objective" is the file objective.safetensors.
Tensors = dict[str, dict[str, torch.Tensor]]


def step_folder(step: int) -> str:
    return f"step-{step:09d}"


def _matching(folder: Path, pattern: re.Pattern) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_dir())


def checkpoint_folders(folder: Path) -> list[Path]:
    """Everything that a run has written into its folder `checkpoints`: whole, unfinished and damaged checkpoints."""
    return _matching(folder, _OURS)


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """
    The folder `checkpoints` of a run: one `step-...` for each checkpoint kept.

    A checkpoint is files of tensors (`objective.safetensors` and so on) and `progress.json`, which holds everything
    else and the size and checksum of every file. It is written under another name, flushed to the disk and renamed, so
    that whatever has its name is complete. It is deleted the other way round.

    Args:
        folder: Where they lie.
        accelerator: Its main process reads and writes; the others wait for it.
        limit: How many are kept; the best is kept besides.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, limit: int):
        self.folder = folder
        self.accelerator = accelerator
        self.limit = limit
        self._undeletable: set[Path] = set()

    def steps(self) -> list[int]:
        """
        The steps that have a checkpoint, in order. Other folders, such as a copy `step-000000036.bak`, do not count.
        """
        return sorted(int(_STEP.fullmatch(path.name)[1]) for path in _matching(self.folder, _STEP))

    def progress(self, step: int) -> dict[str, Any]:
        """
        What `save` was given for a step.

        Raises:
            UserError: if the file is damaged, or was written by a version whose checkpoints can hold code.
        """
        path = self.folder / step_folder(step) / PROGRESS
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no JSON object")
        if values.get("format") != FORMAT:
            raise OtherFormatError(
                f"{path.parent} was written by another version of hf_vit_family, in a format that is not read here: "
                "finish the run with that version, or start over with --overwrite or another output"
            )
        if values.pop("sha256", None) != _checksum(values):
            raise UserError(f"{path} is damaged: its checksum differs")
        files = values.get("files")
        if not isinstance(files, dict) or any(Path(name).name != name for name in files):
            raise UserError(f"{path} is damaged: it does not name the files next to it")
        return values

    def save(self, step: int, tensors: Tensors, progress: dict[str, Any], best_step: int | None) -> None:
        """
        Writes the checkpoint of a step and deletes those beyond the limit. Every process calls it.

        Where the step has a checkpoint already, only its progress is written anew: weights are a function of the step.

        Args:
            tensors: By file, then by name. Those of the main process are written.
            progress: Whatever JSON can hold; `progress(step)` returns it.
            best_step: The step whose checkpoint is kept whatever its age.

        Raises:
            UserError: if it cannot be written, for example because the disk is full; earlier checkpoints are untouched.
        """
        if self.accelerator.is_main_process:
            unfinished = self.folder / (UNFINISHED + step_folder(step))
            try:
                if step in self.steps():
                    self._write_progress(step_folder(step), {"files": self.progress(step)["files"], **progress})
                else:
                    self._write(unfinished, tensors, progress)
            except (OSError, RuntimeError, safetensors.SafetensorError) as error:
                # torch and safetensors report a full disk as errors of their own.
                shutil.rmtree(unfinished, ignore_errors=True)
                raise UserError(
                    f"checkpoint of step {step} cannot be written to {self.folder}: {error}; earlier checkpoints are "
                    f"whole: make room and go on with --resume"
                ) from error
            for old in self.steps()[: -self.limit]:
                if old != best_step:
                    self._delete(self.folder / step_folder(old))
        self.accelerator.wait_for_everyone()

    def _write(self, unfinished: Path, tensors: Tensors, progress: dict[str, Any]) -> None:
        final = self.folder / unfinished.name.removeprefix(UNFINISHED)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        written = {}
        for stem, named in tensors.items():
            path = unfinished / f"{stem}.safetensors"
            safetensors.torch.save_file(named, str(path))
            written[path.name] = self._facts(path)
        self._write_progress(unfinished.name, {"files": written, **progress})
        apply_umask(unfinished)
        sync_folder(unfinished)
        os.rename(unfinished, final)
        sync_folder(self.folder, recursive=False)

    def _write_progress(self, folder: str, values: dict[str, Any]) -> None:
        values = json.loads(json.dumps({"format": FORMAT, **values}))  # as they will be read: tuples become lists
        write_text(self.folder / folder / PROGRESS, json.dumps({**values, "sha256": _checksum(values)}, indent=2))
        sync_folder(self.folder / folder, recursive=False)

    @staticmethod
    def _facts(path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def _delete(self, path: Path) -> None:
        """Deletes a checkpoint. One that cannot be deleted stays, and the run goes on: it says so once."""
        doomed = path if _LEFTOVER.fullmatch(path.name) else path.with_name(DELETING + path.name)
        try:
            if doomed != path:
                os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            if path not in self._undeletable:
                self._undeletable.add(path)
                self._say(f"{path} cannot be deleted ({error.strerror or error}): the run goes on")

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)

    def damage(self, step: int) -> str | None:
        """Says what is wrong with the files of a checkpoint; None if they are as they were written."""
        folder = self.folder / step_folder(step)
        for name, facts in self.progress(step)["files"].items():
            try:
                if self._facts(folder / name) != facts:
                    return f"{folder / name} is damaged: its size or checksum differs"
            except OSError as error:
                return f"{folder / name} cannot be read ({error.strerror})"
        return None

    def newest(self) -> int | None:
        """
        The newest step whose checkpoint is whole; None if there is no checkpoint. Every process calls it.

        Damaged ones are renamed to `damaged-step-...`, with a notice.

        Raises:
            UserError: if all are damaged, or written by another version.
        """
        step = self._newest_whole() if self.accelerator.is_main_process else None
        found = torch.tensor(-1 if step is None else step, device=self.accelerator.device)
        step = int(broadcast(found))
        return None if step < 0 else step

    def _newest_whole(self) -> int | None:
        damaged = []
        for step in reversed(self.steps()):
            try:
                problem = self.damage(step)
            except OtherFormatError:
                raise
            except UserError as error:
                problem = str(error)
            if problem is None:
                for wrong in damaged:
                    self._set_aside(wrong)
                return step
            self._say(f"{problem}: trying the checkpoint before it")
            damaged.append(step)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: restore one of them, or start over with --overwrite"
            )
        return None

    def _set_aside(self, step: int) -> None:
        name = step_folder(step)
        try:
            if (self.folder / (DAMAGED + name)).exists():  # the same step was damaged before
                shutil.rmtree(self.folder / (DAMAGED + name))
            os.rename(self.folder / name, self.folder / (DAMAGED + name))
        except OSError as error:
            raise UserError(
                f"{self.folder / name} is damaged and cannot be renamed ({error.strerror}): move it away"
            ) from error

    def read(self, step: int) -> Tensors:
        """
        The tensors that `save` was given for a step, on the CPU.

        Raises:
            UserError: if a file is damaged.
        """
        if (problem := self.damage(step)) is not None:
            raise UserError(problem)
        folder = self.folder / step_folder(step)
        return {Path(name).stem: safetensors.torch.load_file(folder / name) for name in self.progress(step)["files"]}

    def discard_leftovers(self) -> None:
        """Deletes what a killed run was writing or deleting. Every process may call it."""
        if not self.accelerator.is_main_process:
            return
        for path in _matching(self.folder, _LEFTOVER):
            self._delete(path)
        for path in self.folder.glob(f"step-*/.{PROGRESS}{files.UNFINISHED}*"):
            path.unlink(missing_ok=True)
