"""Published variants by name: list them, and build their models and processors."""

import fnmatch
import importlib
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import BaseImageProcessor, BaseVideoProcessor, PreTrainedModel
from transformers.image_utils import PILImageResampling
from transformers.utils import is_torchvision_available

from .errors import UserError
from .modeling.configuration_vitf import VitfConfig, unknown_name_message
from .registry import ARCHITECTURES, CLIPS, IMAGES, Architecture


def list_variants(pattern: str = "*") -> list[str]:
    """Names of the variants that match a shell pattern, such as `"deit_*224"`, in the order of the registry."""
    names = (name for architecture in ARCHITECTURES.values() for name in architecture.config_class.VARIANTS)
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def find_variant(name: str) -> Architecture:
    """The architecture that a variant belongs to; a ValueError names the nearest valid variant."""
    for architecture in ARCHITECTURES.values():
        if name in architecture.config_class.VARIANTS:
            return architecture
    raise UserError(unknown_name_message("variant", name, list_variants()))


def create_config(name: str, **overrides: Any) -> VitfConfig:
    """
    The configuration of a variant, with some fields replaced. Raises UserError for a name or value that does not fit.
    """
    config_class = find_variant(name).config_class
    try:
        return config_class.from_variant(name, **overrides)
    except StrictDataclassError as error:  # wraps the validator's own message, which is the clear one
        raise UserError(str(error.__cause__ or error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def create_model(name: str, head: str | None = None, pretrained: bool = False, **overrides: Any) -> PreTrainedModel:
    """
    A model of a published variant, with new random weights or with published ones.

    Args:
        name: A variant, for example `"vit_base_patch16_224"`; with `pretrained` also `"<variant>.<tag>"`, which names
            one of its checkpoints.
        head: A suffix such as `"ForImageClassification"` (the default), `"Model"` or `"Backbone"`.
        pretrained: Whether the published weights are downloaded and converted, or taken from the cache.
        overrides: Fields of the configuration that replace the variant's, for example `num_labels=10`.

    Raises:
        UserError: if the variant, the head or a field does not exist, or the weights cannot be had.
    """
    if pretrained:
        # By name, as conversion scripts are: what converts and caches is built on this module.
        return importlib.import_module(f"{__package__}.training.pretrained").load_pretrained(name, head, **overrides)
    architecture = find_variant(name)
    head = head or next(h for h in architecture.heads if h.endswith("Classification"))
    if head not in architecture.heads:
        raise UserError(unknown_name_message(f"head of {architecture.name}", head, architecture.heads))
    return architecture.model_class(head)(create_config(name, **overrides))


def create_processor(
    name: str, backend: str | None = None, **overrides: Any
) -> BaseImageProcessor | BaseVideoProcessor:
    """
    The processor of a published variant: its size, crop, interpolation, mean and standard deviation, and for a video
    model which frames it takes.

    Args:
        name: A variant, for example `"vit_base_patch16_224"`.
        backend: `"torchvision"` or, for images, `"pil"`; by default torchvision where it is installed.
        overrides: Fields of the processor that replace the variant's, for example `size=384` or `crop_pct=None`;
            `resample` may be a name, such as `"bilinear"`.

    Raises:
        UserError: if the variant, the backend or a field does not exist, or a value does not fit.
    """
    preprocessing = find_variant(name).config_class.preprocessing(name)
    height, width = preprocessing.pop("image_size")
    if "num_frames" in overrides and "num_frames" not in preprocessing:
        raise UserError(f"{name} takes images, not clips: its processor has no field num_frames")
    return make_processor({"size": {"height": height, "width": width}, **preprocessing, **overrides}, backend)


def make_processor(fields: dict[str, Any], backend: str | None = None) -> BaseImageProcessor | BaseVideoProcessor:
    """
    The processor of images, or of clips where `num_frames` is given, with these fields. Errors as in
    `create_processor`.
    """
    fields = dict(fields)
    backends = (CLIPS if "num_frames" in fields else IMAGES).processors
    backend = backend or ("torchvision" if is_torchvision_available() else "pil")
    if backend not in backends:
        raise UserError(unknown_name_message("backend", backend, backends))
    if isinstance(fields["resample"], str):
        names = {resampling.name.lower(): resampling for resampling in PILImageResampling}
        if fields["resample"] not in names:
            raise UserError(unknown_name_message("resample", fields["resample"], names))
        fields["resample"] = names[fields["resample"]]
    try:
        return backends[backend](**fields)
    except ValueError as error:
        raise UserError(str(error)) from error
