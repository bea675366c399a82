"""Model cards that state what was measured and nothing else.

The facts lie next to the weights, in small JSON files that the commands write: `conversion.json` (convert),
`training.json` (train) and `evaluation.json` (train, evaluate). A card without such a file says that nothing was
measured.
"""

import html
import json
import os
import re
import shlex
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..errors import UserError
from ..files import write_text
from ..modeling.configuration_vitf import pair, unknown_name_message
from ..notices import notice, printable
from ..refusals import HttpError, hub_reason
from ..registry import CLIPS, IMAGES, get_architecture, modality_of

# Data sets that need no file.
BUILT_IN = ("digits", "moving_digits")

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

# Head of a checkpoint: the task that the Hub files it under. It has none for features of clips.
PIPELINE_TAGS = {
    IMAGES: {
        "Model": "image-feature-extraction",
        "ForImageClassification": "image-classification",
        "ForMaskedImageModeling": "image-feature-extraction",
        "ForPreTraining": "image-feature-extraction",
        "Backbone": "image-feature-extraction",
    },
    CLIPS: {
        "Model": "feature-extraction",
        "ForVideoClassification": "video-classification",
        "Backbone": "feature-extraction",
    },
}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from JSON fits a field's annotation (plain types, unions of them, list[x], dict[str, x])."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


@dataclass(frozen=True)
class Facts:
    """Base of the fact files: a flat dataclass, stored as JSON under `FILE` in the model's folder."""

    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: str | Path) -> "Facts | None":
        """
        The facts of a model folder, or None where it has no such file. UserError if the file does not fit the schema.
        """
        path = Path(folder) / cls.FILE
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected an object with the fields of {cls.__name__}")
        valid = {field.name: field for field in fields(cls)}
        for name in values.keys() - valid.keys():
            raise UserError(f"{path}: {unknown_name_message('field', name, valid)}")
        for name, field in valid.items():
            if name not in values and field.default is MISSING:
                raise UserError(f"{path}: field {name!r} is missing")
            if name in values and not _fits(values[name], field.type):
                raise UserError(
                    f"{path}: field {name!r} has the value {values[name]!r}, which does not fit {field.type}"
                )
        return cls(**values)

    def public(self) -> "Facts":
        """The same facts as they are published: of every path on this machine only its last part."""
        return self

    def write(self, folder: str | Path) -> None:
        """Writes the file into a model folder; it appears whole or not at all."""
        write_text(Path(folder) / self.FILE, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Conversion(Facts):
    """
    Where converted weights come from.

    Args:
        source: Repository and commit of the original code, `"owner/name@commit"`.
        file: Name, URL or Hub id of the checkpoint.
        sha256: Hash of that file.
        layout: Layout that it was read from: `"original"`, `"timm"`, `"transformers"`.
        license: Licence of the weights, as a Hub identifier, where it is known.
        base_model: Hub id that the weights were taken from, where there is one.
        parity: Largest difference of the outputs from those of the checkpoint's own library, relative to their largest
            magnitude; None where nothing was compared.
        parity_method: What was compared with what to get it, or why nothing was, in a few words.
    """

    FILE: ClassVar[str] = "conversion.json"

    source: str
    file: str
    sha256: str
    layout: str
    license: str | None = None
    base_model: str | None = None
    parity: float | None = None
    parity_method: str | None = None

    def public(self) -> "Conversion":
        return replace(self, file=self.file if hub_id(self.file.partition(":")[0]) else last_part(self.file))


@dataclass(frozen=True)
class Training(Facts):
    """
    How the weights were trained here.

    Args:
        dataset: Hub id, or name of the local data.
        split: Split that was trained on.
        num_images: Images in it.
        command: The command that was run.
        versions: Library to version.
        seed: Seed of the run.
        base_model: Hub id or folder whose weights training started from; None for random weights.
        license: Licence of the weights that training started from, or that the author gives these, as a Hub identifier,
            where one was named.
        wall_seconds: Duration of the run.
        device: What it ran on.
        dataset_is_local: Whether `dataset` was read from this machine, not from the Hub; None where it was not
            recorded.
        base_model_is_local: The same of `base_model`.
        hub_base_model: Hub id of the model that training started from, or that a local base model goes back to.
        objective: What was learnt in place of classifying, with its source; None for classifying.
        with_labels: Whether that read labels all the same.
        pretrained_by: What the base model had learnt in place of labels, or what it goes back to had, the last first;
            None where nothing of the kind was recorded.
    """

    FILE: ClassVar[str] = "training.json"

    dataset: str
    split: str
    num_images: int
    command: str
    versions: dict[str, str]
    seed: int
    base_model: str | None = None
    license: str | None = None
    wall_seconds: float | None = None
    device: str | None = None
    dataset_is_local: bool | None = None
    base_model_is_local: bool | None = None
    hub_base_model: str | None = None
    objective: str | None = None
    with_labels: bool = False
    pretrained_by: list[str] | None = None

    def public(self) -> "Training":
        on_hub = {
            hub_link(self.dataset, self.dataset_is_local),
            hub_link(self.base_model, self.base_model_is_local),
            self.hub_base_model,
        }
        return replace(
            self,
            dataset=public_name(self.dataset, self.dataset_is_local),
            base_model=public_name(self.base_model, self.base_model_is_local),
            command=public_command(self.command, on_hub),
        )


@dataclass(frozen=True)
class Evaluation(Facts):
    """
    What was measured.

    Args:
        dataset: Hub id, or name of the local data.
        split: Split that was measured on.
        num_images: Images in it.
        metrics: Metric to value; accuracies are fractions of 1.
        command: The command that was run.
        versions: Library to version.
        seed: Seed of the run, where it has one.
        parameters: Parameters of the model.
        image_size: Pixels, one number or height and width.
        wall_seconds: Duration.
        views: Of videos, the clips and crops whose scores are averaged, as `"4x3"`.
        dataset_is_local: Whether `dataset` was read from this machine, not from the Hub; None where it was not
            recorded.
    """

    FILE: ClassVar[str] = "evaluation.json"

    dataset: str
    split: str
    num_images: int
    metrics: dict[str, float]
    command: str
    versions: dict[str, str]
    seed: int | None
    parameters: int
    image_size: int | list[int]
    wall_seconds: float | None = None
    views: str | None = None
    dataset_is_local: bool | None = None

    def public(self) -> "Evaluation":
        return replace(
            self,
            dataset=public_name(self.dataset, self.dataset_is_local),
            command=public_command(self.command, {hub_link(self.dataset, self.dataset_is_local)}),
        )


FACTS: tuple[type[Facts], ...] = (Conversion, Training, Evaluation)


def recorded_texts(fact: Facts | None) -> list[tuple[str, str]]:
    """Name and value of the texts that a fact file holds, which may tell of a machine and its user."""
    return [] if fact is None else [(name, value) for name, value in asdict(fact).items() if isinstance(value, str)]


def hub_id(name: str | None) -> str | None:
    """`name` if it can be the id of a repository on the Hub (`"owner/name"`), else None."""
    if name is None or name.count("/") != 1:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def is_local(name: str) -> bool:
    """Whether a data set or model of that name is on this machine: a file, a folder, or built in."""
    return name in BUILT_IN or Path(name).expanduser().exists()


def hub_link(name: str | None, local: bool | None) -> str | None:
    """
    The Hub id of a data set or model of a fact file, or None where it came from this machine.

    Args:
        name: As the user gave it. local: What was recorded; where nothing was, what is here now decides.
    """
    if name is None or (is_local(name) if local is None else local):
        return None
    return hub_id(name)


def public_name(name: str | None, local: bool | None = None) -> str | None:
    """A data set or model as a card names it: a Hub id or plain name as it is, a path without the folders above."""
    return name if name is None or hub_link(name, local) else last_part(name)


def last_part(path: str) -> str:
    """The last part of a path, of any system; `"~"` for a home folder, whose name is its user's."""
    parts = [part for part in re.split(r"[/\\\\]+", path) if part not in ("", ".")]
    if not parts or re.fullmatch(r"\w:", parts[-1]):
        return path[:1] if path[:1] in "/." else "."
    home = Path(os.path.expanduser(path)).absolute() == Path.home() or re.fullmatch(
        r"(~[^/]*|(\w:)?[/\\]+(home|Users)[/\\]+[^/\\]+)[/\\]*", path
    )
    return "~" if home else parts[-1]


def public_command(command: str, on_hub: Collection[str | None]) -> str:
    """
    A command as it is published: of each word that is a path, its last part.

    Args:
        on_hub: Names that have the form of a path and are repositories on the Hub.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # no closing quotation
        words = command.split()
    return shlex.join(_public_word(word, on_hub) for word in words)


def _public_word(word: str, on_hub: Collection[str | None]) -> str:
    name, equals, value = word.partition("=")
    if equals and not re.search(r"[/\\]", name):  # --option=path, field=path
        return name + equals + _public_word(value, on_hub)
    is_path = re.search(r"[/\\]", word) or word.startswith("~")
    return last_part(word) if is_path and word not in on_hub else word


def as_text(value: object) -> str:
    """A value as Markdown shows it in a sentence or a table, whatever it holds: no HTML, link or other mark-up."""
    line = html.escape(printable(" ".join(str(value).split())), quote=False)
    return re.sub(r"([\\`*\[\]|!~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def as_code(value: object) -> str:
    """A value as Markdown shows it between backticks or in a block of code, which it cannot end."""
    return printable(" ".join(str(value).split())).replace("`", "'")


@dataclass(frozen=True)
class Origin:
    """
    Where weights come from.

    Args:
        local: Whether they are in a folder of this machine.
        hub_id: The model on the Hub that they are, or go back to, where there is one.
        license: Their licence as a Hub identifier, where it is stated.
        pretrained_by: What they have learnt in place of labels, the last first, where that was recorded.
    """

    local: bool
    hub_id: str | None
    license: str | None
    pretrained_by: list[str] | None = None


def origin_of(model: str, revision: str | None = None) -> Origin:
    """
    The origin of a model, by the fact files of a folder or else by its card, on the Hub too.

    Args:
        model: A folder or a Hub id. revision: Branch, tag or commit of the latter.

    Raises:
        UserError: if a fact file does not fit its schema.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        name = hub_id(model)
        return Origin(False, name, _named(_card_data(model, revision).license) if name else None)
    training, conversion = Training.read(folder), Conversion.read(folder)
    card = folder / "README.md"
    data = _card_data(model) if card.is_file() else ModelCardData()
    facts = [fact for fact in (training, conversion) if fact is not None]
    return Origin(
        True,
        next(filter(None, map(base_of, facts)), hub_id(_named(data.base_model))),
        next((fact.license for fact in facts if fact.license), _named(data.license)),
        _pretexts(training) if training else None,
    )


def _pretexts(training: Training) -> list[str] | None:
    """Lists the objectives that weights have learnt in place of labels, the last first."""
    own = [training.objective] if training.objective else []
    return own + (training.pretrained_by or []) or None


def base_of(fact: Conversion | Training) -> str | None:
    """The model on the Hub that weights started from, where there is one."""
    if isinstance(fact, Conversion):
        return hub_link(fact.base_model, None)
    return fact.hub_base_model or hub_link(fact.base_model, fact.base_model_is_local)


def _card_data(model: str, revision: str | None = None) -> ModelCardData:
    """Reads the card of a folder or Hub id; where that fails, the user is told, and the card is empty."""
    card = Path(model).expanduser() / "README.md"
    try:
        if not card.is_file():
            card = Path(hf_hub_download(model, "README.md", revision=revision))
        return ModelCard.load(card).data
    except (OSError, ValueError, HttpError, yaml.YAMLError) as error:
        reason = hub_reason(error) or (str(error).strip() or repr(error)).splitlines()[0]
        notice(f"the card of {model} cannot be read, so that its licence is not known: {reason}")
        return ModelCardData()


def _named(value: Any) -> str | None:
    """A field of a card that is one name; None for several or none."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, str) else None


def make_card(
    model: PreTrainedModel, facts: Mapping[type[Facts], Facts | None], name: str, license: str | None = None
) -> ModelCard:
    """
    The card of a model.

    Args:
        model: The model, of one of this library's classes.
        facts: For each class of `FACTS` what is known, or None.
        name: Hub id that the model will have, `"owner/name"`.
        license: Licence of the weights as a Hub identifier; by default the one that the facts name.

    Raises:
        UserError: where the licence given contradicts that of the converted weights.
    """
    conversion, training, evaluation = (facts[kind] for kind in FACTS)
    stated = None
    for fact in (training, conversion):
        if fact is None or fact.license is None:
            continue
        if license and fact.license != license:
            raise UserError(
                f"license {license!r} contradicts {fact.FILE}, which says that the weights are {fact.license!r}"
            )
        stated = stated or fact.license
    architecture = get_architecture(model.config.model_type)
    head = type(model).__name__.removeprefix(architecture.prefix)
    modality = modality_of(model.config)
    task = PIPELINE_TAGS[modality][head]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=public_name(evaluation.dataset, evaluation.dataset_is_local),
            dataset_name=public_name(evaluation.dataset, evaluation.dataset_is_local),
            dataset_split=evaluation.split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in (evaluation.metrics.items() if evaluation else ())
    ]
    measured_on = {hub_link(fact.dataset, fact.dataset_is_local) for fact in (training, evaluation) if fact is not None}
    bases = (base_of(fact) for fact in (training, conversion) if fact is not None)
    data = ModelCardData(
        license=license or stated,
        library_name="transformers",
        pipeline_tag=task,
        tags=["vision", "hf_vit_family", architecture.name, architecture.model_type],
        base_model=next(filter(None, bases), None),
        datasets=sorted(measured_on - {None}) or None,
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        architecture=architecture,
        class_name=type(model).__name__,
        head=head,
        task=task,
        processor_class=modality.auto_processor.__name__,
        parameters=model.num_parameters(),
        image_size=pair(model.config.image_size),
        num_frames=getattr(model.config, "num_frames", None),
        num_labels=model.config.num_labels,
        license=license or stated,
        conversion=conversion,
        training=training,
        evaluation=evaluation,
        public_name=public_name,
        as_text=as_text,
        as_code=as_code,
    )
