"""Publishing: stage a folder that needs nothing but transformers and torch, prove that it does, push it as one commit."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from . import clean_process
from .cards import FACTS, make_card
from .errors import UserError
from .files import whole_folder, write_text
from .modeling.configuration_vitf import VitfConfig
from .registry import AUTO_CLASSES, CLIPS, Architecture, get_architecture, preparation_of

LICENSE_NOTE = """\
The Python files of this repository are part of hf_vit_family and are licensed under the Apache License 2.0, whose text
follows. The licence of the weights is the one that README.md names.

"""

# What a call to the Hub may raise: the errors of its HTTP client (httpx or httpx2, by the version of huggingface_hub), those
# of files and sockets, and RuntimeError around a failed upload.
HUB_ERRORS = (*HfHubHTTPError.__bases__, OSError, RuntimeError)

# What from_pretrained raises for files that are missing, damaged or do not fit.
LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)

# Files of an earlier push that transformers would find next to the new ones, or prefer to them.
REPLACED = ["*.py", "*.safetensors", "*.safetensors.index.json", "pytorch_model*"]


class PublishError(UserError):
    """A folder that cannot be published, or a push that was refused. The message is one line, whatever it quotes."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Verification:
    """
    Result of loading a staged folder in a process without the package.

    Args:
        tensors: Number of outputs compared, all equal bit for bit.
        classes: Auto classes that gave them.
    """

    tensors: int
    classes: tuple[str, ...]


def reference(cls: type) -> str:
    """`"module.Class"`, as an `auto_map` names a class."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def model_auto_map(architecture: Architecture) -> dict[str, str]:
    """Auto class to `"module.Class"`, for the configuration and every head of an architecture."""
    heads = {AUTO_CLASSES[head].__name__: reference(architecture.model_class(head)) for head in architecture.heads}
    return {"AutoConfig": reference(architecture.config_class), **heads}


def processor_auto_map(config: VitfConfig) -> dict[str, str | dict[str, str]]:
    """The same for the processor of a model. That of images has a class for each backend, that of clips one alone."""
    preparation = preparation_of(config)
    references = {backend: reference(cls) for backend, cls in preparation.processors.items()}
    return {preparation.auto_class.__name__: references["torchvision"] if preparation is CLIPS else references}


def load_model(folder: str | Path) -> PreTrainedModel:
    """
    The model of a folder, as the class that it was saved from and in the dtype that it was saved in.

    Raises:
        PublishError: if the folder is none of this library's models, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, saved_as = config["model_type"], (config.get("architectures") or [""])[0]
    except FileNotFoundError as error:
        raise PublishError(f"{folder} is not a model folder: it has no config.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(f"{folder / 'config.json'} is not the configuration of a model: {error!r}") from error
    try:
        architecture = get_architecture(model_type)
    except ValueError as error:
        raise PublishError(
            f"{folder / 'config.json'}: {error}; 'vit-family convert' makes a folder to publish"
        ) from error
    head = saved_as.removeprefix(architecture.prefix)
    if head not in architecture.heads:
        raise PublishError(
            f"{folder / 'config.json'}: architectures names no class of {architecture.name}: {saved_as!r}"
        )
    try:
        with clean_process.quiet_loading():
            model, info = architecture.model_class(head).from_pretrained(
                folder, dtype="auto", local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except LOADING_ERRORS as error:
        raise PublishError(f"{folder}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            name = min(key if isinstance(key, str) else key[0] for key in info[problem])  # (key, shape, shape)
            raise PublishError(f"{folder}: its weights do not fit its config.json: {problem.replace('_', ' ')}, {name}")
    return model


def load_processor(folder: str | Path, config: VitfConfig):
    """The processor of a model folder with this configuration; PublishError where it has none."""
    preparation = preparation_of(config)
    file = Path(folder) / preparation.file
    if not file.is_file():
        raise PublishError(f"{folder} has no {file.name}; create_processor(VARIANT).save_pretrained(FOLDER) writes it")
    try:
        return preparation.auto_class.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise PublishError(f"{file}: {error}") from error


def code_license() -> str:
    """The licence text of this library, from its installed metadata."""
    for distribution in importlib.metadata.distributions(name="hf_vit_family"):
        text = distribution.read_text("licenses/LICENSE")
        if text:
            return text
    raise PublishError("the licence text of hf_vit_family is not found; install the package with pip")


def stage(folder: str | Path, output: str | Path, name: str, license: str | None = None) -> None:
    """
    Makes the folder that will be published: weights as safetensors, configuration and processor with `auto_map`, the code
    they name, the recorded facts, LICENSE and the model card.

    Args:
        folder: A model folder, with its processor.
        output: Folder to make; it appears whole or not at all.
        name: Hub id that it will have, `"owner/name"`.
        license: Licence of the weights as a Hub identifier, where no fact file names it.

    Raises:
        UserError: if the folder cannot be published (`PublishError`), a fact file does not fit, or `output` is not empty.
    """
    model = load_model(folder)
    processor = load_processor(folder, model.config)
    facts = {kind: kind.read(folder) for kind in FACTS}
    card = make_card(model, facts, name, license)
    model.config.auto_map = model_auto_map(get_architecture(model.config.model_type))
    processor.auto_map = processor_auto_map(model.config)
    with whole_folder(output) as partial, clean_process.quiet_loading():
        # Saving writes the code that auto_map names (modeling/code_files.py). transformers would by default rename weights
        # that it has a mapping for.
        model.save_pretrained(partial, save_original_format=False)
        processor.save_pretrained(partial)
        check_weights(model.state_dict(), partial)
        for fact in facts.values():
            if fact is not None:
                fact.write(partial)
        write_text(partial / "LICENSE", LICENSE_NOTE + code_license())
        write_text(partial / "README.md", str(card))


def check_weights(expected: Mapping[str, torch.Tensor], folder: Path) -> None:
    """PublishError unless the safetensors of a folder hold these weights, bit for bit."""
    written = {}
    for file in sorted(folder.glob("*.safetensors")):
        written |= load_file(file)
    for key in expected.keys() | written.keys():
        if key not in expected or key not in written or not torch.equal(expected[key], written[key]):
            raise PublishError(f"{key}: the weights written differ from those of the model")


def verify(folder: str | Path) -> Verification:
    """
    Loads a staged folder in a process that cannot import this package, with caches of its own and without a network, and
    compares every output of every class and processor with this process's, bit for bit.

    Raises:
        PublishError: with the output that differs, or the last line of what the process said.
    """
    folder = Path(folder).resolve()
    ours = clean_process.collect(folder, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "collected.safetensors")
        process = subprocess.run(
            # -P keeps the script's own directory, which is the package's, off the path.
            [sys.executable, "-P", clean_process.__file__, str(folder), str(torch.get_num_threads()), str(result)],
            cwd=scratch,
            env={**os.environ, "HF_HOME": scratch, "HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if process.returncode:
            reason = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
            raise PublishError(f"{folder} does not load without this package: {reason}")
        theirs = load_file(result)
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name]):
            raise PublishError(f"{folder}: {name} differs between this process and one without this package")
    return Verification(len(ours), tuple(dict.fromkeys(name.split(".")[0] for name in ours)))


def check_repo_id(repo_id: str) -> None:
    """PublishError unless an id has the form `owner/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"repository id {repo_id!r} is malformed: {error}") from error
    if "/" not in repo_id:
        raise PublishError(f"repository id {repo_id!r} is malformed: expected OWNER/NAME")


def check_token() -> None:
    """PublishError where there is no access token for the Hub."""
    if get_token() is None:
        raise PublishError("no access token for the Hub: run 'hf auth login' or set HF_TOKEN")


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """
    Pushes a staged folder as one commit, which also removes weights and code of an earlier push.

    Args:
        folder: What `stage` made.
        repo_id: `"owner/name"`; the repository is created where it does not exist.
        private: Whether it must be private.

    Returns:
        The URL of the commit.

    Raises:
        PublishError: if the Hub refuses or cannot be reached, or the repository exists, is public, and must be private.
    """
    check_repo_id(repo_id)
    check_token()
    api = HfApi()
    try:
        # None leaves the choice to the owner's settings.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise PublishError(f"{repo_id} exists and is public; make it private on the Hub first")
        version = importlib.metadata.version("hf_vit_family")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Publish with hf_vit_family {version}",
            delete_patterns=REPLACED,
        )
    except HUB_ERRORS as error:
        raise PublishError(f"{repo_id}: the Hub did not take it: {error}") from error
    return commit.commit_url
