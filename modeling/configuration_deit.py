"""Configuration of DeiT (Touvron et al., "Training data-efficient image transformers", arXiv 2012.12877)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides

# Table 1 of arXiv 2012.12877.
_TINY = {"hidden_size": 192, "num_attention_heads": 3}
_SMALL = {"hidden_size": 384, "num_attention_heads": 6}
_BASE = {"hidden_size": 768, "num_attention_heads": 12}


@strict
class VitfDeitConfig(VitfConfig):
    r"""
    ViT trained on ImageNet-1k only. Differs from ViT by a distillation token that learns from a teacher next to the
    class token, with a head of its own (section 4 of the paper); exact GELU; bicubic resizing of positions.

    Args:
        distilled (`bool`, *optional*, defaults to `True`): Whether there are a distillation token and its head.
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_deit"
    # Evaluation loops gather every output of a model: the mean of the heads is what they need.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cls_logits", "distillation_logits"]

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "deit_tiny_patch16_224": {**_TINY, "distilled": False},
        "deit_small_patch16_224": {**_SMALL, "distilled": False},
        "deit_base_patch16_224": {**_BASE, "distilled": False},
        "deit_base_patch16_384": {**_BASE, "distilled": False, "image_size": 384},
        "deit_tiny_distilled_patch16_224": {**_TINY},
        "deit_small_distilled_patch16_224": {**_SMALL},
        "deit_base_distilled_patch16_224": {**_BASE},
        "deit_base_distilled_patch16_384": {**_BASE, "image_size": 384},
    }

    distilled: bool = True
    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")


__all__ = ["VitfDeitConfig"]
