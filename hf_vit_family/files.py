"""Files and folders that appear whole or not at all."""

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .refusals import writing_reason

try:
    import fcntl
except ImportError:  # Windows has no such locks: two runs in one folder are not noticed there
    fcntl = None


# Between the name of what is being written and eight random characters, in the name that it has meanwhile.
UNFINISHED = ".unfinished-"
LOCK = ".lock"


def _beside(path: Path) -> str:
    """The beginnings of names that something has while it is written."""
    return f".{path.name}{UNFINISHED}"


@contextlib.contextmanager
def naming_what_is_written(path: Path) -> Iterator[None]:
    """
    UserError with the path in place of an error of writing, such as that the disk is full, which does not name it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := writing_reason(error)) is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason})") from error


@contextlib.contextmanager
def whole_file(path: str | Path, **options: Any) -> Iterator[IO]:
    """
    An open file that appears at `path`, in place of what is there, when the block ends well, and never otherwise. It is
    written next to its place; parent folders are made.

    Args:
        options: Of `open`, such as `mode="wb"`; by default text in UTF-8.

    Raises:
        UserError: if the disk is full, or the like. OSError: for a path that cannot be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_beside(path))
    try:
        with (
            naming_what_is_written(path),
            os.fdopen(descriptor, **(options or {"mode": "w", "encoding": "utf-8"})) as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all; parent folders are made. Errors as in `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


def sync_folder(folder: Path, recursive: bool = True) -> None:
    """Flushes a folder to the disk, with all files below it, or only its list of names."""
    paths = [*folder.rglob("*"), folder] if recursive else [folder]
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def apply_umask(folder: Path) -> None:
    """
    Gives all files below a folder the mode of new files: safetensors makes its files readable for their owner only.
    """
    mode = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """
    A folder that appears at `path` when the block ends well, and never otherwise.

    Raises:
        UserError: if `path` is a file or a folder with something in it.
    """
    path = Path(path)
    try:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(f"{path} exists and is not an empty folder; choose another or remove it")
        check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        _discard_abandoned(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_beside(path)))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    in_use = _flock(temporary)
    try:
        with naming_what_is_written(path):
            yield temporary
        apply_umask(temporary)
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if in_use is not None:
            os.close(in_use)


def _discard_abandoned(path: Path) -> None:
    """Deletes what a process that was killed left of `whole_folder(path)`: a living one has it locked."""
    pattern = re.compile(re.escape(_beside(path)) + "[a-z0-9_]{8}")
    for left in path.parent.iterdir():
        if pattern.fullmatch(left.name) and left.is_dir() and (lock := _flock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def check_writable(folder: str | Path) -> None:
    """
    Makes sure that something can be written into a folder, which may not exist yet, and leaves no trace.

    Raises:
        UserError: naming the folder, and why not.
    """
    folder = Path(folder)
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from error


def _flock(path: Path) -> int | None:
    """A descriptor that locks a file or folder until it is closed, or None where another process has it locked."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        pass
    return descriptor


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """
    Makes a folder and keeps it for this process only; the kernel gives it up when the process ends, however it ends.
    Afterwards a folder that did not exist and that nothing was written to is gone again.

    Raises:
        UserError: if another process has it, which is named, or it cannot be made.
    """
    folder = Path(folder)
    path = folder / LOCK
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder")
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
            descriptor = _flock(path)
            if descriptor is None:
                raise UserError(f"{folder} is in use by {_holder(path)}: wait until it ends, or choose another folder")
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
            os.close(descriptor)  # another process ended just now and took the file with it
        _HELD.add(descriptor)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _HELD.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # there is something in it now
            for parent in made:
                parent.rmdir()


def _holder(lock: Path) -> str:
    try:
        held = json.loads(lock.read_text())
        return f"process {held['pid']} on {held['host']} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"


# Locks belong to open files, which forked children share: a loader process would hold on to the lock of a killed
# parent.
_HELD: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
