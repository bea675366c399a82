"""
MViT for images: files of facebookresearch/mvit and of PySlowFast, whose convolutions have a time axis, and timm's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Reshape, Rule
from ..errors import ConversionError
from ..modeling.configuration_mvit import VitfMvitConfig
from ..modeling.configuration_vitf import pair

SOURCE = Source(
    "facebookresearch/mvit", "dfbdfdf60efb36128cb2847950deaa560ceb7bfc", "mvit/models/mvit_model.py", "apache-2.0"
)
SLOWFAST = Source(
    "facebookresearch/SlowFast",
    "287ec0076846560f44a9327e931a5a2360240533",
    "slowfast/models/video_model_builder.py",
    "apache-2.0",
)

# ---------------------------------------------------------------------------------------------------------------------
# Rules

POOLS = {"q": "query_pool", "k": "key_pool", "v": "value_pool"}
AXES = {"t": "time", "h": "height", "w": "width"}


def layers(config: VitfMvitConfig) -> Iterator[tuple[int, int]]:
    """Stage and index in the stage of each layer, in order."""
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            yield stage, index


def layer_parts(config: VitfMvitConfig, stage: int, index: int) -> dict[str, str]:
    """
    The parts of a layer, the original's names to ours. Pools stand as `pool_q` to `query_pool`; each has a kernel and a
    norm.
    """
    is_start = stage > 0 and index == 0
    parts = {
        "norm1.*": "layernorm_before.*",
        "attn.qkv.*": "attention.qkv.*",
        "attn.proj.*": "attention.proj.*",
        "norm2.*": "layernorm_after.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
    }
    pools = "q" if is_start or config.query_pooling == "every_layer" else ""
    pools += "kv" if config.kv_strides[stage] > 1 or config.kv_kernel_sizes[stage] > 1 else ""
    for pool in pools:
        parts[f"attn.pool_{pool}.weight"] = f"attention.{POOLS[pool]}.weight"
        parts[f"attn.norm_{pool}.*"] = f"attention.{POOLS[pool]}.layernorm.*"
    if config.position_embedding_type == "relative":
        for axis in "thw"[-len(config.token_grid) :]:
            parts[f"attn.rel_pos_{axis}"] = f"attention.relative_positions.axes.{AXES[axis]}.weight"
    widths = config.hidden_sizes
    if config.dim_mul_in_att and is_start and widths[stage - 1] != widths[stage]:
        parts["proj.*"] = "attention_shortcut.*"
    is_end = stage + 1 < len(widths) and index == config.depths[stage] - 1
    if not config.dim_mul_in_att and is_end and widths[stage + 1] != widths[stage]:
        parts["proj.*"] = "mlp_shortcut.*"
    return parts


def without_time(config: VitfMvitConfig, stage: int, target: str) -> tuple[Reshape, ...]:
    """The operation that takes the time axis, of length 1, out of the kernel of a pool."""
    if not target.endswith("_pool.weight"):
        return ()
    head_dim = config.hidden_sizes[stage] // config.num_heads[stage]
    side = 3 if "query" in target else config.kv_kernel_sizes[stage]
    return (Reshape((head_dim, 1, 1, side, side), (head_dim, 1, side, side)),)


def _rules(config: VitfMvitConfig, with_time: bool) -> list[Rule]:
    table = [Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*")]
    if config.use_cls_token:
        table.append(Rule("cls_token", "embeddings.cls_token"))
    if config.position_embedding_type == "absolute":
        table.append(Rule("pos_embed", "embeddings.position_embeddings.weight"))
    for number, (stage, index) in enumerate(layers(config)):
        for source, target in layer_parts(config, stage, index).items():
            operations = without_time(config, stage, target) if with_time else ()
            table.append(Rule(f"blocks.{number}.{source}", f"stages.{stage}.layers.{index}.{target}", *operations))
    return [*table, Rule("norm.*", "layernorm.*"), Rule("head.projection.*", "classifier.*")]


def rules(config: VitfMvitConfig) -> list[Rule]:
    """The table of facebookresearch/mvit's `.pyth` files."""
    return _rules(config, with_time=False)


def slowfast_rules(config: VitfMvitConfig) -> list[Rule]:
    """The table of image models that were trained with PySlowFast."""
    return _rules(config, with_time=True)


def timm_rules(config: VitfMvitConfig) -> list[Rule]:
    """The table of timm 1.0's MultiScaleVit."""
    table = [Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*")]
    shortcut = "shortcut_proj_attn.*" if config.dim_mul_in_att else "shortcut_proj_mlp.*"
    for stage, index in layers(config):
        for source, target in layer_parts(config, stage, index).items():
            source = shortcut if source == "proj.*" else source
            table.append(Rule(f"stages.{stage}.blocks.{index}.{source}", f"stages.{stage}.layers.{index}.{target}"))
    if config.use_cls_token:
        table.append(Rule("cls_token", "embeddings.cls_token"))
    return [*table, Rule("norm.*", "layernorm.*"), Rule("head.fc.*", "classifier.*")]


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def shapes(state_dict: Mapping[str, Tensor], ndim: int) -> dict[str, Any]:
    """
    The fields that shapes tell, by the original's names of keys.

    Args:
        ndim: Dimensions of the convolution of patches: 4 for images, 5 for clips.
    """
    depth = count_indices("blocks.{i}.norm1.weight", state_dict)
    widths = []
    for number in range(depth):
        block = f"blocks.{number}."
        keys = {block + key: 0 for key in ("norm2.weight", "norm2.bias", "attn.proj.weight", "attn.proj.bias")}
        widths.append(common_size(keys, state_dict))
    starts = [0, *(number for number in range(1, depth) if widths[number] != widths[number - 1])]
    _, channels, *kernel = shape_of("patch_embed.proj.weight", state_dict, ndim)
    patch_size = tuple((side + 1) // 2 for side in kernel[-2:])
    fields = {
        "num_channels": channels,
        "patch_size": one_or_two(patch_size),
        "hidden_sizes": [widths[start] for start in starts],
        "depths": [end - start for start, end in zip(starts, [*starts[1:], depth], strict=True)],
        "mlp_ratio": common_size({"blocks.0.mlp.fc1.weight": 0, "blocks.0.mlp.fc1.bias": 0}, state_dict) / widths[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        "use_cls_token": "cls_token" in state_dict,
        "position_embedding_type": "relative" if "blocks.0.attn.rel_pos_h" in state_dict else "absolute",
        "query_pooling": "every_layer" if "blocks.0.attn.pool_q.weight" in state_dict else "stage_start",
        "dim_mul_in_att": all(
            shape_of(f"blocks.{start}.norm1.weight", state_dict, 1)[0] != widths[start] for start in starts[1:]
        ),
    }
    kernels = [state_dict.get(f"blocks.{start}.attn.pool_k.weight") for start in starts]
    fields["kv_kernel_sizes"] = [1 if weight is None else weight.shape[-1] for weight in kernels]
    pools = [weight for weight in kernels if weight is not None]
    if pools:  # it has the channels of a head
        fields["num_heads"] = [max(width // pools[0].shape[0], 1) for width in fields["hidden_sizes"]]
    if fields["position_embedding_type"] == "relative":
        axes = [shape_of(f"blocks.0.attn.rel_pos_{axis}", state_dict, 2)[0] for axis in "hw"]
        grid = [(rows + 1) // 2 for rows in axes]
        fields["image_size"] = one_or_two([side * step for side, step in zip(grid, patch_size, strict=True)])
    if "head.projection.weight" in state_dict:
        fields["num_labels"] = common_size({"head.projection.weight": 0, "head.projection.bias": 0}, state_dict)
    return fields


def _kv_strides(cfg: Mapping[str, Any], depths: list[int]) -> dict[str, list[int]]:
    """
    The strides of keys and values of each stage, from the original's lists by layer. ConversionError unless they are of
    one kind: queries are halved where a stage begins, and all layers of a stage have one stride.
    """
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    queries = {number: strides for number, *strides in cfg["POOL_Q_STRIDE"]}
    halved = {number: strides[-2:] for number, strides in queries.items() if set(strides) != {1}}
    if halved != {start: [2, 2] for start in starts[1:]}:
        raise ConversionError(f"original argument POOL_Q_STRIDE={cfg['POOL_Q_STRIDE']} does not halve at {starts[1:]}")
    if adaptive := cfg["POOL_KV_STRIDE_ADAPTIVE"]:
        *time, rows, columns = adaptive
        if rows != columns or set(time) - {1}:
            raise ConversionError(f"original argument POOL_KV_STRIDE_ADAPTIVE={adaptive} is not square in space")
        return {"kv_strides": [max(rows // 2**stage, 1) for stage in range(len(depths))]}
    given = {number: strides for number, *strides in cfg["POOL_KV_STRIDE"] or []}
    result = []
    for start, depth in zip(starts, depths, strict=True):
        strides = {tuple(given.get(number, (1, 1))) for number in range(start, start + depth)}
        (*time, rows, columns), *others = strides
        if others or rows != columns or set(time) - {1}:
            raise ConversionError(f"original argument POOL_KV_STRIDE={cfg['POOL_KV_STRIDE']} differs within a stage")
        result.append(rows)
    return {"kv_strides": result}


def _check_patches(cfg: Mapping[str, Any]) -> None:
    """
    ConversionError where patches have another stride or padding than those by which a patch is twice as large less one
    pixel: shapes tell the kernel only.
    """
    if "PATCH_KERNEL" not in cfg:
        return
    needed = {
        "PATCH_STRIDE": [(side + 1) // 2 for side in cfg["PATCH_KERNEL"]],
        "PATCH_PADDING": [side // 2 for side in cfg["PATCH_KERNEL"]],
    }
    for name, values in needed.items():
        if name in cfg and list(cfg[name]) != values:
            kernel = f"PATCH_KERNEL={cfg['PATCH_KERNEL']}"
            raise ConversionError(
                f"original argument {name}={cfg[name]!r} is not supported with {kernel}, only {values}", name
            )


# Entries of the original's configuration, by section. Shapes tell those that are ignored, or they do not change the
# model.
_TOLD = (
    "PATCH_KERNEL PATCH_2D EMBED_DIM NUM_HEADS MLP_RATIO QKV_BIAS DEPTH DIM_MUL HEAD_MUL CLS_EMBED_ON "
    "SEP_POS_EMBED USE_ABS_POS REL_POS_SPATIAL REL_POS_TEMPORAL DIM_MUL_IN_ATT POOL_KVQ_KERNEL POOL_Q_STRIDE "
    "POOL_KV_STRIDE POOL_KV_STRIDE_ADAPTIVE ZERO_DECAY_POS_CLS REL_POS_ZERO_INIT HEAD_INIT_SCALE LAYER_SCALE_INIT_VALUE"
)
_KWARGS = {
    **{f"MVIT.{name}": ignored for name in _TOLD.split()},
    **dict.fromkeys(("MVIT.PATCH_STRIDE", "MVIT.PATCH_PADDING"), ignored),  # see _check_patches
    "MVIT.DROPPATH_RATE": "drop_path_rate",
    "MVIT.DROPOUT_RATE": "hidden_dropout_prob",
    "MVIT.RESIDUAL_POOLING": "residual_pooling",
    "MVIT.USE_MEAN_POOLING": lambda mean: {"final_layernorm": "pooled" if mean else "tokens"},
    "MODEL.NUM_CLASSES": ignored,
    "MODEL.HEAD_ACT": ignored,  # the softmax that its head has in evaluation
    "DATA.TRAIN_CROP_SIZE": "image_size",
    "DATA.TEST_CROP_SIZE": ignored,
    "DATA.INPUT_CHANNEL_NUM": ignored,
}
_FIXED = {
    "repo": ("mvit", "slowfast"),
    "MVIT.MODE": ("conv",),
    "MVIT.NORM": ("layernorm",),
    **{f"MVIT.{name}": (False,) for name in ("POOL_FIRST", "NORM_STEM", "SEPARATE_QKV", "USE_FIXED_SINCOS_POS")},
}


def original_config(
    config_class: type[VitfMvitConfig],
    kwargs: Mapping[str, Any],
    known: Mapping[str, Any],
    names: Mapping[str, Any],
    fixed: Mapping[str, tuple],
    **overrides: Any,
) -> VitfMvitConfig:
    """
    The configuration from shapes and from the original's configuration.

    Args:
        kwargs: `{"cfg": {"MVIT": {...}, "MODEL": {...}, "DATA": {...}}}`; may be empty. known: Fields that shapes tell.
        names, fixed: Entries that mean something only here; see [`fields_from_kwargs`].
    """
    cfg = kwargs.get("cfg", {})
    entries = {f"{section}.{name}": value for section, values in cfg.items() for name, value in values.items()}
    entries |= {name: value for name, value in kwargs.items() if name != "cfg"}
    given = fields_from_kwargs(entries, {**_KWARGS, **names}, {**_FIXED, **fixed})
    if "MVIT" in cfg:
        _check_patches(cfg["MVIT"])
        given |= _kv_strides(cfg["MVIT"], known["depths"])
    ask_for = {"image_size": "pos_embed", "num_heads": "blocks.0.attn.qkv.weight"}
    ask_for |= dict.fromkeys(("kv_strides", "residual_pooling"), "blocks.0.attn.pool_k.weight")
    return make_config(config_class, known, given, ask_for=ask_for, **overrides)


def _image_shapes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    fields = shapes(state_dict, 4)
    if fields["position_embedding_type"] == "absolute":
        cells = shape_of("pos_embed", state_dict, 3)[1] - fields["use_cls_token"]
        fields |= square_size(cells, fields["patch_size"])
    return fields


def square_size(cells: int, patch_size: int | list[int]) -> dict[str, Any]:
    """The image size of a square grid of so many cells; nothing where there is none."""
    side = round(cells**0.5)
    if side * side != cells:
        return {}
    return {"image_size": one_or_two([side * step for step in pair(patch_size)])}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfMvitConfig:
    """
    The configuration of a checkpoint of facebookresearch/mvit or PySlowFast. Strides of keys and values come from
    `kwargs`, or from the published variants with the same shapes.

    Args:
        kwargs: `{"cfg": ...}`, the sections MVIT, MODEL and DATA of its configuration; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    fixed = {"MODEL.DROPOUT_RATE": (0.0,), "DATA.NUM_FRAMES": (1,)}
    return original_config(VitfMvitConfig, kwargs, _image_shapes(state_dict), {}, fixed, **overrides)


_TIMM_KWARGS = {
    "img_size": "image_size",
    "in_chans": ignored,
    "num_classes": ignored,
    "drop_path_rate": "drop_path_rate",
}


def timm_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfMvitConfig:
    """The configuration of a checkpoint of timm's; `kwargs` are those of its MultiScaleVit."""
    renamed = {key.replace("head.fc.", "head.projection."): tensor for key, tensor in state_dict.items()}
    number = 0
    for stage in range(count_indices("stages.{s}.blocks.0.norm1.weight", state_dict, "s")):
        for index in range(count_indices(f"stages.{stage}.blocks.{{i}}.norm1.weight", state_dict)):
            block = f"stages.{stage}.blocks.{index}."
            for key in [key for key in renamed if key.startswith(block)]:
                part = (
                    key.removeprefix(block).replace("shortcut_proj_attn", "proj").replace("shortcut_proj_mlp", "proj")
                )
                renamed[f"blocks.{number}.{part}"] = renamed.pop(key)
            number += 1
    known = _image_shapes(renamed)
    known |= {"residual_pooling": True, "residual_cls_token": known["use_cls_token"]}
    pool = "token" if known["use_cls_token"] else "avg"
    given = fields_from_kwargs(kwargs, _TIMM_KWARGS, {"global_pool": (pool, None)})
    ask_for = {"kv_strides": "stages.0.blocks.0.attn.pool_k.weight"}
    return make_config(VitfMvitConfig, known, given, ask_for=ask_for, **overrides)


def _timm_misfit(config: VitfMvitConfig) -> str | None:
    """timm adds the query of a class token to it as well, which the authors do not."""
    if config.use_cls_token and not config.residual_cls_token:
        return "use_cls_token=True has no place in it without residual_cls_token=True"
    return None


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    same = (
        "hidden_sizes depths num_heads kv_strides kv_kernel_sizes mlp_ratio qkv_bias dim_mul_in_att patch_size "
        "hidden_act"
    )
    suffix = "_cls" if config.use_cls_token else ""
    sizes = ("base", "large", "huge") if suffix else ("tiny", "small", "base", "large")
    for name in (f"mvitv2_{size}{suffix}" for size in sizes):
        variant = VitfMvitConfig.from_variant(name)
        if all(getattr(variant, field) == getattr(config, field) for field in (*same.split(), "layer_norm_eps")):
            size, num_labels = one_or_two(config.image_size), config.num_labels if has_head(model) else 0
            return {
                "architecture": name,
                "model_args": {"img_size": size, "in_chans": config.num_channels, "num_classes": num_labels},
            }
    raise ConversionError(
        "timm's config.json has names only for published variants of MViTv2, and this is another model"
    )


# Of all layers, so that a ViT, which has some of these, comes after.
REQUIRES = (
    "patch_embed.proj.weight",
    *(f"blocks.{{i}}.{name}.weight" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    "blocks.{i}.attn.pool_k.weight",
    "blocks.{i}.attn.norm_k.weight",
    "norm.weight",
)
_LAYOUT = {
    "config": config_from_original,
    "holds": {"residual_cls_token": (False,)},
    "requires": REQUIRES,
    "suffix": ".pyth",
    "wrapper": "model_state",
}
LAYOUTS = {
    "original": Layout(
        rules=rules, ndims={"patch_embed.proj.weight": 4, "blocks.{i}.attn.pool_k.weight": 4}, **_LAYOUT
    ),
    "original_slowfast": Layout(
        rules=slowfast_rules,
        ndims={"patch_embed.proj.weight": 4, "blocks.{i}.attn.pool_k.weight": 5},
        source=SLOWFAST,
        **_LAYOUT,
    ),
    "timm": Layout(
        rules=timm_rules,
        config=timm_config,
        requires=("patch_embed.proj.weight", "stages.{s}.blocks.{i}.attn.pool_k.weight", "norm.weight"),
        fits=_timm_misfit,
        holds={
            "position_embedding_type": ("relative",),
            "query_pooling": ("every_layer",),
            "residual_pooling": (True,),
            "final_layernorm": ("tokens",),
        },
        native_config=_timm_native,
    ),
}
