"""The output folder of a run: what a run writes there, and what may be deleted of it."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from .. import modeling
from ..errors import UserError
from ..files import LOCK, UNFINISHED
from ..notices import say
from .checkpoint import checkpoint_folders
from .config import RunOptions

METRICS = "metrics.jsonl"
BAD_IMAGES = "bad_images.txt"
CURVES = "curves.png"
CHECKPOINTS = "checkpoints"
SAVING = ".saving-"  # begins the name of the folder that the model is written in, before it is moved into place

# What a run that has not ended leaves besides checkpoints. Trackers make a folder of the name that they are given.
TRACKER = "vit-family"
BEGUN = (METRICS, BAD_IMAGES)
# What it writes in the end: the model, its processor and, where its configuration names code, that code.
MODEL = (
    "config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "training.json",
    "evaluation.json",
    CURVES,
    *sorted(path.name for path in Path(modeling.__file__).parent.glob("*.py")),
)
_RANDOM = "[a-z0-9_]{8}"
_LEFTOVER = re.compile(rf"{re.escape(SAVING)}{_RANDOM}|\..+{re.escape(UNFINISHED)}{_RANDOM}|\.[a-z_]+\.py\.partial")


def is_written_by_runs(name: str) -> bool:
    """Whether a file of this name at the top of an output folder is a run's."""
    return any(fnmatch(name, pattern) for pattern in (*BEGUN, *MODEL))


def _entries(output: Path) -> list[Path]:
    """Lists an output folder, without its lock and what a killed process left half written."""
    if not output.is_dir():
        return []
    return sorted(p for p in output.iterdir() if p.name != LOCK and not _LEFTOVER.fullmatch(p.name))


def _holds_run(output: Path) -> bool:
    """Whether the `metrics.jsonl` of a folder is a run's: empty, or with lines as `Log` writes them."""
    try:
        with open(output / METRICS, encoding="utf-8") as file:
            first = file.readline()
        line = json.loads(first) if first.strip() else {"split": None, "step": None}
    except (OSError, ValueError):
        return False
    return isinstance(line, dict) and {"split", "step"} <= line.keys()


def _tracker_files(output: Path) -> list[Path]:
    """Finds the files that TensorBoard's tracker writes; those of other trackers lie elsewhere."""
    folder = output / TRACKER
    files = [*folder.rglob("events.out.tfevents.*"), *folder.rglob("hparams.yml")] if folder.is_dir() else []
    return [path for path in files if path.is_file()]


def _listed(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_output(options: RunOptions, inputs: dict[str, str | None]) -> None:
    """
    Decides whether a run may write into its output folder; says so where `resume` finds nothing to go on from.

    Args:
        inputs: What the run reads, by option: names, some of which are paths.

    Raises:
        UserError: if there is something in the folder and the run neither goes on from a checkpoint in it nor may
            replace an earlier run, or if replacing it would delete what the run reads.
    """
    output = Path(options.output)
    entries = _entries(output)
    if options.resume:
        _check_resume(output, entries)
    elif entries and not options.overwrite:
        raise UserError(
            f"output {output} is not empty: go on with --resume, replace it with --overwrite, or choose another folder"
        )
    elif entries:
        if not _holds_run(output):
            raise UserError(
                f"output {output} holds no earlier run: --overwrite does not touch it, choose another folder"
            )
        for name, value in inputs.items():
            path = _local_path(value)
            if path is not None and path.resolve().is_relative_to(output.resolve()):
                raise UserError(
                    f"{name} {value} lies in the output {output}, whose earlier run --overwrite deletes: choose "
                    f"another output"
                )


def _check_resume(output: Path, entries: list[Path]) -> None:
    checkpoints = checkpoint_folders(output / CHECKPOINTS)
    if any(path.name.startswith("step-") for path in checkpoints):
        return
    begun = {output / name for name in (*BEGUN, TRACKER)}
    if not any(path.name.startswith("damaged-") for path in checkpoints):
        begun.add(output / CHECKPOINTS)
    if foreign := [path for path in entries if path not in begun]:
        raise UserError(
            f"output {output} holds {_listed(foreign)}, but no checkpoint to go on from: choose another output, or "
            f"leave out --resume"
        )
    say(f"{output} holds no checkpoint: the run starts from the beginning")


def _local_path(value: str | None) -> Path | None:
    """The path that an option names, if it is one: of a teacher `timm:NAME@FILE`, the file."""
    if not value:
        return None
    for text in (value, value.partition("@")[2]):
        path = Path(text).expanduser()
        if text and path.exists():
            return path
    return None


def make_output(options: RunOptions) -> None:
    """
    Makes the output folder, without what killed processes left, and without an earlier run in it if the run overwrites.
    Whatever no run writes stays.

    Raises:
        UserError: if it cannot be made.
    """
    output = Path(options.output)
    try:
        if options.overwrite:
            _delete_run(output)
        for path in output.iterdir() if output.is_dir() else ():
            if _LEFTOVER.fullmatch(path.name):
                _delete(path)
        output.mkdir(parents=True, exist_ok=True)
        (output / METRICS).touch()
    except OSError as error:
        raise UserError(f"output {output} cannot be made: {error}") from error


def _delete_run(output: Path) -> None:
    for path in checkpoint_folders(output / CHECKPOINTS):
        _delete(path)
    files = [path for path in _entries(output) if is_written_by_runs(path.name)]
    for path in (*files, *_tracker_files(output)):
        if path.is_file() or path.is_symlink():
            path.unlink()
    folders = [*sorted((output / TRACKER).rglob("*/"), reverse=True), output / TRACKER, output / CHECKPOINTS]
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _delete(path: Path) -> None:
    """A folder with what is in it, a file, or of a link the link only."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)
