"""Files that hold weights: reading them without running what they hold, and writing them."""

import argparse
import codecs
import hashlib
import json
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UnreadableCheckpointError
from ..hub import check_revision
from ..refusals import HttpError, hub_reason
from .flax_files import load_flax

# Keys under which training scripts nest a state dict. The first that a file has is taken: the weights that were trained
# before their moving average, and of DINO's two networks the teacher, which its authors evaluate
# (facebookresearch/dino@7c446df eval_knn.py).
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "params", "weights"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "student"),
)
# Prefixes of DataParallel and torch.compile, which every key of a file shares; and those of the optimizer in
# google-research/vision_transformer@c6de1e5 (checkpoint.py) and google-research/scenic@4a38d47, besides which a file
# holds the state of training.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
OPTIMIZER_PREFIXES = ("opt/target/", "optimizer/target/", "params/")
# Names under which a larger module keeps the encoder: Lightning, MoCo, DINO, ema-pytorch, CLIP. The first one under
# which there is a model of this library is read.
MODULE_PREFIXES = (
    *("model.", "net.", "network.", "backbone.", "encoder.", "image_encoder.", "visual.", "trunk.", "base_encoder."),
    *("ema_model.", "online_model.", "teacher.", "student.", "momentum_encoder."),
)
# A file may hold this many times its own size, and this many bytes more: zeros are compressed a thousandfold, weights
# hardly, and tensors that are tied are stored once.
LARGEST_RATIO = 20
LARGEST_REST = 64 << 20
# Larger modules lie within each other no deeper than this.
DEEPEST = 4

# Files of a folder that hold weights, the safe ones first.
WEIGHTS = ("*.safetensors", "*.npz", "*.bin", "*.pth", "*.pyth", "*.pt", "*.ckpt", "*.pth.tar", "*.msgpack")
# Files that say how transformers prepares the input: of clips, where there are two, and else of images.
PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


@dataclass
class CheckpointFile:
    """
    A checkpoint in memory.

    Args:
        state_dict: Key to tensor, as the original model names them.
        source: What the user named. path: The first file. sha256: Digest of the files, in order.
        wrapper: Keys under which the state dict was nested. key_prefix: What was taken off every key.
        other_wrappers: Keys next to the last of `wrapper` that hold weights too. left_out: Keys without `key_prefix`.
        is_lightning: Whether Lightning wrote it, so that keys begin with an attribute of the user's module.
        metadata: The config.json next to it; preprocessor: that of its processor, of clips where there is one.
    """

    state_dict: dict[str, Tensor]
    source: str = ""
    path: Path | None = None
    sha256: str = ""
    wrapper: list[str] = field(default_factory=list)
    key_prefix: str = ""
    other_wrappers: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    is_lightning: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)

    def within(self, prefix: str) -> "CheckpointFile":
        """The part of it whose keys begin with `prefix`, without it. UnreadableCheckpointError if none does."""
        inside = {key.removeprefix(prefix): tensor for key, tensor in self.state_dict.items() if key.startswith(prefix)}
        if not inside:
            raise UnreadableCheckpointError(
                f"no key begins with the prefix {prefix!r}; the first one is {next(iter(self.state_dict))!r}"
            )
        outside = [self.key_prefix + key for key in self.state_dict if not key.startswith(prefix)]
        return replace(
            self,
            state_dict=inside,
            key_prefix=self.key_prefix + prefix,
            left_out=self.left_out + outside,
        )

    def readings(self, depth: int = DEEPEST) -> Iterator["CheckpointFile"]:
        """The file as it is, and each module in it that may be an encoder; see `MODULE_PREFIXES`."""
        if not self.is_lightning or self.key_prefix:
            yield self
        for prefix in MODULE_PREFIXES:
            if depth and any(key.startswith(prefix) for key in self.state_dict):
                yield from self.within(prefix).readings(depth - 1)

    @property
    def notes(self) -> list[str]:
        """Says what was chosen among what the file holds, one sentence each."""
        notes = []
        if self.other_wrappers:
            others = " or ".join(f"--wrapper {name}" for name in self.other_wrappers)
            notes.append(
                f"took the weights under {'.'.join(self.wrapper)!r}; {others} takes others that the file holds"
            )
        if self.left_out:
            shown = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
            notes.append(
                f"took the keys that begin with {self.key_prefix!r}; left out {len(self.left_out)} others ({shown}); "
                "--prefix takes another part"
            )
        return notes

    @property
    def is_timm(self) -> bool:
        """Whether the config.json is timm's: it names an architecture and a pretrained configuration, no model type."""
        return "pretrained_cfg" in self.metadata or ("architecture" in self.metadata and not self.is_transformers)

    @property
    def is_transformers(self) -> bool:
        """Whether the config.json is transformers', or of this library."""
        return "model_type" in self.metadata

    @property
    def kwargs(self) -> dict[str, Any]:
        """Constructor arguments that the config.json gives; none without it."""
        return dict(self.metadata.get("model_args", {})) if self.is_timm else dict(self.metadata)

    @property
    def variant_hint(self) -> str:
        """A text that may begin with a variant's name: timm's architecture, or the name of the file."""
        return self.metadata.get("architecture", "") if self.is_timm else self.path.name if self.path else ""


def as_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays as tensors. Raises UnreadableCheckpointError, which names the key, for anything else."""
    result = {}
    for key, value in state_dict.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
            value = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
            raise UnreadableCheckpointError(f"key {key!r} holds a {kind}, not a tensor", str(key))
        result[key] = value
    return result


def _allowed_bytes(path: Path) -> int:
    """The limit in bytes on the memory that the content of a file may take."""
    return LARGEST_RATIO * path.stat().st_size + LARGEST_REST


def _check_archive(path: Path) -> None:
    """ValueError for a zip file, as .npz and .pth are, whose entries are far larger unpacked than the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > _allowed_bytes(path):
            largest = max(entries, key=lambda entry: entry.file_size)
            raise ValueError(
                f"its {path.stat().st_size:,} bytes unpack to {unpacked:,}, most of them {largest.filename!r}"
            )


def _check_arrays(path: Path) -> None:
    """ValueError for an .npz with an array that claims another size than it has."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                try:
                    version = np.lib.format.read_magic(file)
                except ValueError:  # no array: NumPy gives its bytes
                    continue
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{entry.filename!r} is written in version {version}, which no plain array needs")
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read_header(file)
                claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
            if not dtype.hasobject and claimed != there:
                raise ValueError(f"{entry.filename!r} claims {claimed:,} bytes and has {there:,}")


def _check_claims(path: Path, content: Any) -> None:
    """ValueError for tensors that are far larger than their file, such as one number that is shown as ten million."""
    pending, seen, total = [content], set(), 0
    while pending:
        each = pending.pop()
        if isinstance(each, Tensor):
            total += each.numel() * each.element_size()
        elif isinstance(each, np.ndarray):
            total += each.nbytes
        elif isinstance(each, Mapping | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            pending.extend(each.values() if isinstance(each, Mapping) else each)
    if total > _allowed_bytes(path):
        raise ValueError(f"its {path.stat().st_size:,} bytes claim to hold tensors of {total:,} bytes")


def _load_npz(path: Path) -> dict[str, Any]:
    _check_arrays(path)
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


# What training scripts store next to the weights that has no behaviour: parsed arguments, NumPy's scalars and arrays,
# paths. Versions of NumPy and Python differ in the names of their modules.
INERT = [
    argparse.Namespace,
    codecs.encode,  # of the bytes of a NumPy scalar
    np.ndarray,
    np.dtype,
    *(type(np.dtype(letter)) for letter in "?bhilqBHILQefdSU"),
    *(
        (function, f"{module}.multiarray.{function.__name__}")
        for function in (np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0])  # scalar, _reconstruct
        for module in ("numpy.core", "numpy._core")
    ),
    *(
        (pathlib.PurePath, f"{module}.{name}")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
        for module in ("pathlib", "pathlib._local")
    ),
]


def _load_torch(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(INERT):
        return torch.load(path, map_location="cpu", weights_only=True)


LOADERS = {".npz": _load_npz, ".safetensors": load_file, ".msgpack": load_flax} | dict.fromkeys(
    (".pth", ".pyth", ".pt", ".bin", ".ckpt", ".tar"), _load_torch
)


def _load(path: Path) -> Any:
    suffix = path.suffix or ".msgpack"  # flax writes "checkpoint" and "checkpoint_<step>"
    if suffix not in LOADERS:
        raise UnreadableCheckpointError(f"{path}: unknown file type {suffix!r}; expected {', '.join(LOADERS)}")
    try:
        _check_archive(path)
        content = LOADERS[suffix](path)
        _check_claims(path, content)
        return content
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if foreign is None:
            reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the doc")[0].split())
            raise UnreadableCheckpointError(
                f"{path}: not read, because it is damaged or holds more than tensors ({reason})"
            ) from error
        raise UnreadableCheckpointError(
            f"{path}: not read, because it holds more than tensors: reading its {foreign[1]} could run code. If you "
            f"trust the file, load it where that is installed with torch.load(..., weights_only=False), and save its "
            f"state dict only"
        ) from error
    except Exception as error:  # whatever a parser makes of a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableCheckpointError(f"{path}: cannot be read as {suffix} ({reason})") from error


def _holds_tensors(content: Any) -> bool:
    """Whether it is a state dict, or nests one. The state of an optimizer is none: numbers are its keys."""
    pending, seen = [content], set()
    while pending:
        each = pending.pop()
        if isinstance(each, Tensor | np.ndarray):
            return True
        if isinstance(each, Mapping) and id(each) not in seen:
            seen.add(id(each))
            pending.extend(value for key, value in each.items() if isinstance(key, str))
    return False


def _step_into(content: Mapping[str, Any], wrapper: str, path: list[str]) -> Mapping[str, Any]:
    """The value under the dotted name `wrapper`; a part of a name may hold dots itself. Adds the keys to `path`."""
    if isinstance(content.get(wrapper), Mapping):
        path.append(wrapper)
        return content[wrapper]
    for position in range(len(wrapper)):
        name, rest = wrapper[:position], wrapper[position + 1 :]
        if wrapper[position] == "." and isinstance(content.get(name), Mapping):
            path.append(name)
            return _step_into(content[name], rest, path)
    names = [str(name) for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    raise UnreadableCheckpointError(
        f"nothing lies under the wrapper {wrapper!r}; " + (f"there are {names}" if names else "weights are not nested"),
        wrapper,
    )


def unwrap(content: Mapping[str, Any], wrapper: str | None = None) -> CheckpointFile:
    """
    The state dict inside what a file holds.

    Args:
        wrapper: The dotted name under which it is nested; the first of `WRAPPERS`, or the only one that there is, by
            default.

    Raises:
        UnreadableCheckpointError: if nothing lies there, or there are several state dicts and none has a usual name.
    """
    path: list[str] = []
    others: list[str] = []
    is_lightning = "pytorch-lightning_version" in content
    if wrapper is not None:
        content = _step_into(content, wrapper, path)
    while len(path) <= DEEPEST:  # a dictionary may hold itself
        nested = [name for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)]
        usual = [name for name in WRAPPERS if name in nested]
        if not usual:
            if not nested or any(isinstance(value, Tensor) for value in content.values()):
                break
            if len(nested) > 1:
                raise UnreadableCheckpointError(f"there are several state dicts: name one of {nested} as wrapper")
        chosen = (usual or nested)[0]
        others = [name for name in usual if name != chosen]
        path.append(chosen)
        content = content[chosen]
    taken = ""
    while prefix := next(
        (
            prefix
            for prefix in WRAPPER_PREFIXES + OPTIMIZER_PREFIXES
            if any(str(key).startswith(prefix) for key in content)
        ),
        None,
    ):
        inside = {key[len(prefix) :]: value for key, value in content.items() if str(key).startswith(prefix)}
        if len(inside) < len(content) and prefix in WRAPPER_PREFIXES:
            odd = next(key for key in content if not str(key).startswith(prefix))
            raise UnreadableCheckpointError(f"key {odd!r} lacks the prefix {prefix!r} that other keys have", str(odd))
        content, taken = inside, taken + prefix
    if not content:
        raise UnreadableCheckpointError("no tensors are in it")
    return CheckpointFile(
        as_tensors(content), wrapper=path, other_wrappers=others, key_prefix=taken, is_lightning=is_lightning
    )


def _read_first_json(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    return next(filter(None, (_read_json(folder / name) for name in names)), {})


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableCheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableCheckpointError(f"{path}: expected a JSON object")
    return content


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _weights_of_folder(folder: Path) -> list[Path]:
    for kind in WEIGHTS:
        files = sorted(folder.glob(kind))
        if len(files) > 1 and not all("-of-" in file.stem for file in files):
            raise UnreadableCheckpointError(f"{folder} holds {[f.name for f in files]}; name one of them")
        if files:
            return files
    raise UnreadableCheckpointError(f"{folder}: no weights; expected one of {', '.join(WEIGHTS)}")


def _download(source: str, revision: str | None) -> Path:
    repository, _, name = source.partition(":")
    if repository.startswith((".", "~")) or repository.count("/") != 1:  # a path: do not ask the Hub for it
        raise UnreadableCheckpointError(f"{source!r}: no such file or folder, and no Hub id (owner/name)")
    try:
        if name:
            return Path(hf_hub_download(repository, name, revision=revision))
        files = HfApi().list_repo_files(repository, revision=revision)
        present = {Path(file).suffix for file in files if "/" not in file}
        weights = next((kind for kind in WEIGHTS if kind[1:] in present), None)
        if weights is None:
            raise UnreadableCheckpointError(f"{source}: no weights; expected one of {', '.join(WEIGHTS)}")
        patterns = ["config.json", *PREPROCESSORS, weights]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise UnreadableCheckpointError(f"{source!r} is neither a file, nor a folder, nor a Hub id") from error
    except (HttpError, LocalEntryNotFoundError, OSError) as error:
        raise UnreadableCheckpointError(
            f"{source!r}: no such file or folder, and not read from the Hub: {hub_reason(error) or error}"
        ) from error


def read_checkpoint(
    source: str | Path, wrapper: str | None = None, prefix: str | None = None, revision: str | None = None
) -> CheckpointFile:
    """
    A checkpoint from a file, a folder or the Hub (`"owner/name"`, `"owner/name:file"`). Nothing in it is executed.

    Args:
        wrapper: The dotted name of the dictionary to take, where the file holds several, as `"state_dict_ema"`.
        prefix: What the keys to take begin with, where the file holds more than one module, as `"momentum_encoder."`.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UnreadableCheckpointError: naming the file, or the key in it, that is at fault.
        UserError: for a revision of what is not on the Hub.
    """
    path = Path(source)
    check_revision("--revision", revision, str(source), on_hub=not path.exists())
    # One file of a repository stands for itself: what else the cache holds of it may be of another layout, or not be
    # there.
    stands_alone = not path.exists() and ":" in str(source)
    if not path.exists():
        path = _download(str(source), revision)
    paths = _weights_of_folder(path) if path.is_dir() else [path]
    merged: dict[str, Any] = {}
    for each in paths:
        content = _load(each)
        if not isinstance(content, Mapping):
            raise UnreadableCheckpointError(f"{each}: holds a {type(content).__name__}, not a state dict")
        if twice := merged.keys() & content.keys():
            raise UnreadableCheckpointError(f"{each}: key {min(twice)!r} is in another file too", min(twice))
        merged.update(content)
    try:
        file = unwrap(merged, wrapper)
        file = file if prefix is None else file.within(prefix)
    except UnreadableCheckpointError as error:
        raise UnreadableCheckpointError(f"{paths[0]}: {error}", error.key) from error
    folder = paths[0].parent
    return replace(
        file,
        source=str(source),
        path=paths[0],
        sha256=_sha256(paths),
        metadata={} if stands_alone else _read_json(folder / "config.json"),
        preprocessor={} if stands_alone else _read_first_json(folder, PREPROCESSORS),
    )


def write_checkpoint(state_dict: Mapping[str, Tensor], path: Path, wrapper: str = "") -> None:
    """
    Writes a state dict as `.npz`, `.pth` (nested under `wrapper`, if any) or `.safetensors`, by the suffix of `path`.

    Raises:
        UnreadableCheckpointError: for a dtype that the file type lacks (bfloat16 in .npz).
    """
    if path.suffix == ".npz":
        for key, tensor in state_dict.items():
            if tensor.dtype == torch.bfloat16:
                raise UnreadableCheckpointError(
                    f"key {key!r}: .npz has no bfloat16; cast the model to float32 first", key
                )
        np.savez(path, **{key: tensor.numpy() for key, tensor in state_dict.items()})
    elif path.suffix == ".safetensors":
        save_file(dict(state_dict), path, metadata={"format": "pt"})
    else:
        torch.save({wrapper: dict(state_dict)} if wrapper else dict(state_dict), path)
