"""DeiT, plain and distilled: the original .pth files (timm 0.3.2's names), timm's, and transformers' own DeiT."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DeiTConfig, PreTrainedModel, ViTConfig

from ..conversion import Layout, Published, Source, fields_from_kwargs, has_head, make_config
from ..modeling.configuration_deit import VitfDeitConfig
from ..rules import Rule
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_native_fields, timm_rules, timm_shapes
from .transformers_names import TRANSFORMERS_NAMES, transformers_fields, transformers_native_fields, transformers_rules

FACEBOOK_COMMIT = "7e160fe43f0252d17191b71cbb5826254114ea5b"
FACEBOOK = "https://dl.fbaipublicfiles.com/deit"
FACEBOOK_README = "README of facebookresearch/deit"
FACEBOOK_LICENSE = {
    "license": "apache-2.0",
    "license_source": "no statement for the weights; the READMEs say that the repository is Apache-2.0",
}
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
    The configuration of a DeiT checkpoint. The number of heads comes from `kwargs`, or from the published variant with the
    same shapes.

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
        return [*transformers_rules(names), *heads]

    return rules


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfDeitConfig:
    """The configuration of transformers' own DeiT, or of a plain DeiT stored as its ViT; `kwargs` is its config.json."""
    distilled = "embeddings.distillation_token" in state_dict
    known = transformers_fields(kwargs, state_dict, "cls_classifier" if distilled else "classifier")
    return make_config(VitfDeitConfig, known, {"distilled": distilled}, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    fields = transformers_native_fields(model.config)
    if model.config.distilled:
        classes, config_class = ("DeiTModel", "DeiTForImageClassificationWithTeacher"), DeiTConfig
    else:
        classes, config_class = ("ViTModel", "ViTForImageClassification"), ViTConfig
    return config_class(**fields, architectures=[classes[has_head(model)]]).to_diff_dict()


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    name = "deit_base_distilled_patch16_224" if model.config.distilled else "deit_base_patch16_224"
    return {"architecture": name, "model_args": timm_native_fields(model)}


_TIMM = {
    "rules": rules,
    "config": config_from_original,
    "requires": ("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "pos_embed", "cls_token"),
    "forbids": ("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma", "reg_token", "fc_norm.*", "pre_logits.fc.*"),
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
            prefix="deit.",
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
            holds={"distilled": (False,)},
            native_config=_transformers_native,
        )
        for name, names in TRANSFORMERS_NAMES.items()
    },
}

# Key, file, top-1 of the README. ImageNet-1k alone; those at 384 were fine-tuned at that size.
_FILES = (
    ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224-a1311bcf", 72.2),
    ("deit_small_patch16_224.fb_in1k", "deit_small_patch16_224-cd65a155", 79.9),
    ("deit_base_patch16_224.fb_in1k", "deit_base_patch16_224-b5f2ef4d", 81.8),
    ("deit_tiny_distilled_patch16_224.fb_in1k", "deit_tiny_distilled_patch16_224-b40b3cf7", 74.5),
    ("deit_small_distilled_patch16_224.fb_in1k", "deit_small_distilled_patch16_224-649709d9", 81.2),
    ("deit_base_distilled_patch16_224.fb_in1k", "deit_base_distilled_patch16_224-df68dfff", 83.4),
    ("deit_base_patch16_384.fb_in1k", "deit_base_patch16_384-8de9b5d1", 82.9),
    ("deit_base_distilled_patch16_384.fb_in1k", "deit_base_distilled_patch16_384-d0272ac0", 85.2),
)
CHECKPOINTS: dict[str, Published] = {
    key: Published(f"{FACEBOOK}/{file}.pth", top1, FACEBOOK_README, "ImageNet-1k", wrapper="model", **FACEBOOK_LICENSE)
    for key, file, top1 in _FILES
}
