"""DeepViT: the original .pth.tar files, whose names are timm 0.3.2's with re-attention added."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import Layout, Source, fields_from_kwargs, ignored, make_config, shape_of
from ..conversion.rules import Reshape, Rule, find_indices
from ..modeling.configuration_deepvit import VitfDeepvitConfig
from .timm_names import TIMM_FIXED, TIMM_KWARGS, timm_rules, timm_shapes

SOURCE = Source(
    "zhoudaquan/dvit_repo",
    "1ccb152cea43fcbc3cd517a45c12c65734f8ace3",
    "models/deep_vision_transformer.py, models/layers.py",
    "mit",
)

_MIXING = "blocks.{i}.attn.reatten_matrix."


def rules(config: VitfDeepvitConfig) -> list[Rule]:
    """The table of the published files."""
    heads = config.num_attention_heads
    table = timm_rules()
    if any(config.transformed_layers):
        attention = "layers.{i}.attention."
        table += [
            Rule(_MIXING + "weight", attention + "mixing.weight", Reshape((heads, heads, 1, 1), (heads, heads))),
            Rule(_MIXING + "bias", attention + "mixing.bias"),
            Rule("blocks.{i}.attn.var_norm.*", attention + "batch_norm.*"),
        ]
    if config.patch_embedding_type == "convolutional":
        stem = "embeddings.patch_embeddings."
        table += [Rule(f"patch_embed.conv{n}.weight", f"{stem}conv{n}.weight") for n in (1, 2)]
        table += [Rule(f"patch_embed.bn{n}.*", f"{stem}norm{n}.*") for n in (1, 2)]
    return table


def _depth(depth: int | list) -> dict[str, int]:
    return {"num_hidden_layers": depth if isinstance(depth, int) else len(depth)}


def _one_for_all(transformed: list[bool]) -> dict[str, bool | list[bool]]:
    return {"apply_transform": transformed[0] if len(set(transformed)) == 1 else list(transformed)}


def _patch_embedding(use_cnn_embed: bool) -> dict[str, str]:
    return {"patch_embedding_type": "convolutional" if use_cnn_embed else "linear"}


_KWARGS = {
    **TIMM_KWARGS,
    "depth": _depth,
    "apply_transform": _one_for_all,
    "use_cnn_embed": _patch_embedding,
    "transform_scale": "transform_scale",
    "scale_adjustment": "scale_adjustment",
    "group": ignored,  # read nowhere
    "cos_reg": ignored,  # a loss of training
}
_FIXED = {**TIMM_FIXED, "re_atten": (True,)}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfDeepvitConfig:
    """
    The configuration of a DeepViT checkpoint. `transform_scale` and `scale_adjustment` come from `kwargs`, or from the
    published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `DeepVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    known = timm_shapes(state_dict, (1,))
    transformed = {values["i"] for values in find_indices(_MIXING + "weight", state_dict)}
    known |= _one_for_all([i in transformed for i in range(known["num_hidden_layers"])])
    ask_for = {"image_size": "pos_embed", "num_attention_heads": "blocks.0.attn.qkv.weight"}
    if transformed:
        key = _MIXING.format(i=min(transformed)) + "weight"
        known["num_attention_heads"] = shape_of(key, state_dict, 4)[0]
        ask_for["transform_scale"] = key
    known |= _patch_embedding("patch_embed.conv1.weight" in state_dict)
    if known["patch_embedding_type"] == "convolutional":
        # The projection sees patches at half the resolution.
        known["num_channels"] = shape_of("patch_embed.conv1.weight", state_dict, 4)[1]
        for name in ("patch_size", "image_size"):
            if name in known:
                known[name] = tuple(2 * size for size in known[name])
    ask_for["scale_adjustment"] = "blocks.0.norm1.weight"
    given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
    return make_config(VitfDeepvitConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "patch_embed.proj.weight",
            "pos_embed",
            "cls_token",
            "blocks.{i}.attn.qkv.weight",
            _MIXING + "weight",
        ),
        suffix=".pth",
        wrapper="state_dict",
    ),
}
