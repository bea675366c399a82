"""TimeSformer: the original .pyth files, and transformers' own TimeSformer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TimesformerConfig

from ..conversion import Layout, Published, Source, fields_from_kwargs, has_head, ignored, make_config, shape_of
from ..errors import ConversionError
from ..modeling.configuration_timesformer import VitfTimesformerConfig
from ..modeling.configuration_vitf import pair
from ..rules import Rule
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
    """What kind of attention the keys tell, and how many frames the table of `time_table` has."""
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
    The configuration of a TimeSformer checkpoint. The number of heads comes from `kwargs`, or from the published variants with
    the same shapes.

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
        Rule("embeddings.time_embeddings", "embeddings.time_embeddings.weight"),
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
    # Its drop_path_rate is a whole number: it stays 0.
    return TimesformerConfig(
        **transformers_native_fields(config),
        num_frames=config.num_frames,
        attention_type=config.attention_type,
        architectures=["TimesformerForVideoClassification" if has_head(model) else "TimesformerModel"],
    ).to_diff_dict()


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("model.patch_embed.proj.weight", "model.blocks.{i}.attn.qkv.weight", "model.pos_embed"),
        # Other video models are stored the same way.
        forbids=("model.temporal_encoder.*", "model.blocks.{i}.attn.pool_q.weight"),
        suffix=".pyth",
        wrapper="model_state",
    ),
    "transformers": Layout(
        rules=_transformers_rules,
        config=transformers_config,
        requires=(
            "embeddings.patch_embeddings.projection.weight",
            "embeddings.time_embeddings",
            "encoder.layer.{i}.attention.attention.qkv.weight",
        ),
        prefix="timesformer.",
        # Its space-only model gives logits for each frame, not for the clip.
        holds={"attention_type": ("divided_space_time", "joint_space_time")},
        native_config=_transformers_native,
    ),
}

_HOST = "https://www.dropbox.com/s"
# Variant, file, top-1 of the README, data. The repository's licence is that of the weights; no other is stated.
_FILES = (
    ("timesformer_base_k400", "g5t24we9gl5yk88/TimeSformer_divST_8x32_224_K400", 77.9, "Kinetics-400"),
    ("timesformer_hr_k400", "6f0x172lpqy3oxt/TimeSformer_divST_16x16_448_K400", 79.6, "Kinetics-400"),
    ("timesformer_large_k400", "r1iuxahif3sgimo/TimeSformer_divST_96x4_224_K400", 80.6, "Kinetics-400"),
    ("timesformer_base_k600", "4h2qt41m2z3aqrb/TimeSformer_divST_8x32_224_K600", 79.1, "Kinetics-600"),
    ("timesformer_hr_k600", "ft1e92g2vhvxecv/TimeSformer_divST_16x16_448_K600", 81.8, "Kinetics-600"),
    ("timesformer_large_k600", "857rx6xeclxfhdg/TimeSformer_divST_96x4_224_K600", 82.2, "Kinetics-600"),
    ("timesformer_base_ssv2", "tybhuml57y24wpm/TimeSformer_divST_8_224_SSv2", 59.1, "Something-Something v2"),
    ("timesformer_hr_ssv2", "9t68uzk8w2fpfnv/TimeSformer_divST_16_448_SSv2", 61.8, "Something-Something v2"),
    ("timesformer_large_ssv2", "3f1rm2al8mhprwa/TimeSformer_divST_64_224_SSv2", 62.0, "Something-Something v2"),
    ("timesformer_8_howto100m", "9v8hcm88b9tc6ff/TimeSformer_divST_8x32_224_HowTo100M", 56.8, "HowTo100M"),
    ("timesformer_32_howto100m", "4roflx4q1gscu85/TimeSformer_divST_32x32_224_HowTo100M", 61.2, "HowTo100M"),
    ("timesformer_64_howto100m", "15bvqltl1j5vyp3/TimeSformer_divST_64x32_224_HowTo100M", 62.2, "HowTo100M"),
    ("timesformer_96_howto100m", "t2mzgahnfhgakma/TimeSformer_divST_96x32_224_HowTo100M", 62.6, "HowTo100M"),
)
CHECKPOINTS: dict[str, Published] = {
    f"{variant}.fb": Published(
        f"{_HOST}/{file}.pyth",
        training=f"ImageNet-21k, then {data} ({top1}% top-1 there, README of facebookresearch/TimeSformer@a5ef29a)",
        license="cc-by-nc-4.0",
        license_source="that of the repository; none is stated for the weights",
        wrapper="model_state",
    )
    for variant, file, top1, data in _FILES
}
