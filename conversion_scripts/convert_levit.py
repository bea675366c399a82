"""
LeViT: the original .pth files, timm's, and transformers' own, as it writes them today and as they stand on the Hub.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LevitConfig, PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Derived, Rule, Squeeze, find_indices
from ..errors import ConversionError
from ..modeling.configuration_levit import VitfLevitConfig
from ..modeling.configuration_vitf import pair
from ..modeling.modeling_levit import offset_index
from .transformers_names import native_class, transformers_labels

SOURCE = Source("facebookresearch/LeViT", "3772b8e7517b900330ee1f46e11b0ae917dae323", "levit.py", "apache-2.0")

# ---------------------------------------------------------------------------------------------------------------------
# Names


@dataclass(frozen=True)
class _Block:
    """
    A residual block, or an attention layer that shrinks the map: its kind, its prefix in the file and here, its stage.
    """

    kind: str
    source: str
    target: str
    stage: int


@dataclass(frozen=True)
class _Names:
    """
    How a library names what LeViT consists of.

    Args:
        stem: The convolutions, `{n}` from 0.
        layer, norm: A layer and its batch norm. stem_layer: A convolution where it is named otherwise.
        parts: For each kind of block its layers by our names.
        heads: The classifiers. head_layer: Their linear layer.
        blocks: All blocks, from the depths of the stages.
        depths: The depths of the stages, from the keys.
    """

    stem: Callable[[int], str]
    layer: str
    stem_layer: str
    norm: str
    parts: Mapping[str, Mapping[str, str]]
    heads: tuple[str, str]
    head_layer: str
    blocks: Callable[[Sequence[int]], Iterator[_Block]]
    depths: Callable[[Mapping[str, Tensor]], list[int]]


def _our_blocks(depths: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Kind, prefix and stage of every block, in the order of the network."""
    for stage, depth in enumerate(depths):
        if stage:
            yield "shrink", f"stages.{stage}.shrink.attention.", stage
            yield "mlp", f"stages.{stage}.shrink.mlp.", stage
        for layer in range(depth):
            yield "attention", f"stages.{stage}.layers.{layer}.attention.", stage
            yield "mlp", f"stages.{stage}.layers.{layer}.mlp.", stage


def _original_blocks(depths: Sequence[int]) -> Iterator[_Block]:
    """One list over all stages; a residual wraps what has one."""
    for number, (kind, target, stage) in enumerate(_our_blocks(depths)):
        yield _Block(kind, f"blocks.{number}." + ("" if kind == "shrink" else "m."), target, stage)


def _original_depths(state_dict: Mapping[str, Tensor]) -> list[int]:
    places = [values["i"] for values in find_indices("blocks.{i}.kv.c.weight", state_dict)]
    attentions = [values["i"] for values in find_indices("blocks.{i}.m.qkv.c.weight", state_dict)]
    depths = [0] * (len(places) + 1)
    for number in attentions:
        depths[sum(place < number for place in places)] += 1
    return depths


def _timm_blocks(depths: Sequence[int]) -> Iterator[_Block]:
    names = {"shrink.attention.": "downsample.attn_downsample.", "shrink.": "downsample.", "layers.": "blocks."}
    for kind, target, stage in _our_blocks(depths):
        source = target
        for ours, theirs in {**names, ".attention.": ".attn."}.items():
            source = source.replace(ours, theirs)
        yield _Block(kind, source, target, stage)


def _timm_depths(state_dict: Mapping[str, Tensor]) -> list[int]:
    stages = count_indices("stages.{s}.blocks.{i}.attn.qkv.linear.weight", state_dict, "s")
    return [count_indices(f"stages.{s}.blocks.{{i}}.attn.qkv.linear.weight", state_dict) for s in range(stages)]


def _transformers_blocks(depths: Sequence[int]) -> Iterator[_Block]:
    """A stage ends with what shrinks its map; there it begins with it."""
    lengths = [0] * len(depths)
    for kind, target, stage in _our_blocks(depths):
        owner = stage - (".shrink." in target)
        wrapper = "" if kind == "shrink" else "module."
        yield _Block(kind, f"encoder.stages.{owner}.layers.{lengths[owner]}.{wrapper}", target, stage)
        lengths[owner] += 1


def _transformers_depths(state_dict: Mapping[str, Tensor]) -> list[int]:
    key = "encoder.stages.{s}.layers.{j}.module.queries_keys_values.linear.weight"
    found = [values["s"] for values in find_indices(key, state_dict)]
    return [found.count(stage) for stage in range(max(found, default=0) + 1)]


_ORIGINAL = _Names(
    stem=lambda n: f"patch_embed.{2 * n}.",  # activations stand between
    layer="c",
    stem_layer="c",
    norm="bn",
    parts={
        "attention": {"qkv": "qkv.", "proj": "proj.1."},
        "shrink": {"kv": "kv.", "query": "q.1.", "proj": "proj.1."},
        "mlp": {"fc1": "0.", "fc2": "2."},
    },
    heads=("head", "head_dist"),
    head_layer="l",
    blocks=_original_blocks,
    depths=_original_depths,
)
_TIMM = _Names(
    stem=lambda n: f"stem.conv{n + 1}.",
    layer="linear",
    stem_layer="linear",
    norm="bn",
    parts={
        "attention": {"qkv": "qkv.", "proj": "proj.ln."},
        "shrink": {"kv": "kv.", "query": "q.ln.", "proj": "proj.ln."},
        "mlp": {"fc1": "ln1.", "fc2": "ln2."},
    },
    heads=("head", "head_dist"),
    head_layer="linear",
    blocks=_timm_blocks,
    depths=_timm_depths,
)
_TRANSFORMERS = _Names(
    stem=lambda n: f"patch_embeddings.embedding_layer_{n + 1}.",
    layer="linear",
    stem_layer="convolution",
    norm="batch_norm",
    parts={
        "attention": {"qkv": "queries_keys_values.", "proj": "projection."},
        "shrink": {"kv": "keys_values.", "query": "queries.", "proj": "projection."},
        "mlp": {"fc1": "linear_up.", "fc2": "linear_down."},
    },
    heads=("classifier", "classifier_distill"),
    head_layer="linear",
    blocks=_transformers_blocks,
    depths=_transformers_depths,
)

# ---------------------------------------------------------------------------------------------------------------------
# Rules


def _rules(names: _Names, with_indices: bool, convolutions: bool = False) -> Callable[[VitfLevitConfig], list[Rule]]:
    """
    The table of a layout; `with_indices` where the file keeps the table of indices next to the biases, `convolutions`
    where linear layers are stored as convolutions of one cell (timm's levit_conv).
    """

    def rules(config: VitfLevitConfig) -> list[Rule]:
        table, sizes = [], config.feature_map_sizes(*pair(config.image_size))

        def add(source: str, target: str, theirs: str, ours: str) -> None:
            table.append(Rule(f"{source}{theirs}.*", f"{target}{ours}.*"))
            table.append(Rule(f"{source}{names.norm}.*", f"{target}norm.*"))

        for n in range(config.patch_size.bit_length() - 1):
            add(names.stem(n), f"patch_embeddings.convs.{n}.", names.stem_layer, "conv")
        for block in names.blocks(config.depths):
            for ours, theirs in names.parts[block.kind].items():
                source, target = block.source + theirs, f"{block.target}{ours}."
                if convolutions:
                    table.append(Rule(f"{source}{names.layer}.weight", target + "linear.weight", Squeeze()))
                    table.append(Rule(f"{source}{names.norm}.*", target + "norm.*"))
                else:
                    add(source, target, names.layer, "linear")
            if block.kind == "mlp":
                continue
            biases = block.target + "position_bias.weight"
            table.append(Rule(block.source + "attention_biases", biases))
            if with_indices:
                # A layer that shrinks the map sees the one before.
                shrinks = block.kind == "shrink"
                index = offset_index(sizes[block.stage + 1 - shrinks], 1 + shrinks, torch.device("cpu"))
                table.append(Derived(block.source + "attention_bias_idxs", lambda index=index: index, biases))
        for head, target in zip(names.heads, ("classifier.", "distillation_classifier."), strict=True):
            if config.distilled or target == "classifier.":
                add(head + ".", target, names.head_layer, "linear")
        return table

    return rules


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def _shapes(names: _Names, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """All that the shapes tell."""

    def weight(block: _Block, part: str) -> tuple[int, int]:
        return shape_of(f"{block.source}{names.parts[block.kind][part]}{names.layer}.weight", state_dict, 2)

    def biases(block: _Block) -> tuple[int, int]:
        return shape_of(block.source + "attention_biases", state_dict, 2)

    num_convs = next(n for n in range(64) if f"{names.stem(n)}{names.stem_layer}.weight" not in state_dict)
    depths = names.depths(state_dict)
    blocks = list(names.blocks(depths))
    first = {block.stage: block for block in reversed(blocks) if block.kind == "attention"}
    if sorted(first) != list(range(len(depths))):
        raise ConversionError(f"a stage has no attention layer: there are {depths} in the stages")
    attention, mlp = first[0], next(block for block in blocks if block.kind == "mlp")
    num_heads = biases(attention)[0]
    value_dim = weight(attention, "proj")[1] // num_heads
    key_dim = (weight(attention, "qkv")[0] // num_heads - value_dim) // 2
    known = {
        "patch_size": 2**num_convs,
        "num_channels": shape_of(f"{names.stem(0)}{names.stem_layer}.weight", state_dict, 4)[1],
        "hidden_sizes": [weight(first[stage], "qkv")[1] for stage in range(len(depths))],
        "depths": depths,
        "num_heads": [biases(first[stage])[0] for stage in range(len(depths))],
        "key_dim": key_dim,
        "attention_ratio": value_dim / max(key_dim, 1),
        "mlp_ratio": weight(mlp, "fc1")[0] / weight(mlp, "fc1")[1],
        "distilled": f"{names.heads[1]}.{names.head_layer}.weight" in state_dict,
    }
    for shrink in blocks:
        if shrink.kind == "shrink":
            known["shrinking_attention_ratio"] = weight(shrink, "proj")[1] / biases(shrink)[0] / max(key_dim, 1)
    if (size := square_image(biases(attention)[1], 2**num_convs)) is not None:
        known["image_size"] = size[0]
    if (head := f"{names.heads[0]}.{names.head_layer}.weight") in state_dict:
        known["num_labels"] = shape_of(head, state_dict, 2)[0]
    return known


def _one_of_all(field_name: str) -> Callable[[Any], dict[str, Any]]:
    """For an argument with one entry a stage, all of which must be equal here."""

    def read(values: Any) -> dict[str, Any]:
        values = list(values) if isinstance(values, Sequence) else [values]
        if len(set(values)) != 1:
            raise ConversionError(f"{field_name} has one value for all stages here, not {values}", field_name)
        return {field_name: values[0]}

    return read


def _activation(value: Any) -> dict[str, str]:
    """The field that the class of an activation sets: `"torch.nn.Hardswish"`, or timm's name of it."""
    known = {"hardswish": "hardswish", "hard_swish": "hardswish", "silu": "silu"}
    name = str(value).rpartition(".")[2].lower()
    if name not in known:
        raise ConversionError(f"activation {value!r} is not supported, only {sorted(known)}", "activation")
    return {"hidden_act": known[name]}


# Arguments of `LeViT` in levit.py and of timm's `LevitDistilled`.
_KWARGS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": "hidden_sizes",
    "key_dim": _one_of_all("key_dim"),
    "depth": "depths",
    "num_heads": "num_heads",
    "attn_ratio": _one_of_all("attention_ratio"),
    "mlp_ratio": _one_of_all("mlp_ratio"),
    "attention_activation": _activation,
    "mlp_activation": _activation,
    "act_layer": _activation,
    "distillation": "distilled",
    "drop_path": "drop_path_rate",
    "drop_path_rate": "drop_path_rate",
    **dict.fromkeys(("hybrid_backbone", "stem_type"), ignored),  # the weights tell the stem
    "down_ops": ignored,  # and what shrinks the map
}
_FIXED = {"global_pool": ("avg",), "use_conv": (False, True), "down_op": ("subsample",)}


def _config(names: _Names):
    def config_from_original(
        kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
    ) -> VitfLevitConfig:
        """
        The configuration of a LeViT checkpoint: all from its shapes, but for images that are not square.

        Args:
            kwargs: Keyword arguments of `LeViT` in levit.py, or of timm's class; may be empty.
            state_dict: The checkpoint.
            overrides: Fields that replace what arguments and shapes say.
        """
        given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
        ask_for = {"image_size": names.blocks([1]).__next__().source + "attention_biases"}
        return make_config(VitfLevitConfig, _shapes(names, state_dict), given, ask_for=ask_for, **overrides)

    return config_from_original


config_from_original = _config(_ORIGINAL)


def timm_conv_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfLevitConfig:
    """The configuration of timm's levit_conv, whose linear layers are convolutions of one cell."""
    linear = {key: tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor for key, tensor in state_dict.items()}
    return _config(_TIMM)(kwargs, linear, **overrides)


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLevitConfig:
    """The configuration of transformers' own LeViT; `kwargs` is its config.json."""
    given = {
        name: kwargs[name]
        for name in ("image_size", "drop_path_rate", "initializer_range")
        if kwargs.get(name) is not None
    }
    given |= transformers_labels(kwargs, state_dict, "classifier.linear")
    ask_for = {"image_size": "encoder.stages.0.layers.0.module.attention_biases"}
    return make_config(VitfLevitConfig, _shapes(_TRANSFORMERS, state_dict), given, ask_for=ask_for, **overrides)


def _check_native(config: VitfLevitConfig, library: str, **needed: Any) -> None:
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConversionError(f"{library}'s LeViT has {name}={value!r}, not {getattr(config, name)!r}")


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    _check_native(config, "timm", shrinking_attention_ratio=4)
    return {
        # Of the functions that make it, only those of the variants of another width have one classifier.
        "architecture": "levit_128" if config.distilled else "levit_512",
        "model_args": {
            "img_size": one_or_two(config.image_size),
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "embed_dim": config.hidden_sizes,
            "key_dim": config.key_dim,
            "depth": config.depths,
            "num_heads": config.num_heads,
            "attn_ratio": config.attention_ratio,
            "mlp_ratio": config.mlp_ratio,
            "act_layer": {"hardswish": "hard_swish"}.get(config.hidden_act, config.hidden_act),
            "drop_path_rate": config.drop_path_rate,
            **({"stem_type": "s8"} if config.patch_size == 8 else {}),
        },
    }


def _timm_conv_native(model: PreTrainedModel) -> dict[str, Any]:
    native = _timm_native(model)
    return {**native, "architecture": native["architecture"].replace("levit_", "levit_conv_")}


_NATIVE_HEADS = ("Model", "ForImageClassification")


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    _check_native(config, "transformers", shrinking_attention_ratio=4, hidden_act="hardswish")
    if int(config.mlp_ratio) != config.mlp_ratio or int(config.attention_ratio) != config.attention_ratio:
        raise ConversionError("transformers' LeViT has whole numbers as mlp_ratio and attention_ratio")
    stages, with_teacher = len(config.depths), config.distilled and has_head(model)
    return LevitConfig(
        image_size=one_or_two(config.image_size),
        num_channels=config.num_channels,
        hidden_sizes=config.hidden_sizes,
        num_attention_heads=config.num_heads,
        depths=config.depths,
        key_dim=[config.key_dim] * stages,
        mlp_ratio=[int(config.mlp_ratio)] * stages,
        attention_ratio=[int(config.attention_ratio)] * stages,
        id2label=config.id2label,
        label2id=config.label2id,
        architectures=[native_class(model, "Levit", _NATIVE_HEADS) + "WithTeacher" * with_teacher],
    ).to_diff_dict()


# Files hold the unfused form; four convolutions are all that the originals' stem and transformers' know.
_HOLDS = {"fused": (False,)}
_REQUIRES = {
    "original": ("patch_embed.{n}.c.weight", "blocks.{i}.m.qkv.c.weight", "blocks.{i}.m.attention_biases"),
    "timm": ("stem.conv{n}.linear.weight", "stages.{s}.blocks.{i}.attn.qkv.linear.weight"),
    "transformers": (
        "patch_embeddings.embedding_layer_{n}.convolution.weight",
        "encoder.stages.{s}.layers.{j}.module.queries_keys_values.linear.weight",
    ),
}
_WITH_TRANSFORMERS = {
    "config": transformers_config,
    "prefix": "levit.",
    "holds": {**_HOLDS, "patch_size": (16,)},
    "native_config": _transformers_native,
}
LAYOUTS = {
    "original": Layout(
        rules=_rules(_ORIGINAL, with_indices=True),
        config=config_from_original,
        requires=_REQUIRES["original"],
        suffix=".pth",
        wrapper="model",
        holds=_HOLDS,
    ),
    "timm": Layout(
        rules=_rules(_TIMM, with_indices=False),
        config=_config(_TIMM),
        requires=_REQUIRES["timm"],
        ndims={_REQUIRES["timm"][1]: 2},
        holds={**_HOLDS, "patch_size": (8, 16)},
        native_config=_timm_native,
    ),
    "timm_conv": Layout(
        rules=_rules(_TIMM, with_indices=False, convolutions=True),
        config=timm_conv_config,
        requires=_REQUIRES["timm"],
        ndims={_REQUIRES["timm"][1]: 4},
        holds={**_HOLDS, "patch_size": (8, 16)},
        native_config=_timm_conv_native,
    ),
    "transformers": Layout(
        rules=_rules(_TRANSFORMERS, with_indices=False),
        requires=_REQUIRES["transformers"],
        forbids=("encoder.stages.{s}.layers.{j}.attention_bias_idxs",),
        **_WITH_TRANSFORMERS,
    ),
    # Files of transformers 4, as those on the Hub.
    "transformers_4": Layout(
        rules=_rules(_TRANSFORMERS, with_indices=True),
        requires=(*_REQUIRES["transformers"], "encoder.stages.{s}.layers.{j}.attention_bias_idxs"),
        **_WITH_TRANSFORMERS,
    ),
}
