"""Published weights in a model of one's own: another head, other classes, another image size."""

from typing import Any

from transformers import PreTrainedModel

from ..errors import UserError
from ..loading import quiet_loading
from ..modeling.configuration_vitf import unknown_name_message
from ..publishing.converted import pretrained_folder
from ..variants import find_variant
from .config import ModelOptions
from .setup import copy_weights, head_names, naming_the_model, set_classes, tell_missing


def load_pretrained(name: str, head: str | None = None, **overrides: Any) -> PreTrainedModel:
    """
    A published checkpoint as a model in evaluation mode.

    Args:
        name: As in `pretrained_folder`.
        head: A suffix such as `"Model"`, a key of `AUTO_CLASSES`; by default that of the checkpoint.
        overrides: Fields of the configuration. Another number of labels gives a new head, another image size resizes
            the positions.

    Raises:
        UserError: as `pretrained_folder`; for a head or field that does not exist, or a weight that does not fit a
            field.
    """
    folder = pretrained_folder(name)
    architecture = find_variant(name.partition(".")[0])
    fields = dict(overrides)
    if "num_labels" in fields:
        fields["id2label"] = {label: f"LABEL_{label}" for label in range(fields.pop("num_labels"))}
    config, unknown = architecture.config_class.from_pretrained(
        folder, return_unused_kwargs=True, trust_remote_code=False, **fields
    )
    if unknown:
        known = [*vars(config), "num_labels"]
        raise UserError(unknown_name_message(f"field of {type(config).__name__}", next(iter(unknown)), known))
    if "id2label" in fields:
        set_classes(config, config.id2label)
    head = head or config.architectures[0].removeprefix(architecture.prefix)
    if head not in architecture.heads:
        raise UserError(unknown_name_message(f"head of {architecture.name}", head, architecture.heads))
    options = ModelOptions(model=name, set=overrides)
    with naming_the_model(options), quiet_loading():
        model, info = architecture.model_class(head).from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False
        )
    missing = set(info["missing_keys"])
    if overrides:
        new = head_names(model) if config.num_labels != model.config.num_labels else frozenset()
        fresh = architecture.model_class(head)(config).to(model.dtype)
        missing |= new | copy_weights(options, model, fresh, new)
        model = fresh.eval()
    tell_missing(options, missing)
    return model
