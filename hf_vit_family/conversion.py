"""Conversion of checkpoints: from the layouts of the original authors, timm and transformers, and back.

A conversion script (`conversion_scripts/convert_<architecture>.py`) declares its `LAYOUTS`: for each a table of
[`rules.Rule`]s, which reads a checkpoint and, inverted, writes it back. Everything else is here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from .checkpoints import CheckpointFile, as_tensors, read_checkpoint
from .errors import ConversionError
from .modeling.configuration_vitf import VitfConfig, pair, unknown_name_message
from .registry import ARCHITECTURES, Architecture, get_architecture
from .rules import Derived, Rule, find_indices, make_plan, pattern, run_plan
from .variants import find_variant

# ---------------------------------------------------------------------------------------------------------------------
# What a conversion script declares


@dataclass(frozen=True)
class Source:
    """Where the original code stands: `owner/name`, its commit, the file that the model follows, and its licence."""

    repository: str
    commit: str
    file: str
    license: str


@dataclass(frozen=True)
class Published:
    """
    One published checkpoint, a value of a script's `CHECKPOINTS`; its key is `"<variant>.<tag>"`.

    Args:
        url: The file.
        top1: Top-1 accuracy on ImageNet-1k in percent, as published; `None` where nobody published one.
        top1_source: Who measured it. training: Data it was trained on.
        license: Licence of the weights as a Hub identifier, `None` where it is unknown. license_source: Who says so.
        wrapper: Key under which the file keeps its state dict, `""` for none.
        preprocessing: What differs from the variant's, by the names of `VitfConfig.preprocessing`.
    """

    url: str
    top1: float | None = None
    top1_source: str = ""
    training: str = ""
    license: str | None = None
    license_source: str = ""
    wrapper: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """
    One way of naming and shaping an architecture's tensors, in a script's `LAYOUTS`. Names that begin with "original" are
    the authors' own.

    Args:
        rules: From the configuration to the list of [`Rule`]s.
        config: `config(kwargs, state_dict, **overrides)` to the configuration; see [`make_config`].
        requires: Key patterns of which each must be found in a file for it to be recognised.
        forbids: Key patterns that tell that a file is of another architecture or layout.
        ndims: Key pattern to the number of dimensions of its tensors, where names alone do not tell layouts apart.
        suffix: File type that it is published in: `".npz"`, `".pth"` or `".safetensors"`.
        wrapper: Key under which a written `.pth` keeps the state dict, `""` for none.
        prefix: Prefix of the encoder's keys in a model with a head, as `"vit."`.
        holds: Field of the configuration to the values that the layout can express; other fields are free.
        native_config: From a model to the content of the config.json that its own library reads.
        source: Where its code stands, if not in the script's `SOURCE`.
    """

    rules: Callable[[VitfConfig], list[Rule]]
    config: Callable[..., VitfConfig]
    requires: tuple[str, ...]
    forbids: tuple[str, ...] = ()
    ndims: Mapping[str, int] = field(default_factory=dict)
    suffix: str = ".safetensors"
    wrapper: str = ""
    prefix: str = ""
    holds: Mapping[str, tuple] = field(default_factory=dict)
    native_config: Callable[[PreTrainedModel], dict[str, Any]] | None = None
    source: Source | None = None

    def misfit(self, config: VitfConfig) -> str | None:
        """Why it cannot hold a model of this configuration, or `None` if it can."""
        for name, values in self.holds.items():
            if getattr(config, name) not in values:
                return f"{name}={getattr(config, name)!r} has no place in it, only {' or '.join(map(repr, values))}"
        return None


def layer_norm_eps(norm_layer: str) -> dict[str, float]:
    """The field that a `norm_layer` argument sets: `"partial(torch.nn.LayerNorm, eps=1e-06)"`, `"LayerNorm(eps=1e-6)"`."""
    found = re.search(r"LayerNorm(?:, |\()eps=([\d.e-]+)\)$", norm_layer)
    if found is None:
        raise ConversionError(
            f"norm_layer={norm_layer!r}: expected 'partial(torch.nn.LayerNorm, eps=...)'", "norm_layer"
        )
    return {"layer_norm_eps": float(found[1])}


def ignored(value: Any) -> dict[str, Any]:
    """For arguments that do not change the trained model, in the table of [`fields_from_kwargs`]."""
    return {}


def fields_from_kwargs(
    kwargs: Mapping[str, Any],
    names: Mapping[str, str | Callable[[Any], dict[str, Any]]],
    fixed: Mapping[str, tuple] | None = None,
) -> dict[str, Any]:
    """
    Fields of the configuration from the keyword arguments of the original constructor.

    Args:
        kwargs: The arguments.
        names: Argument to the field of the same meaning, or to a function from its value to fields.
        fixed: Argument to the values that the architecture can express, for those that must not vary.

    Raises:
        ConversionError: for an argument in neither table, or a value that cannot be expressed.
    """
    fields, fixed = {}, fixed or {}
    for name, value in kwargs.items():
        if name in names:
            target = names[name]
            fields |= target(value) if callable(target) else {target: value}
        elif name not in fixed:
            raise ConversionError(unknown_name_message("original argument", name, [*names, *fixed]), name)
        elif value not in fixed[name]:
            raise ConversionError(f"original argument {name}={value!r} is not supported, only {fixed[name]}", name)
    return fields


def count_indices(text: str, state_dict: Mapping[str, Tensor], place: str = "i") -> int:
    """One more than the highest number in a place of the pattern `text`: how many layers there are. ConversionError for none."""
    found = find_indices(text, state_dict)
    if not found:
        raise ConversionError(f"no key like {text!r}", text)
    return max(values[place] for values in found) + 1


def shape_of(key: str, state_dict: Mapping[str, Tensor], ndim: int) -> tuple[int, ...]:
    """Shape of a tensor. Raises ConversionError if it is missing or does not have `ndim` dimensions."""
    if key not in state_dict:
        raise ConversionError(f"key {key!r} is missing", key)
    shape = tuple(state_dict[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise ConversionError(f"key {key!r}: expected {ndim} dimensions, none empty, got shape {shape}", key)
    return shape


def common_size(dimensions: Mapping[str, int], state_dict: Mapping[str, Tensor]) -> int:
    """
    The size that several tensors have in common.

    Args:
        dimensions: Key to the dimension that has this size.

    Raises:
        ConversionError: if a key is missing, or a tensor differs; the one in the minority is named.
    """
    sizes = {}
    for key, dimension in dimensions.items():
        if key not in state_dict:
            raise ConversionError(f"key {key!r} is missing", key)
        shape = tuple(state_dict[key].shape)
        sizes[key] = shape[dimension] if dimension < len(shape) else None
    counts = Counter(sizes.values())
    odd = [key for key, size in sizes.items() if counts[size] < max(counts.values()) or len(sizes) == counts[size] * 2]
    if odd or None in counts:
        shapes = {key: tuple(state_dict[key].shape) for key in odd or sizes}
        raise ConversionError(f"shapes contradict those of other keys: {shapes}", next(iter(shapes)))
    return next(iter(counts))


def make_config(
    config_class: type[VitfConfig],
    *fields: Mapping[str, Any],
    ask_for: Mapping[str, str] | None = None,
    **overrides: Any,
) -> VitfConfig:
    """
    The configuration from what is known; later `fields` and `overrides` win.

    Args:
        ask_for: Field that must be known to the key that leaves it open. One that nothing tells is taken from the published
            variants with the same other fields, if these agree.

    Raises:
        ConversionError: if a field of `ask_for` stays unknown, or a value does not fit.
    """
    known = {name: value for part in (*fields, overrides) for name, value in part.items()}
    valid = {each.name for each in dataclass_fields(config_class) if not each.name.startswith("_")} | {"num_labels"}
    for name in known.keys() - valid:
        raise ConversionError(f"{config_class.__name__}: {unknown_name_message('field', name, valid)}", name)
    try:
        for name, key in (ask_for or {}).items():
            if name not in known:
                values = _published_values(config_class, known, name)
                if len(values) != 1:
                    raise ConversionError(
                        f"{name} is not told by the checkpoint (key {key!r}); give it, as {name}=...", key
                    )
                known[name] = values.pop()
        return config_class(**known)
    except (ValueError, TypeError, StrictDataclassError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(str(error.__cause__ or error)) from error


def _published_values(config_class: type[VitfConfig], known: Mapping[str, Any], name: str) -> set:
    """What the published variants that agree with `known` have in a field; labels and image size may differ."""

    def same(config: VitfConfig, field_name: str, value: Any) -> bool:
        own = getattr(config, field_name)
        return pair(own) == pair(value) if field_name == "patch_size" else own == value

    free = {"num_labels", "id2label", "label2id", "image_size"}
    configs = (config_class.from_variant(variant) for variant in config_class.VARIANTS)
    fixed = {key: value for key, value in known.items() if key not in free}
    values = (getattr(c, name) for c in configs if all(same(c, key, value) for key, value in fixed.items()))
    return {tuple(value) if isinstance(value, list) else value for value in values}


def square_image(num_patches: int, patch_size: int | Iterable[int]) -> tuple[int, int] | None:
    """Height and width in pixels of the image with a square grid of that many patches; `None` if there is none."""
    side = round(num_patches**0.5)
    rows, columns = pair(patch_size)
    return (side * rows, side * columns) if side and side * side == num_patches else None


# ---------------------------------------------------------------------------------------------------------------------
# Recognition


@dataclass(frozen=True, eq=False)
class _Candidate:
    architecture: Architecture
    name: str
    layout: Layout

    def __str__(self) -> str:
        return f"{self.architecture.name} in the layout {self.name!r}"

    def faults(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Why this checkpoint is not of this layout, one sentence a pattern."""
        keys = list(_strip(state_dict, self.layout.prefix))
        missing = [f"no key like {p!r}" for p in self.layout.requires if not find_indices(p, keys)]
        present = [
            f"key {key!r} does not belong there"
            for p in self.layout.forbids
            for key in keys
            if pattern(p).match(key) is not None
        ]
        shapes = [
            f"key {key!r} does not have {ndim} dimensions"
            for p, ndim in self.layout.ndims.items()
            for key, original in _strip(state_dict, self.layout.prefix).items()
            if pattern(p).match(key) is not None and state_dict[original].ndim != ndim
        ]
        return missing + present + shapes


def _strip(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Key without the prefix of the base model, to the key in the file."""
    return {key.removeprefix(prefix): key for key in keys}


def _candidates(architecture: Architecture | None) -> list[_Candidate]:
    architectures = [architecture] if architecture else ARCHITECTURES.values()
    return [_Candidate(a, name, layout) for a in architectures for name, layout in a.conversion.LAYOUTS.items()]


def recognize(
    state_dict: Mapping[str, Tensor], architecture: Architecture | None, layout: str | None
) -> list[_Candidate]:
    """
    The architectures and layouts that fit the keys of a checkpoint, the best first: more required patterns before fewer,
    the authors' own layout before that of another library, then the order of the registry.

    Raises:
        ConversionError: if none fits; the nearest is named, with what speaks against it.
    """
    candidates = [c for c in _candidates(architecture) if layout is None or c.name == layout]
    if not candidates:
        known = sorted({c.name for c in _candidates(architecture)})
        raise ConversionError(unknown_name_message("layout", str(layout), known))
    faults = {c: c.faults(state_dict) for c in candidates}
    fitting = [c for c in candidates if not faults[c]]
    if not fitting:
        nearest = min(candidates, key=lambda c: len(faults[c]) / len(c.layout.requires))
        raise ConversionError(f"checkpoint not recognised; the nearest is {nearest}, but {faults[nearest][0]}")
    return sorted(fitting, key=lambda c: (-len(c.layout.requires), not c.name.startswith("original")))


# ---------------------------------------------------------------------------------------------------------------------
# Both directions


@dataclass
class ConversionReport:
    """
    What was converted: written next to the weights as `conversion_report.json`, and read by the model card.

    Args:
        architecture, layout, head: What the checkpoint was recognised as.
        source: File, folder or Hub id; `""` for a state dict in memory. sha256: Digest of the file.
        wrapper: Keys under which the file nested its state dict. key_prefix: What every key began with.
        num_tensors: In the checkpoint. num_parameters: Of the model.
        checkpoint: Key in the script's `CHECKPOINTS`, if it is one of them.
        notes: What a reader should know, one sentence each.
        parity: [`parity.Parity`] as a dictionary, if the model was compared with another.
    """

    architecture: str
    layout: str
    head: str
    source: str
    sha256: str
    wrapper: list[str]
    key_prefix: str
    num_tensors: int
    num_parameters: int
    checkpoint: str | None = None
    notes: list[str] = field(default_factory=list)
    parity: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _model_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict by the names that rules use: without the prefix of the base model."""
    prefix = model.base_model_prefix + "."
    return {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items()}


def _model_classes(architecture: Architecture) -> list[type[PreTrainedModel]]:
    """The classes that a checkpoint can become: a backbone has the parameters of the base model."""
    return [architecture.model_class(head) for head in architecture.heads if head != "Backbone"]


def convert_state_dict(
    state_dict: Mapping[str, Tensor], architecture: Architecture, layout: Layout, config: VitfConfig
) -> PreTrainedModel:
    """
    A model with the weights of a checkpoint, in evaluation mode. Which head it has follows from the keys.

    Raises:
        ConversionError: for anything in the checkpoint that is not accounted for; it names the key.
    """
    if (misfit := layout.misfit(config)) is not None:
        raise ConversionError(f"layout and configuration do not fit: {misfit}")
    rules = layout.rules(config)
    named = _strip(state_dict, layout.prefix)
    if len(named) < len(state_dict):
        twice = next(
            key for key in state_dict if key.startswith(layout.prefix) and key[len(layout.prefix) :] in state_dict
        )
        raise ConversionError(f"key {twice!r} is there with and without {layout.prefix!r}", twice)
    plan = make_plan(named, rules)
    produced = {target for step in plan for target in step.targets}

    with torch.device("meta"):
        models = [model_class(config) for model_class in _model_classes(architecture)]
    # The nearest class, so that what a damaged file lacks is named; of equal ones the larger, the head being the damaged.
    skeleton = min(models, key=lambda model: (len(_model_tensors(model).keys() ^ produced), -len(model.state_dict())))
    expected = _model_tensors(skeleton)

    written_back = {key for step in make_plan(expected, [rule.inverse for rule in rules]) for key in step.targets}
    for key in sorted(written_back - named.keys()):
        raise ConversionError(f"key {key!r} is missing from the checkpoint", key)
    for step in plan:
        for target in step.targets:
            if target not in expected:
                raise ConversionError(
                    f"key {step.sources[0]!r} becomes {target!r}, which {type(skeleton).__name__} does not have with "
                    f"this configuration",
                    step.sources[0],
                )
    fired = {id(step.rule) for step in plan}
    everywhere = set().union(*(_model_tensors(model) for model in models))
    for rule in rules:
        of_other_head = any(find_indices(target, everywhere - expected.keys()) for target in rule.targets)
        # A derived tensor that should be there was asked for above.
        if id(rule) not in fired and not of_other_head and not isinstance(rule, Derived):
            raise ConversionError(f"rule {rule} never fired: it does not belong to this configuration")

    for step in plan:
        floating = {expected[target].is_floating_point() for target in step.targets}
        for key in step.sources:
            tensor = state_dict[named[key]]
            if floating and (tensor.is_complex() or {tensor.is_floating_point()} != floating):
                wanted = " and ".join(str(expected[target].dtype) for target in step.targets)
                raise ConversionError(f"key {key!r} holds {tensor.dtype}, the model needs {wanted}", key)
    tensors = run_plan(plan, {key: state_dict[named[key]] for key in named})
    origin = {target: step.sources[0] for step in plan for target in step.targets if step.sources}
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            shape, needed, source = tuple(tensor.shape), tuple(expected[key].shape), origin.get(key, key)
            raise ConversionError(f"key {source!r}: {key!r} gets shape {shape}, the model has {needed}", source)
    with no_init_weights():
        model = type(skeleton)(config)
    names = {key.removeprefix(model.base_model_prefix + "."): key for key in model.state_dict()}
    model.load_state_dict({names[key]: tensor for key, tensor in tensors.items()}, strict=True, assign=True)
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        model.config.dtype = floats.pop()
    return model.eval()


def convert_checkpoint(
    checkpoint: str | Path | CheckpointFile | Mapping[str, Any],
    architecture: str | None = None,
    original_kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, ConversionReport]:
    """
    A model of this library from a checkpoint of the original code, timm or transformers.

    Args:
        checkpoint: A file (`.npz`, `.pth`, `.pt`, `.bin`, `.safetensors`), a folder, a Hub id (`"owner/name"` or
            `"owner/name:file"`), or a state dict of tensors or arrays.
        architecture: Name in the registry; recognised from the keys, the file's name or its config.json by default.
        original_kwargs: Keyword arguments of the original constructor. A config.json next to the weights gives them too.
        layout: Name in the script's `LAYOUTS`; recognised from the keys by default.
        config_overrides: Fields of the configuration, above all those that neither shapes nor arguments tell.

    Returns:
        The model, in evaluation mode and with the dtype of the checkpoint, and the report.

    Raises:
        ConversionError: for a file that cannot be read, and for anything in it that is not accounted for.
    """
    if isinstance(checkpoint, Mapping):
        file = CheckpointFile(as_tensors(checkpoint))
    else:
        file = checkpoint if isinstance(checkpoint, CheckpointFile) else read_checkpoint(checkpoint)
    chosen = _named_architecture(architecture) if architecture else _hinted_architecture(file)
    first, *others = recognize(file.state_dict, chosen, layout)
    kwargs = file.kwargs if original_kwargs is None else original_kwargs
    config = first.layout.config(kwargs, _without_prefix(file.state_dict, first.layout.prefix), **config_overrides)
    if type(config).model_type != first.architecture.model_type:
        raise ConversionError(
            f"the configuration is of {config.model_type}, the checkpoint of {first.architecture.name}"
        )
    model = convert_state_dict(file.state_dict, first.architecture, first.layout, config)
    also = [str(other) for other in others if other.architecture is not first.architecture]
    report = ConversionReport(
        architecture=first.architecture.name,
        layout=first.name,
        head=type(model).__name__.removeprefix(first.architecture.prefix),
        source=file.source,
        sha256=file.sha256,
        wrapper=file.wrapper,
        key_prefix=file.key_prefix,
        num_tensors=len(file.state_dict),
        num_parameters=model.num_parameters(),
        checkpoint=find_published(first.architecture, file.source, model.config),
        notes=[f"read as {first}; its keys also fit {' and '.join(also)}"] if also else [],
    )
    return model, report


def _without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}


def _named_architecture(name: str) -> Architecture:
    try:
        return get_architecture(name)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _hinted_architecture(file: CheckpointFile) -> Architecture | None:
    """
    What the config.json says (transformers' model type, timm's architecture), or the longest variant name that the file's
    name begins with.
    """
    if file.metadata.get("model_type") in ARCHITECTURES:
        return ARCHITECTURES[file.metadata["model_type"]]
    variants = [v for a in ARCHITECTURES.values() for v in a.config_class.VARIANTS if file.variant_hint.startswith(v)]
    return find_variant(max(variants, key=len)) if variants else None


def find_published(architecture: Architecture, source: str, config: VitfConfig) -> str | None:
    """The one key of `CHECKPOINTS` whose file has the name of `source` and whose variant has this configuration's sizes."""
    name = source.replace(":", "/").rsplit("/", 1)[-1]
    found = []
    for key, published in architecture.conversion.CHECKPOINTS.items():
        variant = architecture.config_class.from_variant(key.split(".")[0])
        sizes = [(pair(c.image_size), c.stage_strides, c.stage_channels, c.num_labels) for c in (variant, config)]
        if name in (published.url.rsplit("/", 1)[-1], key) and sizes[0] == sizes[1]:
            found.append(key)
    return found[0] if len(found) == 1 else None


def find_layout(architecture: Architecture, config: VitfConfig, layout: str) -> tuple[str, Layout]:
    """
    The layout of that name, or the first one whose name begins with it, that can hold the configuration.

    Raises:
        ConversionError: if there is none, with the reason.
    """
    layouts = architecture.conversion.LAYOUTS
    named = {name: each for name, each in layouts.items() if name == layout or name.startswith(layout + "_")}
    if not named:
        raise ConversionError(unknown_name_message(f"layout of {architecture.name}", layout, layouts))
    for name, each in named.items():
        if each.misfit(config) is None:
            return name, each
    raise ConversionError(f"layout {layout!r} cannot hold this model: {next(iter(named.values())).misfit(config)}")


def original_source(architecture: Architecture, config: VitfConfig) -> Source:
    """Where the original code of a model with this configuration stands."""
    for name, layout in architecture.conversion.LAYOUTS.items():
        if name.startswith("original") and layout.misfit(config) is None:
            return layout.source or architecture.conversion.SOURCE
    return architecture.conversion.SOURCE


def export_checkpoint(model: PreTrainedModel, layout: str = "original") -> dict[str, Tensor]:
    """
    The state dict of a model under another layout's names and shapes: `convert_checkpoint` backwards, bit for bit.

    Args:
        model: A model of this library, with or without a head.
        layout: `"original"`, `"timm"`, `"transformers"` or another key of the script's `LAYOUTS`.

    Raises:
        ConversionError: if the layout does not exist or cannot hold the model.
    """
    architecture = get_architecture(model.config.model_type)
    _, chosen = find_layout(architecture, model.config, layout)
    prefix = model.base_model_prefix + "."
    plan = make_plan(_model_tensors(model), [rule.inverse for rule in chosen.rules(model.config)])
    tensors = run_plan(plan, {key: tensor.detach().cpu() for key, tensor in _model_tensors(model).items()})
    state = model.state_dict()
    result = {}
    for step in plan:
        # What is made anew stands where the tensor stands that tells how often it occurs.
        beside = step.sources or (pattern(step.rule.like).format(step.values),)
        in_base = any(prefix + key in state for key in beside)
        for key in step.targets:
            result[chosen.prefix + key if in_base else key] = tensors[key]
    return result


def has_head(model: PreTrainedModel) -> bool:
    """Whether it is more than the encoder."""
    return model.base_model is not model


def one_or_two(size: Any) -> int | list[int]:
    """A size as one number where height and width are equal."""
    height, width = pair(size)
    return height if height == width else [height, width]
