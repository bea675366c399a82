"""DeiT, plain and distilled: the original .pth files (timm 0.3.2's names), timm's, and transformers' own DeiT."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DeiTConfig, PreTrainedModel, ViTConfig, ViTMSNConfig

from ..conversion.convert import Layout, Source, fields_from_kwargs, make_config
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_deit import VitfDeitConfig
from ..modeling.configuration_vitf import pair
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_native_fields, timm_rules, timm_shapes
from .transformers_names import (
    MASK_TOKEN,
    MASKED_RULES,
    TRANSFORMERS_NAMES,
    head_of,
    native_class,
    transformers_fields,
    transformers_native_fields,
    transformers_rules,
)

FACEBOOK_COMMIT = "7e160fe43f0252d17191b71cbb5826254114ea5b"
SOURCE = Source("facebookresearch/deit", FACEBOOK_COMMIT, "models.py", "apache-2.0")


def rules(config: VitfDeitConfig) -> list[Rule]:
    """The table of the published `.pth` files, whose names timm keeps."""
    distilled = [
        Rule("dist_token", "embeddings.distillation_token"),
        Rule("head_dist.*", "distillation_classifier.*"),
    ]
    return [*timm_rules(), *(distilled if config.distilled else [])]


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfDeitConfig:
    """
    The configuration of a DeiT checkpoint. The number of heads comes from `kwargs`, or from the published variant with
    the same shapes.

    Args:
        kwargs: Keyword arguments of `VisionTransformer` of timm 0.3.2, or of timm's today; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    distilled = "dist_token" in state_dict
    known = {**timm_shapes(state_dict, (1 + distilled,)), "distilled": distilled}
    given = fields_from_kwargs(kwargs, TIMM_KWARGS, TIMM_FIXED)
    return make_config(VitfDeitConfig, known, given, ask_for=TIMM_OPEN, **overrides)


def _transformers_rules(names: Mapping[str, Any]):
    def rules(config: VitfDeitConfig) -> list[Rule]:
        # Without distillation it is transformers' ViT, as facebook/deit-tiny-patch16-224 on the Hub.
        heads = [Rule("classifier.*", "classifier.*")]
        if config.distilled:
            heads = [
                Rule("embeddings.distillation_token", "embeddings.distillation_token"),
                Rule("cls_classifier.*", "classifier.*"),
                Rule("distillation_classifier.*", "distillation_classifier.*"),
            ]
        return [*transformers_rules(names), *heads, *MASKED_RULES]

    return rules


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfDeitConfig:
    """
    The configuration of transformers' own DeiT, or of a plain DeiT stored as its ViT; `kwargs` is its config.json.
    """
    distilled = "embeddings.distillation_token" in state_dict
    known = transformers_fields(kwargs, state_dict, "cls_classifier" if distilled else "classifier")
    return make_config(VitfDeitConfig, known, {"distilled": distilled}, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config, head, fields = model.config, head_of(model), transformers_native_fields(model.config)
    if head == "ForMaskedImageModeling":
        if len({*pair(config.image_size)}) > 1 or len({*pair(config.patch_size)}) > 1:
            raise ConversionError("transformers' DeiTForMaskedImageModeling takes square images and patches only")
        fields["encoder_stride"] = pair(config.patch_size)[0]
    if config.distilled and head == "Model":
        raise ConversionError("transformers' DeiTModel has a pooler, which this model lacks")
    if config.distilled:
        class_name = native_class(model, "DeiT") + "WithTeacher" * (head == "ForImageClassification")
        return DeiTConfig(**fields, architectures=[class_name]).to_diff_dict()
    if head == "Model":  # transformers' ViTModel has a pooler; ViT-MSN is the same model without one
        return ViTMSNConfig(**fields, architectures=["ViTMSNModel"]).to_diff_dict()
    return ViTConfig(**fields, architectures=[native_class(model, "ViT")]).to_diff_dict()


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    name = "deit_base_distilled_patch16_224" if model.config.distilled else "deit_base_patch16_224"
    return {"architecture": name, "model_args": timm_native_fields(model)}


_TIMM = {
    "rules": rules,
    "config": config_from_original,
    "requires": ("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "pos_embed", "cls_token"),
    "forbids": (
        *("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma", "reg_token", "fc_norm.*", "pre_logits.fc.*", "decoder_pred.*"),
        # Relatives of ViT: see convert_vit.py.
        *("norm_pre.*", "attn_pool.latent", "blocks.{i}.attn.norm.*", "patch_embed.norm.*", "blocks.{i}.attn.q_norm.*"),
        *("patch_embed.backbone.conv.weight", "patch_embed.backbone.stem.conv.weight"),
    ),
}
LAYOUTS = {
    "original": Layout(**_TIMM, suffix=".pth", wrapper="model"),
    "timm": Layout(**_TIMM, native_config=_timm_native),
    **{
        name: Layout(
            rules=_transformers_rules(names),
            config=transformers_config,
            requires=(
                "embeddings.patch_embeddings.projection.weight",
                names["layer"] + names["qkv"][0] + "weight",
                "embeddings.distillation_token",
            ),
            forbids=("classifier.*", "pooler.dense.*"),  # where that token has no head
            prefix="deit.",
            head_keys_in_base=(MASK_TOKEN,),
            holds={"distilled": (True,)},
            native_config=_transformers_native,
        )
        for name, names in TRANSFORMERS_NAMES.items()
    },
    **{
        f"{name}_plain": Layout(
            rules=_transformers_rules(names),
            config=transformers_config,
            requires=("embeddings.patch_embeddings.projection.weight", names["layer"] + names["qkv"][0] + "weight"),
            forbids=("embeddings.distillation_token",),
            prefix="vit.",
            head_keys_in_base=(MASK_TOKEN,),
            model_types=("vit",),
            holds={"distilled": (False,)},
            native_config=_transformers_native,
        )
        for name, names in TRANSFORMERS_NAMES.items()
    },
}
