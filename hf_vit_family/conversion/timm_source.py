"""Reads timm's config.json: from the name of an architecture to ours, and to arguments."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedConfig

from ..conversion_scripts.timm_variants import OTHER_FAMILIES, OTHER_KEYS, RENAMED, timm_vit_arguments
from ..errors import ConversionError
from ..modeling.configuration_vitf import VitfConfig, pair
from ..registry import ARCHITECTURES, Architecture

# Arguments of timm's VisionTransformer that a DeiT leaves at their defaults: with another value it is a ViT.
_DEIT_ARGUMENTS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "act_layer", "norm_layer")
# What only training and the library's own handling of sizes read.
_WITHOUT_EFFECT = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "weight_init", "fix_init")


@dataclass(frozen=True)
class TimmModel:
    """
    What a name of timm's stands for.

    Args:
        architecture: Ours. arguments: Of timm's constructor, as the name sets them and model_args replace them.
        fields: Of our configuration, which no argument of timm's can change.
    """

    architecture: Architecture
    arguments: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)


def one_or_two(size: Any) -> int | list[int]:
    """A size as one number where height and width are equal."""
    height, width = pair(size)
    return height if height == width else [height, width]


def own_fields(config: VitfConfig) -> dict[str, Any]:
    """The fields of a configuration that are this library's, without labels."""
    general = {each.name for each in dataclass_fields(PreTrainedConfig)}
    names = (each.name for each in dataclass_fields(config) if not each.name.startswith("_"))
    return {name: getattr(config, name) for name in names if name not in general}


def family_of(name: str) -> str | None:
    """The family that a name of timm's belongs to, if it is none of this library's."""
    return next((family for pattern, family in OTHER_FAMILIES if pattern.match(name)), None)


def refused_family(keys: Iterable[str]) -> str | None:
    """Why a state dict of these keys cannot be converted, if only another family has such; `None` otherwise."""
    for key in keys:
        for pattern, family in OTHER_KEYS:
            if pattern.fullmatch(key):
                return f"this is {family} (by its key {key!r}); not in this library"
    return None


def is_timm_name(name: str) -> bool:
    """Whether a name is one of timm's that this library has, or knows to be another family's."""
    renamed = any(pattern.fullmatch(name) for pattern, _, _ in RENAMED)
    return renamed or timm_vit_arguments(name) is not None or family_of(name) is not None


def _given(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments that a config.json gives besides those of the name, by timm's own rules (1.0.31 models/_builder.py).
    """
    pretrained = metadata.get("pretrained_cfg", {})
    given = {}
    if (size := pretrained.get("input_size")) is not None:
        given["in_chans"] = size[0]
        if pretrained.get("fixed_input_size"):
            given["img_size"] = list(size[-2:])
    if pretrained.get("global_pool"):
        given["global_pool"] = pretrained["global_pool"]
    given |= metadata.get("model_args", {})
    if given.get("num_classes") == 0:  # the file has no head, which its keys tell
        del given["num_classes"]
    return {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT}


def timm_model(metadata: Mapping[str, Any]) -> TimmModel:
    """
    What the `architecture` of timm's config.json stands for.

    Raises:
        ConversionError: for an architecture that is not of this library; it is called by its own name.
    """
    name, given = metadata["architecture"], _given(metadata)
    if (arguments := timm_vit_arguments(name)) is not None:
        distilled = arguments.pop("distilled", False)
        plain = given.get("global_pool", "token") == "token" and not given.keys() & {"class_token", "reg_tokens"}
        if distilled or (name.startswith("deit_") and plain):
            arguments = {each: arguments[each] for each in _DEIT_ARGUMENTS}
            given.pop("global_pool", None)
            return TimmModel(ARCHITECTURES["deit"], {**arguments, **given})
        return TimmModel(ARCHITECTURES["vit"], {**arguments, **given})
    if (family := family_of(name)) is not None:
        raise ConversionError(f"this is {family} (timm's {name}); not in this library", "architecture")
    variant, changed = next(
        ((pattern.sub(ours, name), changed) for pattern, ours, changed in RENAMED if pattern.fullmatch(name)),
        (name, {}),
    )
    for architecture in ARCHITECTURES.values():
        if variant in architecture.config_class.VARIANTS:
            return _of_variant(architecture, variant, {**changed, **given})
    raise ConversionError(
        f"timm's architecture {name!r} is not known here; --architecture and --kwargs say what it is", "architecture"
    )


def _of_variant(architecture: Architecture, variant: str, given: dict[str, Any]) -> TimmModel:
    """
    From a variant of ours: the arguments by which timm would make it, or its fields where timm's function takes none.
    """
    layouts = architecture.conversion.LAYOUTS
    native = layouts.get("timm", layouts["original"]).native_config
    config = architecture.config_class.from_variant(variant)
    # All that is asked of a model is its configuration, and whether it has a head.
    model = SimpleNamespace(config=config, base_model=None)
    try:
        arguments = {name: value for name, value in native(model)["model_args"].items() if value is not None}
    except ConversionError:  # its function takes no arguments that say as much
        arguments = {}
    arguments.pop("num_classes", None)
    if arguments.keys() & {"depth", "depths"}:
        return TimmModel(architecture, {**arguments, **given})
    free = {"image_size", "num_channels", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"}
    fields = {name: value for name, value in own_fields(config).items() if name not in free | {"residual_cls_token"}}
    arguments = {"img_size": one_or_two(config.image_size), "in_chans": config.num_channels}
    return TimmModel(architecture, {**arguments, **given}, fields)


def timm_labels(metadata: Mapping[str, Any], num_labels: int) -> tuple[dict[int, str] | None, list[str]]:
    """
    What timm's config.json calls the classes of a head: `label_descriptions` where it has them, else `label_names`,
    which are a list or, with gaps, a dictionary by number (timm 1.0.31 models/_hub.py).

    Returns:
        The names by number, or `None` where there are none, and what a reader should know.
    """
    places = (metadata, metadata.get("pretrained_cfg") or {})
    names = next(filter(None, (place.get(name) for place in places for name in ("label_names", "labels"))), None)
    if not isinstance(names, list | tuple | dict):
        return None, []
    numbered = {int(i): str(n) for i, n in (names.items() if isinstance(names, dict) else enumerate(names))}
    if any(not 0 <= i < num_labels for i in numbered) or (isinstance(names, list | tuple) and len(names) != num_labels):
        return None, [f"left out the {len(numbered)} label_names of config.json, which do not fit {num_labels} classes"]
    descriptions = next(filter(None, (place.get("label_descriptions") for place in places)), {})
    described = {i: str(descriptions.get(name, name)) for i, name in numbered.items()}
    often = {text for text, count in Counter(described.values()).items() if count > 1}
    labels = {i: f"{text} ({numbered[i]})" if text in often else text for i, text in described.items()}
    return {i: labels.get(i, f"LABEL_{i}") for i in range(num_labels)}, []


def timm_label_names(config: VitfConfig) -> dict[str, list[str]]:
    """The entry of timm's config.json for the names of a model's classes; none where they were given no names."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    return {} if names == [f"LABEL_{i}" for i in range(len(names))] else {"label_names": names}
