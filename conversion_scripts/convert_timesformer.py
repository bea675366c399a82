"""TimeSformer: the original .pyth files, and transformers' own TimeSformer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TimesformerConfig

from ..conversion.convert import Layout, Source, fields_from_kwargs, has_head, ignored, make_config, shape_of
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_timesformer import VitfTimesformerConfig
from ..modeling.configuration_vitf import pair
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_rules, timm_shapes
from .transformers_names import transformers_fields, transformers_native_fields

SOURCE = Source(
    "facebookresearch/TimeSformer",
    "a5ef29a7b7264baff199a30b3306ac27de901133",
    "timesformer/models/vit.py",
    "cc-by-nc-4.0",
)

# The class that the files are of keeps the transformer in its attribute `model`.
_INSIDE = "model."


def rules(config: VitfTimesformerConfig) -> list[Rule]:
    """The table of the published `.pyth` files: timm's names for what ViT has, and the layers over time."""
    table = timm_rules()
    if config.attention_type != "space_only":
        table.append(Rule("time_embed", "embeddings.time_embeddings.weight"))
    if config.attention_type == "divided_space_time":
        source, target = "blocks.{i}.", "layers.{i}."
        table += [
            Rule(source + "temporal_norm1.*", target + "temporal_layernorm.*"),
            Rule(source + "temporal_attn.qkv.*", target + "temporal_attention.qkv.*"),
            Rule(source + "temporal_attn.proj.*", target + "temporal_attention.proj.*"),
            Rule(source + "temporal_fc.*", target + "temporal_dense.*"),
        ]
    return [Rule(tuple(_INSIDE + key for key in rule.sources), rule.targets, *rule.operations) for rule in table]


def _attention(state_dict: Mapping[str, Tensor], time_table: str, temporal_norm: str) -> dict[str, Any]:
    """Reads the kind of attention from the keys, and the number of frames from the table `time_table`."""
    if time_table not in state_dict:
        return {"attention_type": "space_only"}
    divided = temporal_norm in state_dict
    return {
        "attention_type": "divided_space_time" if divided else "joint_space_time",
        "num_frames": shape_of(time_table, state_dict, 3)[1],
    }


_KWARGS = {
    **TIMM_KWARGS,
    "num_frames": "num_frames",
    "attention_type": "attention_type",
    "norm_eps": "layer_norm_eps",
    "dropout": ignored,  # of the constructor, which hands it to nothing
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfTimesformerConfig:
    """
    The configuration of a TimeSformer checkpoint. The number of heads comes from `kwargs`, or from the published
    variants with the same shapes.

    Args:
        kwargs: Keyword arguments of `VisionTransformer` of timesformer/models/vit.py; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    inside = {key.removeprefix(_INSIDE): tensor for key, tensor in state_dict.items()}
    known = {**timm_shapes(inside, (1,)), **_attention(inside, "time_embed", "blocks.0.temporal_norm1.weight")}
    given = fields_from_kwargs(kwargs, _KWARGS, TIMM_FIXED)
    ask_for = {name: _INSIDE + key for name, key in TIMM_OPEN.items()}
    return make_config(VitfTimesformerConfig, known, given, ask_for=ask_for, **overrides)


def _transformers_rules(config: VitfTimesformerConfig) -> list[Rule]:
    source, target = "encoder.layer.{i}.", "layers.{i}."
    table = [
        Rule("embeddings.cls_token", "embeddings.cls_token"),
        Rule("embeddings.position_embeddings", "embeddings.position_embeddings.weight"),
        Rule("embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
        Rule(source + "layernorm_before.*", target + "layernorm_before.*"),
        Rule(source + "attention.attention.qkv.*", target + "attention.qkv.*"),
        Rule(source + "attention.output.dense.*", target + "attention.proj.*"),
        Rule(source + "layernorm_after.*", target + "layernorm_after.*"),
        Rule(source + "intermediate.dense.*", target + "mlp.fc1.*"),
        Rule(source + "output.dense.*", target + "mlp.fc2.*"),
        Rule("layernorm.*", "layernorm.*"),
        Rule("classifier.*", "classifier.*"),
    ]
    if config.attention_type != "space_only":
        table.append(Rule("embeddings.time_embeddings", "embeddings.time_embeddings.weight"))
    if config.attention_type == "divided_space_time":
        table += [
            Rule(source + "temporal_layernorm.*", target + "temporal_layernorm.*"),
            Rule(source + "temporal_attention.attention.qkv.*", target + "temporal_attention.qkv.*"),
            Rule(source + "temporal_attention.output.dense.*", target + "temporal_attention.proj.*"),
            Rule(source + "temporal_dense.*", target + "temporal_dense.*"),
        ]
    return table


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfTimesformerConfig:
    """The configuration of transformers' own TimeSformer; `kwargs` is its config.json."""
    known = {
        **transformers_fields(kwargs, state_dict, "classifier"),
        **_attention(state_dict, "embeddings.time_embeddings", "encoder.layer.0.temporal_layernorm.weight"),
        "drop_path_rate": kwargs.get("drop_path_rate", 0),
    }
    return make_config(VitfTimesformerConfig, known, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if len({*pair(config.image_size)}) > 1 or len({*pair(config.patch_size)}) > 1:
        raise ConversionError("transformers' TimeSformer takes square images and patches only")
    if config.attention_type == "space_only":
        raise ConversionError("transformers' space-only TimeSformer gives logits for each frame, not for the clip")
    # Its drop_path_rate is a whole number: it stays 0.
    return TimesformerConfig(
        **transformers_native_fields(config),
        num_frames=config.num_frames,
        attention_type=config.attention_type,
        architectures=["TimesformerForVideoClassification" if has_head(model) else "TimesformerModel"],
    ).to_diff_dict()


_ORIGINAL = {
    "rules": rules,
    "config": config_from_original,
    "suffix": ".pyth",
    "wrapper": "model_state",
}
_NATIVE = {
    "rules": _transformers_rules,
    "config": transformers_config,
    "prefix": "timesformer.",
    "native_config": _transformers_native,
}
_NATIVE_REQUIRED = (
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.{i}.attention.attention.qkv.weight",
)
_REQUIRED = ("model.patch_embed.proj.weight", "model.blocks.{i}.attn.qkv.weight", "model.pos_embed")
# Other video models are stored the same way.
_OTHERS = ("model.temporal_encoder.*", "model.blocks.{i}.attn.pool_q.weight")

LAYOUTS = {
    "original": Layout(
        requires=(*_REQUIRED, "model.time_embed"),
        forbids=_OTHERS,
        holds={"attention_type": ("divided_space_time", "joint_space_time")},
        **_ORIGINAL,
    ),
    "original_space_only": Layout(
        requires=_REQUIRED,
        forbids=(*_OTHERS, "model.time_embed"),
        holds={"attention_type": ("space_only",)},
        shares_keys=True,
        **_ORIGINAL,
    ),
    "transformers": Layout(
        requires=(*_NATIVE_REQUIRED, "embeddings.time_embeddings"),
        holds={"attention_type": ("divided_space_time", "joint_space_time")},
        **_NATIVE,
    ),
    "transformers_space_only": Layout(
        requires=_NATIVE_REQUIRED,
        forbids=("embeddings.time_embeddings",),
        holds={"attention_type": ("space_only",)},
        note="transformers' space-only TimeSformer gives logits for each frame; this model gives those of the clip, "
        "for which it averages frames before the last norm, as facebookresearch/TimeSformer does",
        **_NATIVE,
    ),
}
