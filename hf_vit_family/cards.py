"""Model cards that state what was measured and nothing else.

The facts lie next to the weights, in small JSON files that the commands write: `conversion.json` (convert),
`training.json` (train) and `evaluation.json` (train, evaluate). A card without such a file says that nothing was measured.
"""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from .errors import UserError
from .files import write_text
from .modeling.configuration_vitf import pair, unknown_name_message
from .registry import CLIPS, IMAGES, get_architecture, preparation_of

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

# Head of a checkpoint: the task that the Hub files it under. It has none for features of clips alone.
PIPELINE_TAGS = {
    IMAGES: {
        "Model": "image-feature-extraction",
        "ForImageClassification": "image-classification",
        "ForMaskedImageModeling": "image-feature-extraction",
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
        """The facts of a model folder, or None where it has no such file. UserError if the file does not fit the schema."""
        path = Path(folder) / cls.FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
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
        parity: Largest absolute difference of the outputs from the original's, where it was measured.
        parity_method: What was compared to get it, in one sentence.
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
        base_model: Hub id, folder or variant whose weights training started from; None for random weights.
        license: Licence that the author gives the weights, as a Hub identifier, where one was named.
        wall_seconds: Duration of the run.
        device: What it ran on.
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


FACTS: tuple[type[Facts], ...] = (Conversion, Training, Evaluation)


def hub_id(name: str | None) -> str | None:
    """`name` if it can be the id of a repository on the Hub (`"owner/name"`), else None."""
    if name is None or name.count("/") != 1:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def public_name(name: str | None) -> str | None:
    """A data set or model as a card names it: a Hub id or plain name as it is, a path without the folders above."""
    return name if name is None or hub_id(name) else Path(name).name


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
    stated = next((fact.license for fact in (training, conversion) if fact is not None and fact.license), None)
    if license and conversion is not None and conversion.license not in (None, license):
        raise UserError(
            f"license {license!r} contradicts {Conversion.FILE}, which says that the weights are {conversion.license!r}"
        )
    architecture = get_architecture(model.config.model_type)
    head = type(model).__name__.removeprefix(architecture.prefix)
    preparation = preparation_of(model.config)
    task = PIPELINE_TAGS[preparation][head]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=public_name(evaluation.dataset),
            dataset_name=public_name(evaluation.dataset),
            dataset_split=evaluation.split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in (evaluation.metrics.items() if evaluation else ())
    ]
    measured_on = {hub_id(fact.dataset) for fact in (training, evaluation) if fact is not None}
    bases = (fact.base_model for fact in (training, conversion) if fact is not None)
    data = ModelCardData(
        license=license or stated,
        library_name="transformers",
        pipeline_tag=task,
        tags=["vision", "hf_vit_family", architecture.name, architecture.model_type],
        base_model=next(filter(None, map(hub_id, bases)), None),
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
        processor_class=preparation.auto_class.__name__,
        parameters=model.num_parameters(),
        image_size=pair(model.config.image_size),
        num_frames=getattr(model.config, "num_frames", None),
        num_labels=model.config.num_labels,
        license=license or stated,
        conversion=conversion,
        training=training,
        evaluation=evaluation,
        public_name=public_name,
    )
