"""PVT: the original .pth files, and transformers' own PVT."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PvtConfig

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Concatenate, Rule
from ..errors import ConversionError
from ..modeling.configuration_pvt import VitfPvtConfig
from ..modeling.configuration_vitf import VitfPyramidConfig, pair
from .transformers_names import native_class, transformers_labels

SOURCE = Source("whai362/PVT", "57e2dfaa5a46f9050d76f306a4fcd9a7c061f520", "classification/pvt.py", "apache-2.0")

# ---------------------------------------------------------------------------------------------------------------------
# What PVT, PVT v2 and Twins have in common


def pyramid_block_rules(block: str, reduces: bool) -> list[Rule]:
    """
    The layers of a pyramid with spatial-reduction attention under the originals' names.

    Args:
        block: Pattern of what precedes the names, with places `{s}` for the stage and `{i}` for the layer.
        reduces: Whether any of them reduces the map.
    """
    layer = "stages.{s}.layers.{i}."
    table = [
        Rule(block + "norm1.*", layer + "layernorm_before.*"),
        Rule(block + "attn.q.*", layer + "attention.query.*"),
        Rule(block + "attn.kv.*", layer + "attention.key_value.*"),
        Rule(block + "attn.proj.*", layer + "attention.proj.*"),
        Rule(block + "norm2.*", layer + "layernorm_after.*"),
        Rule(block + "mlp.fc1.*", layer + "mlp.fc1.*"),
        Rule(block + "mlp.fc2.*", layer + "mlp.fc2.*"),
    ]
    if reduces:
        table += [
            Rule(block + "attn.sr.*", layer + "attention.reduction.conv.*"),
            Rule(block + "attn.norm.*", layer + "attention.reduction.layernorm.*"),
        ]
    return table


def transformers_block_rules(block: str, reduces: bool, names: Mapping[str, str]) -> list[Rule]:
    """
    The layers under transformers' names.

    Args:
        block, reduces: As in [`pyramid_block_rules`].
        names: What precedes query, key and value (`"qkv"`), the names of the last projection and of the reduction.
    """
    layer, attention = "stages.{s}.layers.{i}.", block + names["qkv"]
    table = [
        Rule(block + "layer_norm_1.*", layer + "layernorm_before.*"),
        Rule(attention + "query.*", layer + "attention.query.*"),
        Rule((attention + "key.*", attention + "value.*"), layer + "attention.key_value.*", Concatenate(2)),
        Rule(block + names["proj"] + ".*", layer + "attention.proj.*"),
        Rule(block + "layer_norm_2.*", layer + "layernorm_after.*"),
        Rule(block + "mlp.dense1.*", layer + "mlp.fc1.*"),
        Rule(block + "mlp.dense2.*", layer + "mlp.fc2.*"),
    ]
    if reduces:
        table += [
            Rule(attention + names["reduction"] + ".*", layer + "attention.reduction.conv.*"),
            Rule(attention + "layer_norm.*", layer + "attention.reduction.layernorm.*"),
        ]
    return table


def _names(norm: str, fc1: str, fc2: str) -> dict[str, Any]:
    """
    The names of a layer that matter to shapes: what it has for sure, and key to dimension of C and of D, the inner
    width.
    """
    return {
        "norm": norm + ".weight",
        "width": {norm + ".weight": 0, norm + ".bias": 0, fc2 + ".bias": 0},
        "inner": {fc1 + ".weight": 0, fc1 + ".bias": 0, fc2 + ".weight": 1},
    }


# The originals', and transformers'.
ORIGINAL_NAMES = _names("norm1", "mlp.fc1", "mlp.fc2")
TRANSFORMERS_NAMES = _names("layer_norm_1", "mlp.dense1", "mlp.dense2")


def pyramid_shapes(
    state_dict: Mapping[str, Tensor],
    embeddings: Sequence[str],
    blocks: Sequence[str],
    reduction: str,
    names: Mapping[str, Any] = ORIGINAL_NAMES,
) -> dict[str, Any]:
    """
    The fields that shapes tell of a pyramid with spatial-reduction attention.

    Args:
        embeddings: The convolution that makes the tokens of each stage.
        blocks: What precedes the names of the layers of each stage, with a place `{i}` for the layer.
        reduction: Name of the convolution of a layer that reduces the map.
        names: As `ORIGINAL_NAMES`.
    """
    _, channels, *_ = shape_of(embeddings[0] + ".weight", state_dict, 4)
    fields = {name: [] for name in ("hidden_sizes", "depths", "mlp_ratios", "sr_ratios")}
    for embedding, block in zip(embeddings, blocks, strict=True):
        first = block.format(i=0)
        widths, inners = ({first + key: dim for key, dim in names[name].items()} for name in ("width", "inner"))
        width = common_size({embedding + ".weight": 0, embedding + ".bias": 0, **widths}, state_dict)
        inner = common_size(inners, state_dict)
        depth = count_indices(block + names["norm"], state_dict)
        kernels = (f"{block.format(i=i)}{reduction}.weight" for i in range(depth))
        ratios = {shape_of(kernel, state_dict, 4)[2] for kernel in kernels if kernel in state_dict}
        fields["hidden_sizes"].append(width)
        fields["depths"].append(depth)
        fields["mlp_ratios"].append(inner / width)
        fields["sr_ratios"].append(max(ratios, default=1))
    return {**fields, "num_channels": channels}


def num_labels(head: str, state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of labels, where there is a head."""
    if f"{head}.weight" not in state_dict:
        return {}
    return {"num_labels": common_size({f"{head}.weight": 0, f"{head}.bias": 0}, state_dict)}


# Arguments that the original constructors have in common.
PYRAMID_KWARGS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dims": "hidden_sizes",
    "num_heads": "num_heads",
    "mlp_ratios": "mlp_ratios",
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "depths": "depths",
    "sr_ratios": "sr_ratios",
    "num_stages": ignored,  # the weights tell it
}
PYRAMID_FIXED = {"qk_scale": (None,)}

# Fields that mean the same in transformers' configurations, under their names; the weights tell the others.
_TRANSFORMERS_FIELDS = {
    "num_attention_heads": "num_heads",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "initializer_range": "initializer_range",
}


def transformers_pyramid_fields(metadata: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields from transformers' own config.json, which has one epsilon for all norms."""
    eps = metadata.get("layer_norm_eps", 1e-6)
    return {
        **{ours: metadata[theirs] for theirs, ours in _TRANSFORMERS_FIELDS.items() if theirs in metadata},
        "layer_norm_eps": eps,
        "conv_norm_eps": eps,
        **transformers_labels(metadata, state_dict, "classifier"),
    }


def transformers_pyramid_native(config: VitfPyramidConfig, library: str) -> dict[str, Any]:
    """The fields that transformers' configurations of PVT and PVT v2 share. ConversionError for two epsilons."""
    if config.layer_norm_eps != config.conv_norm_eps:
        raise ConversionError(
            f"{library} has one epsilon for all norms, this model layer_norm_eps={config.layer_norm_eps} and "
            f"conv_norm_eps={config.conv_norm_eps}; convert with --set to make them one"
        )
    if any(ratio != int(ratio) for ratio in config.mlp_ratios):
        raise ConversionError(f"{library} has whole numbers as mlp_ratios, not {config.mlp_ratios}")
    return {
        **{theirs: getattr(config, ours) for theirs, ours in _TRANSFORMERS_FIELDS.items()},
        "image_size": one_or_two(config.image_size),
        "num_channels": config.num_channels,
        "num_encoder_blocks": len(config.depths),
        "depths": config.depths,
        "hidden_sizes": config.hidden_sizes,
        "strides": [config.stage_strides[0][0], *(2 for _ in config.depths[1:])],
        "mlp_ratios": [int(ratio) for ratio in config.mlp_ratios],
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.layer_norm_eps,
        "id2label": config.id2label,
        "label2id": config.label2id,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The original


def rules(config: VitfPvtConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    later, last = "stages.{s+1}.embeddings.", len(config.depths) - 1
    return [
        Rule("patch_embed1.proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule("patch_embed1.norm.*", "embeddings.patch_embeddings.layernorm.*"),
        Rule("pos_embed1", "embeddings.position_embeddings.weight"),
        Rule("patch_embed{s+2}.proj.*", later + "patch_embeddings.projection.*"),
        Rule("patch_embed{s+2}.norm.*", later + "patch_embeddings.layernorm.*"),
        Rule("pos_embed{s+2}", later + "position_embeddings.weight"),
        Rule("cls_token", f"stages.{last}.embeddings.cls_token"),
        *pyramid_block_rules("block{s+1}.{i}.", max(config.sr_ratios) > 1),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]


def original_shapes(state_dict: Mapping[str, Tensor], names: Mapping[str, Any] = ORIGINAL_NAMES) -> dict[str, Any]:
    """The fields that shapes tell under the original's names; those of its layers are `names`, as `ORIGINAL_NAMES`."""
    stages = range(1, count_indices("patch_embed{s+1}.proj.weight", state_dict, "s") + 1)
    known = {
        **pyramid_shapes(
            state_dict,
            [f"patch_embed{stage}.proj" for stage in stages],
            [f"block{stage}.{{i}}." for stage in stages],
            "attn.sr",
            names,
        ),
        "patch_size": one_or_two(shape_of("patch_embed1.proj.weight", state_dict, 4)[2:]),
        "qkv_bias": "block1.0.attn.q.bias" in state_dict,
        **num_labels("head", state_dict),
    }
    if image := square_image(shape_of("pos_embed1", state_dict, 3)[1], known["patch_size"]):
        known["image_size"] = image
    return known


# Field that shapes may leave open, to the key that does.
OPEN = {"image_size": "pos_embed1", "num_heads": "block1.0.attn.q.weight"}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfPvtConfig:
    """
    The configuration of a PVT checkpoint. Numbers of heads come from `kwargs`, or from the published variant with the
    same shapes; the image size from the first stage's positions, if they are square.

    Args:
        kwargs: Keyword arguments of `PyramidVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    given = fields_from_kwargs(kwargs, PYRAMID_KWARGS, PYRAMID_FIXED)
    return make_config(VitfPvtConfig, original_shapes(state_dict), given, ask_for=OPEN, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own

_BLOCK = "encoder.block.{s}.{i}."


def transformers_rules(config: VitfPvtConfig) -> list[Rule]:
    """The table of transformers' PvtModel."""
    first, later, last = "encoder.patch_embeddings.0.", "encoder.patch_embeddings.{s+1}.", len(config.depths) - 1
    target = "stages.{s+1}.embeddings."
    names = {"qkv": "attention.self.", "proj": "attention.output.dense", "reduction": "sequence_reduction"}
    return [
        Rule(first + "projection.*", "embeddings.patch_embeddings.projection.*"),
        Rule(first + "layer_norm.*", "embeddings.patch_embeddings.layernorm.*"),
        Rule(first + "position_embeddings", "embeddings.position_embeddings.weight"),
        Rule(later + "projection.*", target + "patch_embeddings.projection.*"),
        Rule(later + "layer_norm.*", target + "patch_embeddings.layernorm.*"),
        Rule(later + "position_embeddings", target + "position_embeddings.weight"),
        Rule(f"encoder.patch_embeddings.{last}.cls_token", f"stages.{last}.embeddings.cls_token"),
        *transformers_block_rules(_BLOCK, max(config.sr_ratios) > 1, names),
        Rule("encoder.layer_norm.*", "layernorm.*"),
        Rule("classifier.*", "classifier.*"),
    ]


def _check_strides(metadata: Mapping[str, Any], strides: list[int]) -> None:
    """ConversionError where transformers' config.json says other kernels or strides than a PVT of this library has."""
    for name in ("patch_sizes", "strides"):
        if name in metadata and list(metadata[name]) != strides:
            raise ConversionError(f"config.json: {name}={metadata[name]} is not supported, only {strides}", name)


def transformers_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfPvtConfig:
    """The configuration of transformers' own PVT; `kwargs` is its config.json."""
    embedding = "encoder.patch_embeddings.{s}.projection"
    stages = range(count_indices(embedding + ".weight", state_dict, "s"))
    known = {
        **pyramid_shapes(
            state_dict,
            [embedding.format(s=stage) for stage in stages],
            [f"encoder.block.{stage}.{{i}}." for stage in stages],
            "attention.self.sequence_reduction",
            TRANSFORMERS_NAMES,
        ),
        "patch_size": one_or_two(shape_of(embedding.format(s=0) + ".weight", state_dict, 4)[2:]),
        "qkv_bias": "encoder.block.0.0.attention.self.query.bias" in state_dict,
        **transformers_pyramid_fields(kwargs, state_dict),
    }
    _check_strides(kwargs, [known["patch_size"], *(2 for _ in stages[1:])])
    table = "encoder.patch_embeddings.0.position_embeddings"
    if image := square_image(shape_of(table, state_dict, 3)[1], known["patch_size"]):
        known["image_size"] = image
    ask_for = {"image_size": table, "num_heads": "encoder.block.0.0.attention.self.query.weight"}
    return make_config(VitfPvtConfig, known, ask_for=ask_for, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if len(set(pair(config.image_size))) > 1 or len(set(pair(config.patch_size))) > 1:
        raise ConversionError(
            f"transformers' PVT has only square images and patches, not image_size={config.image_size} and "
            f"patch_size={config.patch_size}"
        )
    if pair(config.patch_size)[0] != 4:
        raise ConversionError(f"transformers' PVT has patch_size=4, not {config.patch_size}")
    fields = transformers_pyramid_native(config, "transformers' PVT")
    return PvtConfig(
        **fields,
        patch_sizes=fields["strides"],
        sequence_reduction_ratios=config.sr_ratios,
        num_labels=config.num_labels,  # labels do not tell it their number
        architectures=[native_class(model, "Pvt", ("Model", "ForImageClassification"))],
    ).to_diff_dict()


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("patch_embed{s+1}.proj.weight", "pos_embed{s+1}", "cls_token", "block{s+1}.{i}.attn.kv.weight"),
        forbids=("block{s+1}.{i}.mlp.dwconv.dwconv.weight",),
        suffix=".pth",
    ),
    "transformers": Layout(
        rules=transformers_rules,
        config=transformers_config,
        requires=("encoder.patch_embeddings.{s}.position_embeddings", _BLOCK + "attention.self.query.weight"),
        prefix="pvt.",
        native_config=_transformers_native,
    ),
}
