"""
Publishing: stage a folder that needs nothing but transformers and torch, prove that it does, push it as one commit.
"""

import fnmatch
import glob
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..errors import UserError
from ..files import whole_folder, write_text
from ..loading import load_saved_model, load_saved_processor, quiet_loading
from ..modeling.configuration_vitf import VitfConfig
from ..notices import listed
from ..refusals import hub_reason
from ..registry import AUTO_CLASSES, CLIPS, Architecture, get_architecture, modality_of
from . import clean_process
from .cards import FACTS, make_card

LICENSE_NOTE = """\
The Python files of this repository are part of hf_vit_family and are licensed under the Apache License 2.0, whose text
follows. The licence of the weights is the one that README.md names.

"""

# What a call to the Hub may raise: the errors of its HTTP client (httpx or httpx2, by the version of huggingface_hub),
# those of files and sockets, and RuntimeError around a failed upload.
HUB_ERRORS = (*HfHubHTTPError.__bases__, OSError, RuntimeError)

# How the message of each push begins.
COMMIT_TITLE = "Publish with hf_vit_family"

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
    """The same for the processor of a model. That of images has a class for each backend, that of clips only one."""
    modality = modality_of(config)
    references = {backend: reference(cls) for backend, cls in modality.processors.items()}
    return {modality.auto_processor.__name__: references["torchvision"] if modality is CLIPS else references}


def code_license() -> str:
    """The licence text of this library, from its installed metadata."""
    for distribution in importlib.metadata.distributions(name="hf_vit_family"):
        for name in ("licenses/LICENSE", "LICENSE"):  # the second of setuptools before 77
            if text := distribution.read_text(name):
                return text
    raise PublishError("the licence text of hf_vit_family is not found; install the package with pip")


def stage(folder: str | Path, output: str | Path, name: str, license: str | None = None) -> None:
    """
    Makes the folder that will be published: weights as safetensors, configuration and processor with `auto_map`, the
    code they name, the recorded facts without the folders of this machine, LICENSE and the model card.

    Args:
        folder: A model folder, with its processor.
        output: Folder to make; it appears whole or not at all.
        name: Hub id that it will have, `"owner/name"`.
        license: Licence of the weights as a Hub identifier, where no fact file names it.

    Raises:
        UserError: if the folder cannot be published (`PublishError`), a fact file does not fit, or `output` is not
            empty.
    """
    model = load_saved_model(folder)
    processor = load_saved_processor(folder, model.config)
    check_finite(folder, model)
    found = {kind: kind.read(folder) for kind in FACTS}
    facts = {kind: fact and fact.public() for kind, fact in found.items()}
    card = make_card(model, facts, name, license)
    model.config.auto_map = model_auto_map(get_architecture(model.config.model_type))
    processor.auto_map = processor_auto_map(model.config)
    with whole_folder(output) as partial, quiet_loading():
        # Saving writes the code that auto_map names (modeling/code_files.py). transformers would by default rename
        # weights that it has a mapping for.
        model.save_pretrained(partial, save_original_format=False)
        processor.save_pretrained(partial)
        check_weights(model.state_dict(), partial)
        for fact in facts.values():
            if fact is not None:
                fact.write(partial)
        write_text(partial / "LICENSE", LICENSE_NOTE + code_license())
        write_text(partial / "README.md", str(card))


def check_finite(folder: str | Path, model: PreTrainedModel) -> None:
    """PublishError that names the first weight with an infinity or a NaN."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PublishError(f"{folder}: the weights are not finite: {name} has an infinity or a NaN")


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
    Loads a staged folder in a process that cannot import this package, with caches of its own and without a network,
    and compares every output of every class and processor with this process's, bit for bit. A video processor also
    reads files.

    Raises:
        PublishError: with the output that differs, or the last line of what the process said.
    """
    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        videos = clean_process.write_videos(scratch) if (folder / CLIPS.file).is_file() else []
        with quiet_loading():
            ours = clean_process.collect(folder, trust_remote_code=False, videos=videos)
        result = Path(scratch, "collected.safetensors")
        arguments = map(str, (folder, torch.get_num_threads(), result, *videos))
        process = subprocess.run(
            # -P keeps the script's own directory, which is the package's, off the path.
            [sys.executable, "-P", clean_process.__file__, *arguments],
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


def _replaced_files(api: HfApi, repo_id: str, written: set[str], revision: str | None) -> tuple[list[str], list[str]]:
    """
    The files of a repository that a push of files with these names must remove, and those that it would overwrite or
    remove though somebody else wrote them.
    """
    files = [file for file in api.list_repo_tree(repo_id, expand=True, revision=revision) if isinstance(file, RepoFile)]
    outdated = [
        file.path
        for file in files
        if file.path not in written and any(fnmatch.fnmatchcase(file.path, pattern) for pattern in REPLACED)
    ]
    foreign = [
        file.path
        for file in files
        if file.path in written.union(outdated)
        and not (file.last_commit is not None and file.last_commit.title.startswith(COMMIT_TITLE))
    ]
    return outdated, sorted(foreign)


def _exists(api: HfApi, repo_id: str, created: bool) -> bool:
    """Whether a repository that this push was to create is there; False where the Hub does not say."""
    try:
        return created and api.repo_exists(repo_id)
    except HUB_ERRORS:
        return False


def check_target(revision: str | None, create_pr: bool) -> None:
    """PublishError for a revision together with a pull request, which the Hub opens against the default branch only."""
    if create_pr and revision is not None:
        raise PublishError(
            f"a pull request is opened against the default branch, not against {revision}; to go on with one that is "
            f"open, give its number as --revision refs/pr/NUMBER"
        )


def push(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    replace: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Pushes a staged folder as one commit, which also removes weights and code of an earlier push.

    Args:
        folder: What `stage` made.
        repo_id: `"owner/name"`; the repository is created where it does not exist.
        private: Whether it must be private.
        replace: Whether files that were not pushed from here may be overwritten, and removed where they would be loaded
            too.
        revision: Branch to push to, which is made where it does not exist, or `"refs/pr/<number>"`; by default the
            default branch.
        create_pr: Whether to open a pull request with the commit instead. The repository must exist.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        PublishError: if the Hub refuses or cannot be reached; if the repository exists, is public, and must be private;
            or if it has files of others and `replace` is false.
    """
    check_repo_id(repo_id)
    check_target(revision, create_pr)
    check_token()
    api, created = HfApi(), False
    try:
        created = not api.repo_exists(repo_id)
        if create_pr and created:
            raise PublishError(f"{repo_id}: there is no such repository to open a pull request in, or it is private")
        if not create_pr:
            # None leaves the choice to the owner's settings.
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise PublishError(f"{repo_id} exists and is public; make it private on the Hub first")
        written = {file.name for file in Path(folder).iterdir()}
        outdated, foreign = _replaced_files(api, repo_id, written, revision)
        if foreign and not replace:
            raise PublishError(
                f"{repo_id} has files that were not published with hf_vit_family and would be overwritten or removed: "
                f"{listed(foreign, 5)}; --replace does so"
            )
        version = importlib.metadata.version("hf_vit_family")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"{COMMIT_TITLE} {version}",
            delete_patterns=[glob.escape(path) for path in outdated],
            revision=revision,
            create_pr=create_pr,
        )
    except HUB_ERRORS as error:
        reason = hub_reason(error) or f"the Hub did not take it: {error}"
        rest = (
            "; the repository was made and is empty: the same command tries again"
            if _exists(api, repo_id, created)
            else ""
        )
        raise PublishError(f"{repo_id}: {reason}{rest}") from error
    return commit.pr_url or commit.commit_url
