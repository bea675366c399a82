"""CaiT: the original .pth files, whose names timm keeps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    make_config,
    shape_of,
)
from ..conversion.rules import Concatenate, Rule
from ..modeling.configuration_cait import VitfCaitConfig
from .convert_deit import FACEBOOK_COMMIT
from .timm_names import TIMM_FIXED, TIMM_KWARGS, timm_native_fields, timm_rules, timm_shapes

SOURCE = Source("facebookresearch/deit", FACEBOOK_COMMIT, "cait_models.py", "apache-2.0")


def rules(config: VitfCaitConfig) -> list[Rule]:
    """The table of the published `.pth` files, and of timm."""
    block, layer = "blocks.{i}.", "layers.{i}."
    class_block, class_layer = "blocks_token_only.{i}.", "class_stage.layers.{i}."
    # The class token belongs to its own stage here, not to the embeddings.
    table = timm_rules("cls_token")
    table += [
        Rule("cls_token", "class_stage.cls_token"),
        Rule(block + "attn.proj_l.*", layer + "attention.mix_scores.*"),
        Rule(block + "attn.proj_w.*", layer + "attention.mix_probabilities.*"),
        Rule(class_block + "norm1.*", class_layer + "layernorm_before.*"),
        Rule(class_block + "attn.q.*", class_layer + "attention.query.*"),
        Rule(
            (class_block + "attn.k.*", class_block + "attn.v.*"), class_layer + "attention.key_value.*", Concatenate(2)
        ),
        Rule(class_block + "attn.proj.*", class_layer + "attention.proj.*"),
        Rule(class_block + "norm2.*", class_layer + "layernorm_after.*"),
        Rule(class_block + "mlp.fc1.*", class_layer + "mlp.fc1.*"),
        Rule(class_block + "mlp.fc2.*", class_layer + "mlp.fc2.*"),
    ]
    for source, target in ((block, layer), (class_block, class_layer)):
        table += [Rule(f"{source}gamma_{n}", f"{target}layer_scale{n}.weight") for n in (1, 2)]
    return table


# Arguments of `cait_models` and of timm's `Cait` that TIMM_KWARGS lacks.
_KWARGS = {
    **{name: field for name, field in TIMM_KWARGS.items() if name != "act_layer"},
    "init_scale": "layer_scale_init_value",
    "init_values": "layer_scale_init_value",
    "depth_token_only": "num_class_attention_layers",
    "mlp_ratio_clstk": "class_attention_mlp_ratio",
    "mlp_ratio_token_only": "class_attention_mlp_ratio",
}
_FIXED = {
    **TIMM_FIXED,
    "global_pool": (None, "token"),
    "block_layers": ("cait_models.LayerScale_Block",),
    "block_layers_token": ("cait_models.LayerScale_Block_CA",),
    "Patch_layer": ("timm.models.vision_transformer.PatchEmbed",),
    "act_layer": ("torch.nn.GELU",),
    "Attention_block": ("cait_models.Attention_talking_head",),
    "Mlp_block": ("timm.models.vision_transformer.Mlp",),
    "Attention_block_token_only": ("cait_models.Class_Attention",),
    "Mlp_block_token_only": ("timm.models.vision_transformer.Mlp",),
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfCaitConfig:
    """
    The configuration of a CaiT checkpoint. Shapes tell all but the image of a grid that is not square (`image_size`).

    Args:
        kwargs: Keyword arguments of `cait_models`, or of timm's `Cait`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    known = timm_shapes(state_dict, (0,))
    class_mlp = "blocks_token_only.0.mlp."
    known |= {
        "num_attention_heads": shape_of("blocks.0.attn.proj_l.weight", state_dict, 2)[0],
        "num_class_attention_layers": count_indices("blocks_token_only.{i}.norm1.weight", state_dict),
        "class_attention_mlp_ratio": common_size(
            {class_mlp + "fc1.weight": 0, class_mlp + "fc1.bias": 0, class_mlp + "fc2.weight": 1}, state_dict
        )
        / known["hidden_size"],
    }
    given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
    return make_config(VitfCaitConfig, known, given, ask_for={"image_size": "pos_embed"}, **overrides)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    arguments = timm_native_fields(model)
    del arguments["act_layer"]  # a class to timm's CaiT, not a name
    return {
        "architecture": "cait_s24_224",
        "model_args": {
            **arguments,
            "init_values": config.layer_scale_init_value,
            "depth_token_only": config.num_class_attention_layers,
            "mlp_ratio_token_only": config.class_attention_mlp_ratio,
        },
    }


_NAMES = {
    "rules": rules,
    "config": config_from_original,
    "requires": (
        "patch_embed.proj.weight",
        "cls_token",
        "blocks.{i}.attn.qkv.weight",
        "blocks.{i}.attn.proj_l.weight",
        "blocks_token_only.{i}.attn.q.weight",
    ),
}
LAYOUTS = {
    "original": Layout(**_NAMES, suffix=".pth", wrapper="model"),
    "timm": Layout(**_NAMES, holds={"hidden_act": ("gelu",)}, native_config=_timm_native),
}
