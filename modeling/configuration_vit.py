"""Configuration of ViT (Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, VitfConfig, check_divides, pair

# Sizes: table 1 of arXiv 2010.11929 (base, large, huge) and table 2 of arXiv 2106.10270 (tiny, small).
_TINY = {"hidden_size": 192, "num_attention_heads": 3}
_SMALL = {"hidden_size": 384, "num_attention_heads": 6}
_MEDIUM = {"hidden_size": 512, "num_attention_heads": 8}
_BASE = {"hidden_size": 768, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
_HUGE = {"hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 32, "patch_size": 14}
_AT_384 = {"image_size": 384, "crop_pct": 1.0}
# google-research/vision_transformer@c6de1e5 vit_jax/configs/models.py. Of R50 in front of 16 pixel patches the last stage is
# left out and its units are added to the one before.
_R = {"resnet_depths": [], "patch_size": 32}
_R26 = {"resnet_depths": [2, 2, 2, 2], "patch_size": 32}
_R50 = {"resnet_depths": [3, 4, 6, 3], "patch_size": 32}
_R50_16 = {"resnet_depths": [3, 4, 9], "patch_size": 16}
_IN21K = {"num_labels": 21843}
# google-research/vision_transformer@c6de1e5 vit_jax/configs/models.py, the "-gap-norep" configurations.
_GAP = {"use_cls_token": False, "pooling": "mean"}
# facebookresearch/deit@7e160fe models_v2.py: layer scale, no position for the class token, constant drop path.
_DEIT3 = {
    "hidden_act": "gelu",
    "layer_scale_init_value": 1e-4,
    "prefix_position_embeddings": False,
    "drop_path_schedule": "constant",
    "position_interpolation": "bicubic",
    "initialization": "trunc_normal",
    "crop_pct": 1.0,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}


def resnet_stride(depths: list[int]) -> int:
    """Pixels for a step on the last map of a ResNet with these stages: the root's four, doubled by each stage but the first."""
    return 4 * 2 ** max(len(depths) - 1, 0)


@strict
class VitfVitConfig(VitfConfig):
    r"""
    The plain Vision Transformer: an image is cut into patches, each patch is a token, and a pre-norm transformer encoder
    reads them. The options cover its close relatives that change no layer (DeiT III, register tokens, rotary positions).

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`):
            Activation. The original uses the tanh approximation of GELU; timm and transformers run `"gelu"`.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        use_cls_token (`bool`, *optional*, defaults to `True`): Whether a class token is prepended.
        pooling (`str`, *optional*, defaults to `"cls"`):
            What the head reads: `"cls"`, the class token, or `"mean"`, the average over the patch tokens.
        num_register_tokens (`int`, *optional*, defaults to 0):
            Learned tokens without a position between class and patch tokens (arXiv 2309.16588).
        representation_size (`int`, *optional*):
            Width of the tanh layer before the head ("pre_logits", the ImageNet-21k checkpoints); none by default.
        position_embedding_type (`str`, *optional*, defaults to `"learned"`):
            `"learned"`; `"sincos"`, the fixed 2-D table of arXiv 2111.06377; `"rotary"`, axial rotations of queries and
            keys; or `"none"`.
        prefix_position_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the class token has a row of its own in a learned table (DeiT III: no).
        position_interpolation (`str`, *optional*, defaults to `"bilinear"`):
            How a learned table is resized to another grid: `"bilinear"` with aligned corners (the original) or
            `"bicubic"` (DeiT).
        resnet_depths (`list[int]`, *optional*):
            Hybrid: units of each stage of a ResNet that the patches are cut from (may be empty: its root alone); none by
            default. `patch_size` stays in pixels of the image, a multiple of 4, doubled by each stage after the first.
        resnet_width (`int`, *optional*, defaults to 64): Channels of the root of that ResNet; a multiple of 32.
        layer_scale_init_value (`float`, *optional*): Initial value of layer scale (arXiv 2103.17239); none by default.
        drop_path_schedule (`str`, *optional*, defaults to `"linear"`):
            `drop_path_rate` over depth: `"linear"` from 0, or `"constant"` (DeiT III).
        initialization (`str`, *optional*, defaults to `"jax"`):
            `"jax"`, as google-research/vision_transformer@c6de1e5; `"trunc_normal"`, as facebookresearch/deit@7e160fe.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_vit"

    PREPROCESSING: ClassVar[dict[str, Any]] = {
        "crop_pct": 0.9,
        "image_mean": HALF_MEAN,
        "image_std": HALF_STD,
        "resample": "bicubic",
    }
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "vit_tiny_patch16_224": {**_TINY},
        "vit_tiny_patch16_384": {**_TINY, **_AT_384},
        "vit_tiny_patch16_224_in21k": {**_TINY, **_IN21K},
        "vit_small_patch16_224": {**_SMALL},
        "vit_small_patch16_384": {**_SMALL, **_AT_384},
        "vit_small_patch16_224_in21k": {**_SMALL, **_IN21K},
        "vit_small_patch16_gap_224": {**_SMALL, **_GAP},
        "vit_small_patch32_224": {**_SMALL, "patch_size": 32},
        "vit_small_patch32_384": {**_SMALL, "patch_size": 32, **_AT_384},
        "vit_small_patch32_224_in21k": {**_SMALL, "patch_size": 32, **_IN21K},
        "vit_small_patch32_gap_224": {**_SMALL, "patch_size": 32, **_GAP},
        "vit_base_patch8_224": {**_BASE, "patch_size": 8},
        "vit_base_patch8_384": {**_BASE, "patch_size": 8, **_AT_384},
        "vit_base_patch8_224_in21k_pre_logits": {**_BASE, "patch_size": 8, **_IN21K, "representation_size": 768},
        "vit_base_patch16_224": {**_BASE},
        "vit_base_patch16_384": {**_BASE, **_AT_384},
        "vit_base_patch16_224_in21k": {**_BASE, **_IN21K},
        "vit_base_patch16_224_in21k_pre_logits": {**_BASE, **_IN21K, "representation_size": 768},
        "vit_base_patch16_gap_224": {**_BASE, **_GAP},
        "vit_base_patch32_224": {**_BASE, "patch_size": 32},
        "vit_base_patch32_384": {**_BASE, "patch_size": 32, **_AT_384},
        "vit_base_patch32_224_in21k": {**_BASE, "patch_size": 32, **_IN21K},
        "vit_base_patch32_224_in21k_pre_logits": {**_BASE, "patch_size": 32, **_IN21K, "representation_size": 768},
        "vit_base_patch32_gap_224": {**_BASE, "patch_size": 32, **_GAP},
        "vit_large_patch16_224": {**_LARGE},
        "vit_large_patch16_384": {**_LARGE, **_AT_384},
        "vit_large_patch16_224_in21k": {**_LARGE, **_IN21K},
        "vit_large_patch16_224_in21k_pre_logits": {**_LARGE, **_IN21K, "representation_size": 1024},
        "vit_large_patch32_224": {**_LARGE, "patch_size": 32},
        "vit_large_patch32_384": {**_LARGE, "patch_size": 32, **_AT_384},
        "vit_large_patch32_224_in21k_pre_logits": {**_LARGE, "patch_size": 32, **_IN21K, "representation_size": 1024},
        "vit_huge_patch14_224": {**_HUGE},
        "vit_huge_patch14_224_in21k_pre_logits": {**_HUGE, **_IN21K, "representation_size": 1280},
        "vit_tiny_r_s16_p8_224": {**_TINY, **_R},
        "vit_tiny_r_s16_p8_384": {**_TINY, **_R, **_AT_384},
        "vit_tiny_r_s16_p8_224_in21k": {**_TINY, **_R, **_IN21K},
        "vit_small_r26_s32_224": {**_SMALL, **_R26},
        "vit_small_r26_s32_384": {**_SMALL, **_R26, **_AT_384},
        "vit_small_r26_s32_224_in21k": {**_SMALL, **_R26, **_IN21K},
        "vit_base_r26_s32_224": {**_BASE, **_R26},
        "vit_base_r26_s32_224_in21k_pre_logits": {**_BASE, **_R26, **_IN21K, "representation_size": 768},
        "vit_base_r50_s16_384": {**_BASE, **_R50_16, **_AT_384},
        "vit_base_r50_s16_224_in21k_pre_logits": {**_BASE, **_R50_16, **_IN21K, "representation_size": 768},
        "vit_large_r50_s32_224": {**_LARGE, **_R50},
        "vit_large_r50_s32_384": {**_LARGE, **_R50, **_AT_384},
        "vit_large_r50_s32_224_in21k": {**_LARGE, **_R50, **_IN21K},
        "vit_large_r50_s32_224_in21k_pre_logits": {**_LARGE, **_R50, **_IN21K, "representation_size": 1024},
        "deit3_small_patch16_224": {**_SMALL, **_DEIT3},
        "deit3_small_patch16_384": {**_SMALL, **_DEIT3, **_AT_384},
        "deit3_medium_patch16_224": {**_MEDIUM, **_DEIT3},
        "deit3_base_patch16_224": {**_BASE, **_DEIT3},
        "deit3_base_patch16_384": {**_BASE, **_DEIT3, **_AT_384},
        "deit3_large_patch16_224": {**_LARGE, **_DEIT3},
        "deit3_large_patch16_384": {**_LARGE, **_DEIT3, **_AT_384},
        "deit3_huge_patch14_224": {**_HUGE, **_DEIT3},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu_pytorch_tanh"
    qkv_bias: bool = True
    use_cls_token: bool = True
    pooling: Literal["cls", "mean"] = "cls"
    num_register_tokens: int = 0
    representation_size: int | None = None
    position_embedding_type: Literal["learned", "sincos", "rotary", "none"] = "learned"
    prefix_position_embeddings: bool = True
    position_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resnet_depths: list[int] | tuple[int, ...] | None = None
    resnet_width: int = 64
    layer_scale_init_value: float | int | None = None
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    initialization: Literal["jax", "trunc_normal"] = "jax"

    def validate_resnet(self):
        if self.resnet_depths is None:
            return
        stride = resnet_stride(self.resnet_depths)
        if any(side % stride for side in pair(self.patch_size)):
            raise ValueError(
                f"VitfVitConfig: patch_size={self.patch_size} is not a multiple of {stride}, the stride of a ResNet with "
                f"resnet_depths={self.resnet_depths}"
            )
        if self.resnet_width % 32:
            raise ValueError(
                f"VitfVitConfig: resnet_width={self.resnet_width} is not a multiple of 32, the groups of its norms"
            )

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        if self.pooling == "cls" and not self.use_cls_token:
            raise ValueError("VitfVitConfig: pooling='cls' needs use_cls_token=True")
        if self.position_embedding_type == "sincos" and self.hidden_size % 4:
            raise ValueError(f"VitfVitConfig: sincos positions need hidden_size % 4 == 0, not {self.hidden_size}")

    @property
    def pooler_output_size(self) -> int:
        return self.representation_size or self.hidden_size


__all__ = ["VitfVitConfig"]
