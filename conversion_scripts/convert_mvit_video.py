"""MViT for clips: the files of PySlowFast, and torchvision's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import Layout, fields_from_kwargs, ignored, make_config, shape_of
from ..conversion.rules import Concatenate, Each, Reshape, Rule
from ..modeling.configuration_mvit_video import VitfMvitVideoConfig
from .convert_mvit import REQUIRES, SLOWFAST, layer_parts, layers, original_config, shapes, square_size

SOURCE = SLOWFAST

# ---------------------------------------------------------------------------------------------------------------------
# Rules

# Torchvision's names of the parts of a layer, where they are not the original's.
_TORCHVISION_PARTS = {
    "attn.proj.*": "attn.project.0.*",
    "mlp.fc1.*": "mlp.0.*",
    "mlp.fc2.*": "mlp.3.*",
    "proj.*": "project.*",
    **{f"attn.pool_{pool}.weight": f"attn.pool_{pool}.pool.weight" for pool in "qkv"},
    **{f"attn.norm_{pool}.*": f"attn.pool_{pool}.norm_act.0.*" for pool in "qkv"},
}


def _rules(config: VitfMvitVideoConfig, parts: Mapping[str, str]) -> list[Rule]:
    """The layers and the last norm; `parts` are other names than the original's."""
    return [
        *(
            Rule(f"blocks.{number}.{parts.get(source, source)}", f"stages.{stage}.layers.{index}.{target}")
            for number, (stage, index) in enumerate(layers(config))
            for source, target in layer_parts(config, stage, index).items()
        ),
        Rule("norm.*", "layernorm.*"),
    ]


def _cells(config: VitfMvitVideoConfig) -> int:
    _, rows, columns = config.token_grid
    return rows * columns


def rules(config: VitfMvitVideoConfig) -> list[Rule]:
    """The table of PySlowFast's `.pyth` files."""
    table = [Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*")]
    space = "embeddings.position_embeddings.weight"
    if config.use_cls_token:
        table.append(Rule("cls_token", "embeddings.cls_token"))
    if config.position_embedding_type == "absolute":
        table.append(Rule("pos_embed_temporal", "embeddings.time_embeddings.weight"))
        if config.use_cls_token:
            sources = ("pos_embed_class", "pos_embed_spatial")
            table.append(Rule(sources, space, Concatenate((1, _cells(config)), dim=1)))
        else:
            table.append(Rule("pos_embed_spatial", space))
    return [*table, *_rules(config, {}), Rule("head.projection.*", "classifier.*")]


def torchvision_rules(config: VitfMvitVideoConfig) -> list[Rule]:
    """The table of torchvision's MViT."""
    width, groups, cells = config.hidden_sizes[0], config.token_grid[0], _cells(config)
    row = Reshape((width,), (1, 1, width))
    table = [
        Rule("conv_proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule("pos_encoding.class_token", "embeddings.cls_token", row),
    ]
    if config.position_embedding_type == "absolute":
        time = Reshape((groups, width), (1, groups, width))
        table += [
            Rule("pos_encoding.temporal_pos", "embeddings.time_embeddings.weight", time),
            Rule(
                ("pos_encoding.class_pos", "pos_encoding.spatial_pos"),
                "embeddings.position_embeddings.weight",
                Each(row, Reshape((cells, width), (1, cells, width))),
                Concatenate((1, cells), dim=1),
            ),
        ]
    return [*table, *_rules(config, _TORCHVISION_PARTS), Rule("head.1.*", "classifier.*")]


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def _clip_shapes(state_dict: Mapping[str, Tensor], tables: tuple[str, str], ndim: int) -> dict[str, Any]:
    """
    The fields that shapes tell, by the original's names of keys but for the position `tables` in time and in space,
    which have `ndim` dimensions.
    """
    fields = shapes(state_dict, 5)
    fields["tubelet_size"] = (state_dict["patch_embed.proj.weight"].shape[2] + 1) // 2
    if fields["position_embedding_type"] == "relative":
        groups = (shape_of("blocks.0.attn.rel_pos_t", state_dict, 2)[0] + 1) // 2
    else:
        groups, cells = (shape_of(table, state_dict, ndim)[-2] for table in tables)
        fields |= square_size(cells, fields["patch_size"])
    fields["num_frames"] = groups * fields["tubelet_size"]
    pool = state_dict.get("blocks.0.attn.pool_k.weight")
    if pool is not None:
        fields["pool_kernel_frames"] = pool.shape[2]
    return fields


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfMvitVideoConfig:
    """
    The configuration of a checkpoint of PySlowFast. Strides of keys and values come from `kwargs`, or from the
    published variants with the same shapes.

    Args:
        kwargs: `{"cfg": ...}`, the sections MVIT, MODEL and DATA of its configuration; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    known = _clip_shapes(state_dict, ("pos_embed_temporal", "pos_embed_spatial"), 3)
    names = {"MODEL.DROPOUT_RATE": "classifier_dropout_prob", "DATA.NUM_FRAMES": "num_frames"}
    return original_config(VitfMvitVideoConfig, kwargs, known, names, {}, **overrides)


_TORCHVISION_KWARGS = {
    "dropout": "classifier_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "stochastic_depth_prob": "drop_path_rate",
    "residual_pool": "residual_pooling",
    **dict.fromkeys(("spatial_size", "temporal_size", "num_classes", "rel_pos_embed", "proj_after_attn"), ignored),
}


def torchvision_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfMvitVideoConfig:
    """The configuration of a checkpoint of torchvision's; `kwargs` are those of its MViT."""
    renamed = {}
    parts = {theirs.rstrip("*"): ours.rstrip("*") for ours, theirs in _TORCHVISION_PARTS.items()}
    names = {"conv_proj.": "patch_embed.proj.", "pos_encoding.class_token": "cls_token", "head.1.": "head.projection."}
    for key, tensor in state_dict.items():
        block, number, part = key.split(".", 2) if key.startswith("blocks.") else ("", "", key)
        for theirs, ours in (parts if block else names).items():
            if part.startswith(theirs):
                part = ours + part.removeprefix(theirs)
                break
        renamed[f"{block}.{number}.{part}" if block else part] = tensor
    known = _clip_shapes(renamed, ("pos_encoding.temporal_pos", "pos_encoding.spatial_pos"), 2)
    given = fields_from_kwargs(kwargs, _TORCHVISION_KWARGS, {"residual_with_cls_embed": (False,)})
    ask_for = {
        "image_size": "pos_encoding.spatial_pos",
        **dict.fromkeys(("kv_strides", "residual_pooling"), "blocks.0.attn.pool_k.pool.weight"),
    }
    return make_config(VitfMvitVideoConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=REQUIRES,
        ndims={"patch_embed.proj.weight": 5},
        suffix=".pyth",
        wrapper="model_state",
    ),
    "torchvision": Layout(
        rules=torchvision_rules,
        config=torchvision_config,
        requires=("conv_proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.pool_k.pool.weight"),
        suffix=".pth",
        holds={"use_cls_token": (True,), "final_layernorm": ("tokens",)},
    ),
}
