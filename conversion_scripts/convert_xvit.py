"""X-ViT: the original .pth files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    make_config,
    published_like,
    shape_of,
)
from ..conversion.rules import Reshape, Rule
from ..modeling.configuration_vitf import pair
from ..modeling.configuration_xvit import VitfXvitConfig
from .timm_names import TIMM_KWARGS, TIMM_OPEN, timm_rules, timm_shapes

SOURCE = Source(
    "1adrianb/video-transformers",
    "82ca1766ef0bd0cc765fea9570698391e2d5245c",
    "slowfast/models/video_model_builder.py",
    "apache-2.0",
)

# The encoder, and what pools its class tokens over time.
_BASE, _HEAD = "base_model.", "consensus."


def rules(config: VitfXvitConfig) -> list[Rule]:
    """The table of the published `.pth` files: timm's names for what ViT has."""
    period = config.time_embedding_period or config.num_frames
    table = [
        Rule(tuple(_BASE + key for key in rule.sources), rule.targets, *rule.operations)
        for rule in timm_rules("head.*")
    ]
    width = config.hidden_size
    table.append(
        Rule(
            _BASE + "temp_embed",
            "embeddings.time_embeddings.weight",
            Reshape((1, period, 1, width), (1, period, width)),
        )
    )
    if config.temporal_pooling == "mean":
        return [*table, Rule("new_fc.*", "classifier.*")]
    source, target = _HEAD + "temporal_encoder.{i}.", "temporal_encoder.layers.{i}."
    return [
        *table,
        Rule(_HEAD + "cls_token", "temporal_encoder.cls_token"),
        Rule(source + "norm1.*", target + "layernorm_before.*"),
        Rule(source + "attn.qkv.weight", target + "attention.qkv.weight"),
        Rule(source + "attn.proj.*", target + "attention.proj.*"),
        Rule(source + "norm2.*", target + "layernorm_after.*"),
        Rule(source + "mlp.fc1.*", target + "mlp.fc1.*"),
        Rule(source + "mlp.fc2.*", target + "mlp.fc2.*"),
        Rule(_HEAD + "mlp_head.0.*", "classifier.layernorm.*"),
        Rule(_HEAD + "mlp_head.1.*", "classifier.dense.*"),
        Rule(_HEAD + "mlp_head.4.*", "classifier.out_proj.*"),
        Rule("new_fc.weight", "frame_classifier_weight"),
        Rule("new_fc.bias", "frame_classifier_bias"),
    ]


def _mixing(layers: int) -> dict[str, Any]:
    """Arguments under `XVIT`, for an encoder of so many layers."""

    def mixing_layers(places: list[int]) -> dict[str, Any]:
        chosen = [place for place in range(layers) if place in places]
        return {"mixing_layers": None if len(chosen) == layers else chosen}

    return {
        "SHIFT_DIV": "shift_div",
        "NUM_SEGMENTS": "segment_size",
        "LOCATIONS_LIST": mixing_layers,
        "CONSENSUS_TYPE": lambda kind: {"temporal_pooling": {"vit": "attention", "avg": "mean"}.get(kind, kind)},
        **dict.fromkeys(("BASE_MODEL", "PRETRAIN"), ignored),
    }


# Sections of the original's configuration to what their entries mean. Dropout within the layers over time is none in
# every published one.
_SECTIONS = {
    "XVIT.BACKBONE": {"DROP_PATH_RATE": "drop_path_rate", "DROP_ATTN_RATE": "attention_probs_dropout_prob"},
    "TEMPORAL_HEAD": {
        "NUM_ATTENTION_HEADS": "num_temporal_heads",
        "NUM_HIDDEN_LAYERS": "num_temporal_layers",
        "MLP_DIM": "classifier_hidden_size",
        "HIDDEN_DIM": ignored,  # that of the encoder
    },
    "DATA": {"NUM_FRAMES": "num_frames", **dict.fromkeys(("TRAIN_CROP_SIZE", "TEST_CROP_SIZE"), ignored)},
    "MODEL": {"NUM_CLASSES": "num_labels", "DROPOUT_RATE": "classifier_dropout_prob"},
}
_FIXED = {
    "XVIT": {"BEFORE_SOFTMAX": (True,), "USE_XVIT": (True,)},
    "XVIT.BACKBONE": {"NORM_LAYER": ("LN",)},
    "TEMPORAL_HEAD": {"ATTENTION_PROBS_DROPOUT_PROB": (0.0,), "HIDDEN_DROPOUT_PROB": (0.0,)},
}


def _sections(cfg: Mapping[str, Any], layers: int) -> dict[str, Any]:
    tables = {"XVIT": _mixing(layers), **_SECTIONS}

    def reader(name: str):
        return lambda section: fields_from_kwargs(section, tables[name], _FIXED.get(name))

    return fields_from_kwargs(cfg, {name: reader(name) for name in tables})


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfXvitConfig:
    """
    The configuration of an X-ViT checkpoint. Shapes do not tell the segments, the mixed part and the layers that mix
    (`segment_size`, `shift_div`, `mixing_layers`), nor the frames of a clip: these come from `kwargs`, or from the
    published variants with the same shapes.

    Args:
        kwargs: `backbone`, keyword arguments of `VisionTransformer` in transformers/vit.py; `cfg`, sections of the
            configuration that `XVIT` reads; `pos_embed_grid`, rows and columns of its table of positions. May be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    inside = {key.removeprefix(_BASE): tensor for key, tensor in state_dict.items() if key.startswith(_BASE)}
    known = timm_shapes(inside, (1,))
    layers = known["num_hidden_layers"]
    if _HEAD + "cls_token" in state_dict:
        known |= {
            "num_temporal_layers": count_indices(_HEAD + "temporal_encoder.{i}.norm1.weight", state_dict),
            "classifier_hidden_size": common_size(
                {_HEAD + "mlp_head.1.bias": 0, _HEAD + "mlp_head.1.weight": 0, _HEAD + "mlp_head.4.weight": 1},
                state_dict,
            ),
        }
    else:
        known["temporal_pooling"] = "mean"
    if "new_fc.bias" in state_dict:
        known["num_labels"] = common_size({"new_fc.bias": 0, "new_fc.weight": 0}, state_dict)
    names = {
        "backbone": lambda backbone: fields_from_kwargs(backbone, TIMM_KWARGS),
        "cfg": lambda cfg: _sections(cfg, layers),
        "pos_embed_grid": lambda grid: {
            "image_size": tuple(n * patch for n, patch in zip(grid, pair(known["patch_size"]), strict=True))
        },
    }
    given = fields_from_kwargs(kwargs, names)
    rows = shape_of(_BASE + "temp_embed", state_dict, 4)[1]
    told = {**known, **given, **overrides}
    if "num_frames" not in told:  # as many as the table has rows, or more, for which it begins again
        clips = {each.num_frames for each in published_like(VitfXvitConfig, {**told, "time_embedding_period": rows})}
        if len(clips) == 1:
            told["num_frames"] = known["num_frames"] = clips.pop()
    if rows != told.get("num_frames", rows):
        known["time_embedding_period"] = rows
    open_key = _BASE + TIMM_OPEN["num_attention_heads"]
    ask_for = {
        "image_size": _BASE + "pos_embed",
        "num_frames": _BASE + "temp_embed",
        **dict.fromkeys(("num_attention_heads", "segment_size", "shift_div", "mixing_layers"), open_key),
    }
    if "temporal_pooling" not in known:
        ask_for["num_temporal_heads"] = _HEAD + "temporal_encoder.0.attn.qkv.weight"
    return make_config(VitfXvitConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            _BASE + "patch_embed.proj.weight",
            _BASE + "blocks.{i}.attn.qkv.weight",
            _BASE + "temp_embed",
        ),
        suffix=".pth",
        wrapper="model_state",
    ),
}
