"""Conversion of checkpoints: from the layouts of the original authors, timm and transformers, and back.

A conversion script (`conversion_scripts/convert_<architecture>.py`) declares its `LAYOUTS`: for each a table of
[`rules.Rule`]s, which reads a checkpoint and, inverted, writes it back. Everything else is here.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from ..conversion_scripts.vit_pytorch_classes import refused_class as refused_vit_pytorch_class
from ..errors import ConversionError
from ..modeling.configuration_vitf import VitfConfig, pair, unknown_name_message
from ..registry import ARCHITECTURES, Architecture, get_architecture
from ..variants import find_variant
from .checkpoint_files import MODULE_PREFIXES, CheckpointFile, read_checkpoint, unwrap
from .published import published_checkpoints
from .rules import Derived, Rule, find_indices, first_three, make_plan, pattern, run_plan
from .timm_source import TimmModel, family_of, own_fields, refused_family, timm_labels, timm_model
from .timm_source import one_or_two as one_or_two
from .transformers_source import native_model_type, native_name, refused_class, with_defaults

# ---------------------------------------------------------------------------------------------------------------------
# What a conversion script declares


@dataclass(frozen=True)
class Source:
    """The original code: `owner/name`, its commit, the file that the model follows, and its licence."""

    repository: str
    commit: str
    file: str
    license: str


@dataclass(frozen=True)
class Layout:
    """
    One way of naming and shaping an architecture's tensors, in a script's `LAYOUTS`. Names that begin with "original"
    are the authors' own.

    Args:
        rules: From the configuration to the list of [`Rule`]s.
        config: `config(kwargs, state_dict, **overrides)` to the configuration; see [`make_config`].
        requires: Key patterns of which each must be found in a file for it to be recognised.
        forbids: Key patterns that tell that a file is of another architecture or layout.
        ndims: Key pattern to the number of dimensions of its tensors, where names do not tell layouts apart.
        shares_keys: Whether a ViT in a module that calls it `model` has the same keys: only the wrapper of the file, or
            the architecture's name, tells the two apart.
        same_keys: What else, which is not in this library, has the same keys and shapes: nobody but a user can tell the
            two apart.
        names: Regular expression of what the name of a file holds that is of this layout nevertheless.
        suffix: File type that it is published in: `".npz"`, `".pth"` or `".safetensors"`.
        wrapper: Key under which a written `.pth` keeps the state dict, `""` for none.
        prefix: Prefix of the encoder's keys in a model with a head, as `"vit."`.
        holds: Field of the configuration to the values that the layout can express; other fields are free.
        computes_with: Field to the values that its own code computes with, whatever the file says. A checkpoint may be
            read with another one; a model with another one is not written, for its library would compute otherwise.
        fits: What fields together keep it from holding a configuration: a sentence, or `None`.
        native_config: From a model to the content of the config.json that its own library reads.
        constructor: From a model to the arguments with which its own class is made, where that library has no
            config.json: they are written to one all the same, for the weights do not tell them.
        model_types: Values of `model_type` in transformers' config.json for which it is read; by default, of a layout
            whose name begins with "transformers", the name of the architecture.
        head_keys_in_base: Key patterns of a head here that lie within the encoder there, under `prefix`.
        drops: What a key begins with, without `prefix`, to what it is: tensors that have no place here, and are left
            out with a note.
        folds: From the tensors, named without `prefix`, to those in which a part that has no place here is merged with
            its neighbour, and a note on it; `None` where there is no such part. What is written back does not have that
            part.
        adds: From the configuration to tensors of the encoder that do nothing, but are expected there; keys without
            `prefix`.
        note: What a reader of the converted model should know, `""` for nothing.
        source: Where its code stands, if not in the script's `SOURCE`.
    """

    rules: Callable[[VitfConfig], list[Rule]]
    config: Callable[..., VitfConfig]
    requires: tuple[str, ...]
    forbids: tuple[str, ...] = ()
    ndims: Mapping[str, int] = field(default_factory=dict)
    shares_keys: bool = False
    same_keys: str = ""
    names: str = ""
    suffix: str = ".safetensors"
    wrapper: str = ""
    prefix: str = ""
    holds: Mapping[str, tuple] = field(default_factory=dict)
    computes_with: Mapping[str, tuple] = field(default_factory=dict)
    fits: Callable[[VitfConfig], str | None] | None = None
    native_config: Callable[[PreTrainedModel], dict[str, Any]] | None = None
    constructor: Callable[[PreTrainedModel], dict[str, Any]] | None = None
    model_types: tuple[str, ...] = ()
    head_keys_in_base: tuple[str, ...] = ()
    drops: Mapping[str, str] = field(default_factory=dict)
    folds: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], str] | None] | None = None
    adds: Callable[[VitfConfig], dict[str, Tensor]] | None = None
    note: str = ""
    source: Source | None = None

    def misfit(self, config: VitfConfig) -> str | None:
        """Why it cannot hold a model of this configuration, or `None` if it can."""
        return _outside(self.holds, config) or (self.fits(config) if self.fits else None)

    def unwritable(self, config: VitfConfig) -> str | None:
        """Why a model of this configuration cannot be written in it, or `None` if it can."""
        return self.misfit(config) or _outside(self.computes_with, config)


def _outside(table: Mapping[str, tuple], config: VitfConfig) -> str | None:
    """The first field of a configuration that has another value than those of the table, in a sentence."""
    for name, values in table.items():
        if getattr(config, name) not in values:
            return f"{name}={getattr(config, name)!r} has no place in it, only {' or '.join(map(repr, values))}"
    return None


def layer_norm_eps(norm_layer: str) -> dict[str, float]:
    """
    The field that a `norm_layer` argument sets: `"partial(torch.nn.LayerNorm, eps=1e-06)"`, `"LayerNorm(eps=1e-6)"`.
    """
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


TIMM_REPOSITORY = "huggingface/pytorch-image-models"
# Where timm drops what this family does not, to the argument that says how often.
_TIMM_ONLY_DROPOUT = {"drop_rate": "before the classifier", "patch_drop_rate": "of whole patches"}


def split_timm_dropout(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """
    The dropout among the arguments of timm's constructors, read in one way for every architecture.

    `proj_drop_rate` is `hidden_dropout_prob`. `drop_rate` acts before the classifier only: that is its meaning since
    timm names `proj_drop_rate` apart (huggingface/pytorch-image-models@aa4b585 timm/models/vision_transformer.py), and
    the code of authors on older timm, where it meant all dropout, is read by the layout "original". No rate changes a
    trained model's outputs, so that one without a place here is left out with a note.

    Returns:
        The other arguments, fields of the configuration, and the notes.
    """
    rest = dict(kwargs)
    rates = {name: rest.pop(name, 0.0) for name in _TIMM_ONLY_DROPOUT}
    notes = [
        f"timm's {name}={rate} is dropout {_TIMM_ONLY_DROPOUT[name]}, which is left out here; it acts in training only"
        for name, rate in rates.items()
        if rate
    ]
    projection, position = rest.pop("proj_drop_rate", 0.0), rest.pop("pos_drop_rate", 0.0)
    if position != projection:
        notes.append(
            f"timm's proj_drop_rate={projection} becomes hidden_dropout_prob, which acts on embeddings too, in place "
            f"of pos_drop_rate={position}; both act in training only"
        )
    return rest, {"hidden_dropout_prob": projection} if projection else {}, notes


def count_indices(text: str, state_dict: Mapping[str, Tensor], place: str = "i") -> int:
    """
    One more than the highest number in a place of the pattern `text`: how many layers there are. ConversionError for
    none.
    """
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


# A configuration names every label and every layer, which would take hours for the numbers that a damaged file may
# give. The largest published data sets have some 20,000 labels, the deepest models some hundred layers.
MOST_LABELS = 1_000_000
MOST_LAYERS = 1_000
_DEPTH = re.compile(r"num_.*_layers|(.*_)?depths?")


def check_bounds(fields: Mapping[str, Any]) -> None:
    """Raises ConversionError for a number of labels or layers (in all stages) that no model has."""
    for name, value in fields.items():
        most = MOST_LABELS if name == "num_labels" else MOST_LAYERS if _DEPTH.fullmatch(name) else None
        if most is not None and _total(value) > most:
            raise ConversionError(f"{name}={value!r} is too large: there may be {most:,} at most", name)


def _total(value: Any) -> int:
    """The sum of the whole numbers in a value, at any depth."""
    if isinstance(value, list | tuple):
        return sum(map(_total, value))
    return value if isinstance(value, int) else 0


def make_config(
    config_class: type[VitfConfig],
    *fields: Mapping[str, Any],
    ask_for: Mapping[str, str] | None = None,
    **overrides: Any,
) -> VitfConfig:
    """
    The configuration from what is known; later `fields` and `overrides` win.

    Args:
        ask_for: Field that must be known to the key that leaves it open. One that nothing tells is taken from the
            published variants with the same other fields, if these agree.

    Raises:
        ConversionError: if a field of `ask_for` stays unknown, or a value does not fit.
    """
    known = {name: value for part in (*fields, overrides) for name, value in part.items()}
    valid = {each.name for each in dataclass_fields(config_class) if not each.name.startswith("_")} | {"num_labels"}
    for name in known.keys() - valid:
        raise ConversionError(f"{config_class.__name__}: {unknown_name_message('field', name, valid)}", name)
    check_bounds(known)
    try:
        for name in [name for name in ask_for or {} if name not in known]:
            values = _published_values(config_class, known, name)
            if len(values) == 1:
                known[name] = values.pop()
        if open_fields := {name: key for name, key in (ask_for or {}).items() if name not in known}:
            *names, last = open_fields
            names, several = f"{', '.join(names)} and {last}" if names else last, len(open_fields) > 1
            keys = ", ".join(repr(key) for key in dict.fromkeys(open_fields.values()))
            raise ConversionError(
                f"{names} {'are' if several else 'is'} not told by the checkpoint "
                f"({'keys' if ', ' in keys else 'key'} {keys}); "
                f"give {'them' if several else 'it'}, as {' '.join(f'{name}=...' for name in open_fields)}, or name "
                f"the model, as --variant NAME (vit-family list; timm's names count too)",
                next(iter(open_fields.values())),
            )
        return config_class(**known)
    except (ValueError, TypeError, StrictDataclassError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(str(error.__cause__ or error)) from error


def published_like(config_class: type[VitfConfig], known: Mapping[str, Any], name: str = "") -> list[VitfConfig]:
    """
    The published variants that agree with `known`, `name` being the field that is asked for; labels and image size are
    free.
    """

    def same(config: VitfConfig, field_name: str, value: Any) -> bool:
        own = getattr(config, field_name)
        if field_name == "patch_size":
            return pair(own) == pair(value)
        return as_lists(own) == as_lists(value)

    # Labels and sizes are the user's; how a source activates and resizes is its own, and tells of no other field.
    free = {"num_labels", "id2label", "label2id", "image_size"}
    free |= {"hidden_act", "layer_norm_eps", "position_interpolation", "initialization", "drop_path_schedule"} - {name}
    if name == "num_attention_heads":  # how a classifier pools tells nothing of them
        free |= {"pooling", "final_layernorm"}
    if not name.startswith("decoder_"):  # the decoder of pre-training, and its loss, tell nothing of the encoder
        free |= {key for key in known if key.startswith("decoder_") or key in ("mask_ratio", "norm_pix_loss")}
    configs = (config_class.from_variant(variant) for variant in config_class.VARIANTS)
    fixed = {key: value for key, value in known.items() if key not in free}
    return [config for config in configs if all(same(config, key, value) for key, value in fixed.items())]


def _published_values(config_class: type[VitfConfig], known: Mapping[str, Any], name: str) -> set:
    """Collects the values that a field has in the published variants that agree with `known`."""
    values = (getattr(config, name) for config in published_like(config_class, known, name))
    return {tuple(value) if isinstance(value, list) else value for value in values}


def as_lists(value: Any) -> Any:
    """Tuples as lists, at any depth: a JSON file has no tuples, and they would compare unequal."""
    return [as_lists(each) for each in value] if isinstance(value, list | tuple) else value


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

    def reads(self, model_type: str) -> bool:
        """Whether it is for folders of transformers with that `model_type`."""
        if self.layout.model_types:
            return model_type in self.layout.model_types
        return self.name.startswith("transformers") and model_type == self.architecture.name


def _strip(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Key without the prefix of the base model, to the key in the file."""
    return {key.removeprefix(prefix): key for key in keys}


def _candidates(architecture: Architecture | None, model_type: str | None = None) -> list[_Candidate]:
    architectures = [architecture] if architecture else ARCHITECTURES.values()
    found = [_Candidate(a, name, layout) for a in architectures for name, layout in a.conversion.LAYOUTS.items()]
    return [each for each in found if model_type is None or each.reads(model_type)]


def recognize(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture | None,
    layout: str | None,
    model_type: str | None = None,
) -> list[_Candidate]:
    """
    The architectures and layouts that fit the keys of a checkpoint, the best first: more required patterns before
    fewer, the authors' own layout before that of another library, then the order of the registry. With a `model_type`
    of transformers, only those layouts that are for it.

    Raises:
        ConversionError: if none fits; the nearest is named, with what speaks against it.
    """
    candidates = [c for c in _candidates(architecture, model_type) if layout is None or c.name == layout]
    if layout == "timm":  # there may be several
        candidates = [c for c in _candidates(architecture) if c.name == layout or c.name.startswith(layout + "_")]
        candidates = candidates or [c for c in _candidates(architecture) if c.layout.native_config is not None]
    if not candidates:
        known = sorted({c.name for c in _candidates(architecture)})
        raise ConversionError(unknown_name_message("layout", str(layout), known))
    faults = {c: c.faults(state_dict) for c in candidates}
    fitting = [c for c in candidates if not faults[c]]
    if not fitting:
        flax = any("/" in key for key in state_dict)
        alike = [c for c in candidates if flax == any("/" in p for p in c.layout.requires)] or candidates
        nearest = min(alike, key=lambda c: len(faults[c]) / len(c.layout.requires))
        reasons = "; ".join(faults[nearest][:3])
        raise ConversionError(f"checkpoint not recognised; the nearest is {nearest}, but {reasons}")
    return sorted(fitting, key=lambda c: (-len(c.layout.requires), not c.name.startswith("original")))


# ---------------------------------------------------------------------------------------------------------------------
# Both directions


@dataclass
class ConversionReport:
    """
    What was converted. The command `convert` keeps what a model card says of it in `conversion.json`, next to the
    weights.

    Args:
        architecture, layout, head: What the checkpoint was recognised as.
        source: File, folder or Hub id; `""` for a state dict in memory. sha256: Digest of the file.
        wrapper: Keys under which the file nested its state dict. key_prefix: What every key began with.
        num_tensors: In the checkpoint. num_parameters: Of the model.
        checkpoint: Its name among the published checkpoints, if it is one of them.
        notes: What a reader should know, one sentence each.
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
    # The nearest class, so that what a damaged file lacks is named; of equal ones the larger, the head being the
    # damaged.
    skeleton = min(models, key=lambda model: (len(_model_tensors(model).keys() ^ produced), -len(model.state_dict())))
    expected = _model_tensors(skeleton)

    written_back = {key: None for step in make_plan(expected, [rule.inverse for rule in rules]) for key in step.targets}
    if missing := [key for key in written_back if key not in named]:
        raise ConversionError(f"{first_three(missing)} missing from the checkpoint", missing[0])
    foreign = [(step.sources[0], target) for step in plan for target in step.targets if target not in expected]
    if foreign:
        keys = list(dict.fromkeys(source for source, _ in foreign))
        raise ConversionError(
            f"{first_three(keys)} of no use to {type(skeleton).__name__} with this configuration, which does not have "
            f"{foreign[0][1]!r}",
            keys[0],
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
    variant: str | None = None,
    wrapper: str | None = None,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, ConversionReport]:
    """
    A model of this library from a checkpoint of the original code, timm or transformers.

    Args:
        checkpoint: A file (`.npz`, `.pth`, `.pt`, `.bin`, `.safetensors`), a folder, a Hub id (`"owner/name"` or
            `"owner/name:file"`), or a state dict of tensors or arrays.
        architecture: Name in the registry; recognised from the keys, the file's name or its config.json by default.
        original_kwargs: Keyword arguments of the original constructor. A config.json next to the weights gives them
            too.
        layout: Name in the script's `LAYOUTS`; recognised from the keys by default.
        variant: A published variant, or a name of timm's, that the checkpoint is: gives every field. What each source
            does in its own way (its activation, how it resizes positions) stays that of the layout.
        wrapper, prefix: Which part of a file that holds several models, as [`read_checkpoint`] takes them.
        allow_nonfinite: Convert weights that are NaN or infinite, too.
        config_overrides: Fields of the configuration, above all those that neither shapes nor arguments tell.

    Returns:
        The model, in evaluation mode and with the dtype of the checkpoint, and the report.

    Raises:
        ConversionError: for a file that cannot be read, for anything in it that is not accounted for, and for weights
            that are not finite.
    """
    if isinstance(checkpoint, CheckpointFile):
        file = checkpoint
    elif isinstance(checkpoint, Mapping):
        file = unwrap(checkpoint, wrapper)
        file = file if prefix is None else file.within(prefix)
    else:
        file = read_checkpoint(checkpoint, wrapper, prefix)
    model_type = None if architecture or variant else native_model_type(file.metadata)
    if model_type is not None:
        refusal = refused_class(file.metadata) if _candidates(None, model_type) else "not in this library"
        if refusal is not None:
            raise ConversionError(f"this is {native_name(file.metadata)}; {refusal}")
    named = _named_by_timm(file, architecture, variant)
    if architecture or variant:
        chosen = _named_architecture(architecture) if architecture else _variant_architecture(variant, named)
    elif named:
        chosen = named.architecture
    else:
        chosen = None if model_type else _hinted_architecture(file)
    if named and named.architecture is not chosen:
        named = None
    file, (first, *others) = _recognize_within(file, chosen, layout or ("timm" if named else None), model_type)
    file, dropped = _without_dropped(file, first.layout)
    kwargs = with_defaults(file.kwargs) if original_kwargs is None else original_kwargs
    if named and original_kwargs is None:
        kwargs, config_overrides = named.arguments, {**named.fields, **config_overrides}
    elif variant:
        config_overrides = {**_variant_fields(first, variant), **config_overrides}
    source, fields, notes = first.layout.source or first.architecture.conversion.SOURCE, {}, []
    if file.is_timm or first.name == "timm" or source.repository == TIMM_REPOSITORY:
        kwargs, fields, notes = split_timm_dropout(kwargs or {})
    if not allow_nonfinite:
        _check_finite(file.state_dict)
    state_dict, precision = _one_precision(file.state_dict)
    try:
        config = first.layout.config(
            kwargs, _without_prefix(state_dict, first.layout.prefix), **{**fields, **config_overrides}
        )
        model = convert_state_dict(state_dict, first.architecture, first.layout, config)
    except ConversionError as error:
        raise ConversionError(f"read as {first}: {error}", error.key) from error
    if type(config).model_type != first.architecture.model_type:
        raise ConversionError(
            f"the configuration is of {config.model_type}, the checkpoint of {first.architecture.name}"
        )
    if file.is_timm and has_head(model) and "id2label" not in config_overrides:
        labels, said = timm_labels(file.metadata, model.config.num_labels)
        notes += said
        if labels is not None:
            model.config.id2label, model.config.label2id = labels, {name: i for i, name in labels.items()}
    if not (layout or variant or kwargs):
        _check_namesake(file, first)
    notes += [first.layout.note] if first.layout.note else []
    if not (variant or kwargs):
        notes += _assumptions(model, config_overrides)
    also = [] if model_type else [str(other) for other in others if other.architecture is not first.architecture]
    if also:
        notes.append(f"read as {first}; its keys also fit {' and '.join(also)}; --architecture decides")
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
        checkpoint=find_published(first.architecture, file.source, model),
        notes=[*file.notes, *dropped, *notes, *precision],
    )
    return model, report


def _check_namesake(file: CheckpointFile, candidate: _Candidate) -> None:
    """
    Raises ConversionError where the keys are those of another family's too, and no name tells of which the file is.
    """
    layout = candidate.layout
    if not layout.same_keys or re.search(layout.names, file.variant_hint):
        return
    if (family := family_of(file.variant_hint)) is not None:
        raise ConversionError(f"this is {family} (by its name, {file.variant_hint}); not in this library")
    raise ConversionError(
        f"two readings fit: {candidate}, and {layout.same_keys}, which is not in this library; if it is the former, "
        f"--layout {candidate.name} says so"
    )


def _assumptions(model: PreTrainedModel, told: Mapping[str, Any]) -> list[str]:
    """
    What is taken of bare weights that is not in them, a sentence each: that the image of a table of positions is
    square, and that no layer is missing at the end. Nothing is said of a model with the sizes of a published one.
    """
    config, notes = model.config, []
    variants = [type(config).from_variant(name) for name in type(config).VARIANTS]
    widths = dict.fromkeys(config.stage_channels)  # of a plain ViT each layer is a stage
    alike = [each for each in variants if dict.fromkeys(each.stage_channels) == widths]
    height, width = pair(config.image_size)
    published = any(
        pair(each.image_size) == (height, width) and each.stage_strides[-1] == config.stage_strides[-1]
        for each in alike
    )
    if (
        height == width
        and "image_size" not in told
        and not published
        and any("position_embeddings" in key for key in model.state_dict())
    ):
        notes.append(
            f"took the image to be square, {height} x {width} pixels, by its number of positions; --set "
            f"image_size=[HEIGHT,WIDTH] says otherwise"
        )
    names = [name for name in vars(config) if _DEPTH.fullmatch(name)]
    depths = {_total([getattr(each, name) for name in names]) for each in alike}
    own = _total([getattr(config, name) for name in names])
    if depths and own not in depths and not told.keys() & set(names):
        notes.append(
            f"the file holds {own} layers, and published models of its width "
            f"have {' or '.join(map(str, sorted(depths)))}: if it "
            f"was cut, layers are missing at its end, which nothing in it tells"
        )
    return notes


def _without_dropped(file: CheckpointFile, layout: Layout) -> tuple[CheckpointFile, list[str]]:
    """The file without the tensors that have no place here, left out or merged, and a note for each kind of them."""
    kept, notes = dict(file.state_dict), []
    folded = layout.folds(_without_prefix(kept, layout.prefix)) if layout.folds else None
    if folded is not None:
        state_dict, note = folded
        kept = {layout.prefix + key: tensor for key, tensor in state_dict.items()}
        notes.append(note)
    for start, what in layout.drops.items():
        gone = [key for key in kept if key.removeprefix(layout.prefix).startswith(start)]
        if gone:
            notes.append(f"left out {what} ({len(gone)} tensors: {gone[0]}{', ...' if len(gone) > 1 else ''})")
        kept = {key: tensor for key, tensor in kept.items() if key not in gone}
    return replace(file, state_dict=kept), notes


def _recognize_within(
    file: CheckpointFile, architecture: Architecture | None, layout: str | None, model_type: str | None = None
) -> tuple[CheckpointFile, list[_Candidate]]:
    """
    The file, or the first module in it that is recognised, as what.

    Raises:
        ConversionError: if none is, about the whole file; or if keys do not tell which of two readings is right.
    """
    recognised, first_error = [], None
    for reading in file.readings():
        keys = reading.state_dict
        refusal = None if recognised else refused_vit_pytorch_class(keys) or refused_family(keys)
        if refusal is not None:
            raise ConversionError(refusal)
        try:
            recognised.append((reading, recognize(reading.state_dict, architecture, layout, model_type)))
        except ConversionError as error:
            first_error = first_error or error
    if not recognised:
        raise first_error or ConversionError(
            f"checkpoint not recognised: no key begins with one of {', '.join(MODULE_PREFIXES)}; --prefix tells where "
            f"it is"
        )
    reading, (first, *_) = recognised[0]
    told = architecture is not None or reading.wrapper[-1:] == [first.layout.wrapper]
    if first.layout.shares_keys and not told and len(recognised) > 1:
        other, (second, *_) = recognised[1]
        raise ConversionError(
            f"two readings fit: {first}, and under {other.key_prefix!r} {second}; "
            f"--architecture {first.architecture.name} "
            f"or --prefix {other.key_prefix} decides"
        )
    return recognised[0]


def _one_precision(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """
    Floats of one dtype, the widest that there is, which holds the others exactly: a model has one. And a note where
    there were several.
    """
    counts = Counter(tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point())
    if len(counts) < 2:
        return dict(state_dict), []
    widest = functools.reduce(torch.promote_types, counts)
    names = ", ".join(f"{count} in {str(dtype).removeprefix('torch.')}" for dtype, count in counts.items())
    widened = {key: t.to(widest) if t.is_floating_point() else t for key, t in state_dict.items()}
    return widened, [
        f"the tensors come in several precisions ({names}); all are {str(widest).removeprefix('torch.')} now"
    ]


def _check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Raises ConversionError that names the first tensor with a value that is not finite."""
    bad = [key for key, tensor in state_dict.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        count = int((~state_dict[bad[0]].isfinite()).sum())
        raise ConversionError(
            f"key {bad[0]!r} holds {count} values that are NaN or infinite"
            + (f", and so do {len(bad) - 1} more" if len(bad) > 1 else "")
            + ": the training diverged, or the file is damaged; --allow-nonfinite converts it all the same",
            bad[0],
        )


def _without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}


def _named_by_timm(file: CheckpointFile, architecture: str | None, variant: str | None) -> TimmModel | None:
    """Reads which timm model the checkpoint is: from timm's config.json, or from a `variant` that timm names."""
    metadata = {**file.metadata, "architecture": variant} if variant else file.metadata
    if not (file.is_timm or variant) or not metadata.get("architecture"):
        return None
    try:
        return timm_model(metadata)
    except ConversionError:
        if architecture or variant:  # who names it knows better
            return None
        raise


def _variant_architecture(variant: str, named: TimmModel | None) -> Architecture:
    return named.architecture if named else find_variant(variant)


# How a source does what another does otherwise, whatever its variant.
_OF_SOURCE = ("hidden_act", "layer_norm_eps", "position_interpolation", "initialization", "drop_path_schedule")


def _variant_fields(candidate: _Candidate, variant: str) -> dict[str, Any]:
    """The fields of a published variant that a checkpoint in this layout has; labels are the file's."""
    if variant not in candidate.architecture.config_class.VARIANTS:
        return {}
    fields = own_fields(candidate.architecture.config_class.from_variant(variant))
    left_out = () if candidate.name.startswith("original") else _OF_SOURCE
    return {name: value for name, value in fields.items() if name not in left_out}


def _named_architecture(name: str) -> Architecture:
    try:
        return get_architecture(name)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _hinted_architecture(file: CheckpointFile) -> Architecture | None:
    """
    What timm's architecture in the config.json says, or the longest variant name that the file's name begins with.
    """
    variants = [v for a in ARCHITECTURES.values() for v in a.config_class.VARIANTS if file.variant_hint.startswith(v)]
    return find_variant(max(variants, key=len)) if variants else None


def find_published(architecture: Architecture, source: str, model: PreTrainedModel) -> str | None:
    """
    The one published checkpoint whose file has the name of `source` and whose variant has this model's sizes, and of a
    classifier as many labels.
    """
    classifies = type(model).__name__.endswith("Classification")
    name = source.replace(":", "/").rsplit("/", 1)[-1]
    found = []
    for key, published in published_checkpoints(architecture.name).items():
        variant = architecture.config_class.from_variant(key.split(".")[0])
        sizes = [
            (pair(each.image_size), each.stage_strides, each.stage_channels, classifies and each.num_labels)
            for each in (variant, model.config)
        ]
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
        if each.unwritable(config) is None:
            return name, each
    raise ConversionError(f"layout {layout!r} cannot hold this model: {next(iter(named.values())).unwritable(config)}")


def original_source(architecture: Architecture, config: VitfConfig) -> Source:
    """Finds the original code of a model with this configuration."""
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
        has_prefix = has_head(model) and any(find_indices(each, step.targets) for each in chosen.head_keys_in_base)
        for key in step.targets:
            result[chosen.prefix + key if in_base or has_prefix else key] = tensors[key]
    added = chosen.adds(model.config) if chosen.adds else {}
    start, dtype = chosen.prefix if has_head(model) else "", next(iter(tensors.values())).dtype
    return result | {start + key: tensor.to(dtype) for key, tensor in added.items()}


def has_head(model: PreTrainedModel) -> bool:
    """Whether it is more than the encoder."""
    return model.base_model is not model
