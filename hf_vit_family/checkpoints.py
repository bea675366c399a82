"""Files that hold weights: reading them without running what they hold, and writing them."""

import argparse
import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UnreadableCheckpointError
from .flax_files import load_flax

# Keys under which a .pth nests its state dict (the first that is there), and prefixes that all keys of a file may share:
# DataParallel's and torch.compile's, and the optimizer's of google-research/vision_transformer@c6de1e5 (checkpoint.py) and
# google-research/scenic@4a38d47, beside which a file holds the state of training.
WRAPPERS = ("model", "state_dict", "state_dict_ema", "model_state_dict", "model_state")
KEY_PREFIXES = ("module.", "_orig_mod.", "opt/target/", "optimizer/target/", "params/")

# Files of a folder that hold weights, the safe ones first.
WEIGHTS = ("*.safetensors", "*.npz", "*.bin", "*.pth", "*.pyth", "*.pt")
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
        metadata: The config.json next to it; preprocessor: that of its processor, of clips where there is one.
    """

    state_dict: dict[str, Tensor]
    source: str = ""
    path: Path | None = None
    sha256: str = ""
    wrapper: list[str] = field(default_factory=list)
    key_prefix: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)

    @property
    def is_timm(self) -> bool:
        """Whether the config.json is timm's: it names a pretrained configuration instead of a model type."""
        return "pretrained_cfg" in self.metadata

    @property
    def kwargs(self) -> dict[str, Any]:
        """Constructor arguments that the config.json gives; none without it."""
        return dict(self.metadata.get("model_args", {})) if self.is_timm else dict(self.metadata)

    @property
    def variant_hint(self) -> str:
        """What may begin with a variant's name: timm's architecture, or the name of the file."""
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


def _load_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _load_torch(path: Path) -> dict[str, Any]:
    # Training scripts store their parsed arguments next to the weights: a class without behaviour.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


LOADERS = {".npz": _load_npz, ".safetensors": load_file, ".msgpack": load_flax} | dict.fromkeys(
    (".pth", ".pyth", ".pt", ".bin"), _load_torch
)


def _load(path: Path) -> Any:
    suffix = path.suffix or ".msgpack"  # flax writes "checkpoint" and "checkpoint_<step>"
    if suffix not in LOADERS:
        raise UnreadableCheckpointError(f"{path}: unknown file type {suffix!r}; expected {', '.join(LOADERS)}")
    try:
        return LOADERS[suffix](path)
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpointError(
            f"{path}: not read, because it is damaged or holds more than tensors ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableCheckpointError(f"{path}: cannot be read as {suffix} ({reason})") from error


def unwrap(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str], str]:
    """The state dict inside what a file holds, the keys it was nested under, and the prefix taken off its keys."""
    wrapper = []
    while (name := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)) is not None:
        content = content[name]
        wrapper.append(name)
    taken = ""
    while (
        prefix := next((p for p in KEY_PREFIXES if any(str(key).startswith(p) for key in content)), None)
    ) is not None:
        inside = {key[len(prefix) :]: value for key, value in content.items() if str(key).startswith(prefix)}
        if len(inside) < len(content) and not prefix.startswith(("opt/", "optimizer/")):
            odd = next(key for key in content if not str(key).startswith(prefix))
            raise UnreadableCheckpointError(f"key {odd!r} lacks the prefix {prefix!r} that other keys have", str(odd))
        content, taken = inside, taken + prefix
    return content, wrapper, taken


def _read_first_json(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    return next(filter(None, (_read_json(folder / name) for name in names)), {})


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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


def _download(source: str) -> Path:
    repository, _, name = source.partition(":")
    if repository.startswith((".", "~")) or repository.count("/") != 1:  # a path: do not ask the Hub for it
        raise UnreadableCheckpointError(f"{source!r}: no such file or folder, and no Hub id (owner/name)")
    try:
        if name:
            return Path(hf_hub_download(repository, name))
        present = {Path(file).suffix for file in HfApi().list_repo_files(repository) if "/" not in file}
        weights = next((kind for kind in WEIGHTS if kind[1:] in present), None)
        if weights is None:
            raise UnreadableCheckpointError(f"{source}: no weights; expected one of {', '.join(WEIGHTS)}")
        return Path(snapshot_download(repository, allow_patterns=["config.json", *PREPROCESSORS, weights]))
    except HFValidationError as error:
        raise UnreadableCheckpointError(f"{source!r} is neither a file, nor a folder, nor a Hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnreadableCheckpointError(
            f"{source!r}: no such file or folder, and not read from the Hub ({error})"
        ) from error


def read_checkpoint(source: str | Path) -> CheckpointFile:
    """
    A checkpoint from a file, a folder or the Hub (`"owner/name"`, `"owner/name:file"`). Nothing in it is executed.

    Raises:
        UnreadableCheckpointError: naming the file, or the key in it, that is at fault.
    """
    path = Path(source)
    # One file of a repository stands for itself: what else the cache holds of it may be of another layout, or not be there.
    stands_alone = not path.exists() and ":" in str(source)
    if not path.exists():
        path = _download(str(source))
    paths = _weights_of_folder(path) if path.is_dir() else [path]
    merged: dict[str, Any] = {}
    for each in paths:
        content = _load(each)
        if not isinstance(content, Mapping):
            raise UnreadableCheckpointError(f"{each}: holds a {type(content).__name__}, not a state dict")
        if twice := merged.keys() & content.keys():
            raise UnreadableCheckpointError(f"{each}: key {min(twice)!r} is in another file too", min(twice))
        merged.update(content)
    content, wrapper, prefix = unwrap(merged)
    if not content:
        raise UnreadableCheckpointError(f"{paths[0]}: holds no tensors")
    folder = paths[0].parent
    return CheckpointFile(
        state_dict=as_tensors(content),
        source=str(source),
        path=paths[0],
        sha256=_sha256(paths),
        wrapper=wrapper,
        key_prefix=prefix,
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
