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
# google-research/vision_transformer@c6de1e5 vit_jax/configs/models.py. Of R50 in front of 16 pixel patches the last
# stage is left out and its units are added to the one before.
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
    """
    Pixels for a step on the last map of a ResNet with these stages: the root's four, doubled by each stage but the
    first.
    """
    return 4 * 2 ** max(len(depths) - 1, 0)


@strict
class VitfVitConfig(VitfConfig):
    r"""
    The plain Vision Transformer: an image is cut into patches, each patch is a token, and a pre-norm transformer
    encoder reads them. The options cover its close relatives: DeiT III, register tokens, rotary positions, and the
    image encoders of CLIP, SigLIP, DINOv2, RADIO, AIMv2 and BEiT-3, and the ViT and SimpleViT of vit-pytorch.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels. num_hidden_layers (`int`,
        *optional*, defaults to 12): Layers. num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide
        `hidden_size` where `head_dim` is None. head_dim (`int`, *optional*):
            Channels of a head; `hidden_size` over the number of heads by default (vit-pytorch: whatever the width).
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`):
            Activation. The original uses the tanh approximation of GELU; timm and transformers run `"gelu"`.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        proj_bias (`bool`, *optional*, defaults to `True`):
            Whether the output of attention and both linear layers of the feed-forward layer have a bias (AIMv2: no).
        attention_proj_bias (`bool`, *optional*, defaults to `True`): Whether the output of attention has one, where
            `proj_bias` says so of all three (SimpleViT of vit-pytorch: no).
        mlp_type (`str`, *optional*, defaults to `"plain"`): The feed-forward layer: `"plain"`, or `"gated"`, the
            activation of one linear layer times another (SwiGLU with `hidden_act="silu"`, arXiv 2002.05202; DINOv2
            giant, AIMv2). `mlp_ratio` counts the product's channels.
        norm_type (`str`, *optional*, defaults to `"layernorm"`): `"layernorm"` or `"rmsnorm"` (arXiv 1910.07467;
        AIMv2). norm_position (`str`, *optional*, defaults to `"pre"`):
            `"pre"`, the norm of a branch's input, or `"post"`, of its output before it is added (arXiv 2111.09883).
        sub_layernorm (`bool`, *optional*, defaults to `False`):
            Whether each branch has another norm before its last linear layer (arXiv 2210.06423; BEiT-3).
        patch_bias (`bool`, *optional*, defaults to `True`): Whether the projection of the patches has a bias (CLIP:
        no). pixel_layernorm (`bool`, *optional*, defaults to `False`):
            Whether the pixels of a patch are normalised before they are projected (arXiv 2302.01327; vit-pytorch).
        patch_layernorm (`bool`, *optional*, defaults to `False`):
            Whether the projected patches are normalised before positions are added (AIMv2, vit-pytorch).
        pre_layernorm (`bool`, *optional*, defaults to `False`):
            Whether all tokens are normalised, with their positions, before the first layer (CLIP).
        final_layernorm (`str`, *optional*, defaults to `"tokens"`):
            What the last norm is of: the `"tokens"`, what was `"pooled"` of them, or `"none"` (RADIO, InternViT).
        use_cls_token (`bool`, *optional*, defaults to `True`): Whether a class token is prepended.
        pooling (`str`, *optional*, defaults to `"cls"`):
            What the head reads: `"cls"`, the class token; `"mean"`, the average over the patch tokens; `"cls_mean"`,
            one after the other (DINOv2's linear heads); or `"map"`, what one learned query attends to among the patch
            tokens (multihead attention pooling, arXiv 2106.04560; SigLIP).
        pool_prefix_tokens (`bool`, *optional*, defaults to `False`): Whether register tokens are pooled with the
        patches'. num_register_tokens (`int`, *optional*, defaults to 0):
            Learned tokens between class and patch tokens (arXiv 2309.16588).
        register_position_embeddings (`bool`, *optional*, defaults to `False`):
            Whether they, too, have rows of their own in a learned table, after the class token's.
        representation_size (`int`, *optional*):
            Width of the tanh layer before the head ("pre_logits", the ImageNet-21k checkpoints); none by default.
        position_embedding_type (`str`, *optional*, defaults to `"learned"`): `"learned"`; `"sincos"`, the fixed 2-D
            table of arXiv 2111.06377; `"sincos_simple"`, that of arXiv 2205.01580 (SimpleViT); `"rotary"`, axial
            rotations of queries and keys; or `"none"`.
        prefix_position_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the class token has a row of its own in a learned table (DeiT III: no).
        position_interpolation (`str`, *optional*, defaults to `"bilinear"`):
            How a learned table is resized to another grid: `"bilinear"` with aligned corners (the original),
            `"bicubic"` (DeiT), `"bicubic_offset"` (DINO) or `"bicubic_antialias"` (timm).
        drop_incomplete_patches (`bool`, *optional*, defaults to `False`): Whether pixels beyond the last whole patch
            are left out, at the right and the bottom (SigLIP at 384 pixels with 14 pixel patches); a size that is not a
            multiple of the patch is an error otherwise.
        resnet_depths (`list[int]`, *optional*): Hybrid: units of each stage of a ResNet that the patches are cut from
            (may be empty: only its root); none by default. `patch_size` stays in pixels of the image, a multiple of 4,
            doubled by each stage after the first.
        resnet_width (`int`, *optional*, defaults to 64): Channels of the root of that ResNet; a multiple of 32.
        resnet_epsilons (`str`, *optional*, defaults to `"jax"`):
            Of its norms and standardised weights: those of google-research/vision_transformer@c6de1e5, or of `"timm"`.
        layer_scale_init_value (`float`, *optional*): Initial value of layer scale (arXiv 2103.17239); none by default.
        drop_path_schedule (`str`, *optional*, defaults to `"linear"`):
            `drop_path_rate` over depth: `"linear"` from 0, or `"constant"` (DeiT III).
        initialization (`str`, *optional*, defaults to `"jax"`):
            `"jax"`, as google-research/vision_transformer@c6de1e5; `"trunc_normal"`, as facebookresearch/deit@7e160fe.
        decoder_hidden_size (`int`, *optional*, defaults to 512): Width of a token in the decoder of MAE, which only
            `VitfVitForPreTraining` has (arXiv 2111.06377; the names are those of transformers' ViTMAE).
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8): Layers of that decoder.
        decoder_num_attention_heads (`int`, *optional*, defaults to 16): Heads of that decoder; must divide its width.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048): Width of its feed-forward layers.
        mask_ratio (`float`, *optional*, defaults to 0.75): Share of the patches that MAE hides from the encoder.
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Whether MAE predicts the pixels of a patch normalised by its own mean and deviation.

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
        "vit_small_patch8_224": {**_SMALL, "patch_size": 8},
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
    head_dim: int | None = None
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu_pytorch_tanh"
    qkv_bias: bool = True
    proj_bias: bool = True
    attention_proj_bias: bool = True
    mlp_type: Literal["plain", "gated"] = "plain"
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"
    sub_layernorm: bool = False
    patch_bias: bool = True
    pixel_layernorm: bool = False
    patch_layernorm: bool = False
    pre_layernorm: bool = False
    final_layernorm: Literal["tokens", "pooled", "none"] = "tokens"
    use_cls_token: bool = True
    pooling: Literal["cls", "mean", "cls_mean", "map"] = "cls"
    pool_prefix_tokens: bool = False
    num_register_tokens: int = 0
    register_position_embeddings: bool = False
    representation_size: int | None = None
    position_embedding_type: Literal["learned", "sincos", "sincos_simple", "rotary", "none"] = "learned"
    prefix_position_embeddings: bool = True
    position_interpolation: Literal["bilinear", "bicubic", "bicubic_antialias", "bicubic_offset"] = "bilinear"
    drop_incomplete_patches: bool = False
    resnet_depths: list[int] | tuple[int, ...] | None = None
    resnet_width: int = 64
    resnet_epsilons: Literal["jax", "timm"] = "jax"
    layer_scale_init_value: float | int | None = None
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    initialization: Literal["jax", "trunc_normal"] = "jax"
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
    norm_pix_loss: bool = False

    def validate_resnet(self):
        if self.resnet_depths is None:
            return
        stride = resnet_stride(self.resnet_depths)
        if any(side % stride for side in pair(self.patch_size)):
            raise ValueError(
                f"VitfVitConfig: patch_size={self.patch_size} is not a multiple of {stride}, the stride of a ResNet "
                f"with resnet_depths={self.resnet_depths}"
            )
        if self.resnet_width % 32:
            raise ValueError(
                f"VitfVitConfig: resnet_width={self.resnet_width} is not a multiple of 32, the groups of its norms"
            )

    def validate_geometry(self):
        if not self.drop_incomplete_patches:
            check_divides(self, "patch_size", "image_size")
        if self.head_dim is None or self.pooling == "map":
            check_divides(self, "num_attention_heads", "hidden_size")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"VitfVitConfig: head_dim={self.head_dim} is not positive")
        if self.pixel_layernorm and self.resnet_depths is not None:
            raise ValueError(
                "VitfVitConfig: pixel_layernorm=True needs resnet_depths=None, for it normalises the patches' pixels"
            )
        if self.pooling in ("cls", "cls_mean") and not self.use_cls_token:
            raise ValueError(f"VitfVitConfig: pooling={self.pooling!r} needs use_cls_token=True")
        if self.pooling == "cls_mean" and (self.final_layernorm == "pooled" or self.representation_size is not None):
            raise ValueError(
                "VitfVitConfig: pooling='cls_mean' has no layer between it and the head; use final_layernorm='tokens' "
                "and representation_size=None"
            )
        if self.position_embedding_type in ("sincos", "sincos_simple") and self.hidden_size % 4:
            raise ValueError(f"VitfVitConfig: sincos positions need hidden_size % 4 == 0, not {self.hidden_size}")
        if self.position_embedding_type == "sincos_simple" and self.hidden_size < 8:
            raise ValueError(f"VitfVitConfig: sincos_simple positions need hidden_size >= 8, not {self.hidden_size}")
        if self.register_position_embeddings and self.use_cls_token and not self.prefix_position_embeddings:
            raise ValueError("VitfVitConfig: register_position_embeddings=True needs prefix_position_embeddings=True")
        if self.norm_position == "post" and self.layer_scale_init_value is not None:
            raise ValueError("VitfVitConfig: layer_scale_init_value needs norm_position='pre'")

    def validate_decoder(self):
        check_divides(self, "decoder_num_attention_heads", "decoder_hidden_size")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"VitfVitConfig: mask_ratio={self.mask_ratio} is not at least 0 and less than 1")

    def decoder_config(self) -> "VitfVitConfig":
        """Of a plain ViT with the sizes of MAE's decoder, and its activation, biases, epsilon and dropout from here."""
        return type(self)(
            hidden_size=self.decoder_hidden_size,
            num_hidden_layers=self.decoder_num_hidden_layers,
            num_attention_heads=self.decoder_num_attention_heads,
            mlp_ratio=self.decoder_intermediate_size / self.decoder_hidden_size,
            hidden_act=self.hidden_act,
            qkv_bias=self.qkv_bias,
            layer_norm_eps=self.layer_norm_eps,
            hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob,
        )

    @property
    def num_prefix_positions(self) -> int:
        """Rows of a learned position table before those of the patches."""
        registers = self.num_register_tokens if self.register_position_embeddings else 0
        return int(self.use_cls_token and self.prefix_position_embeddings) + registers

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        if self.drop_incomplete_patches:
            rows, columns = pair(self.patch_size)
            height, width = height // rows * rows, width // columns * columns
        return super().feature_map_sizes(height, width)

    @property
    def pooler_output_size(self) -> int:
        if self.pooling == "cls_mean":
            return 2 * self.hidden_size
        return self.representation_size or self.hidden_size


__all__ = ["VitfVitConfig"]
