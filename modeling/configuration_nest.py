"""Configuration of NesT (Zhang et al., "Nested Hierarchical Transformer", arXiv 2105.12723)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides

# Table A1 of arXiv 2105.12723 as corrected in google-research/nested-transformer@59c0d6a configs/imagenet_nest*.py, and
# configs/cifar_nest.py.
_TINY = {"drop_path_rate": 0.2}
_SMALL = {"depths": [2, 2, 20], "drop_path_rate": 0.3}
_BASE = {"hidden_sizes": [128, 256, 512], "num_heads": [4, 8, 16], "depths": [2, 2, 20], "drop_path_rate": 0.5}
# timm's reading of the same weights, with its preprocessing; and its models that no one published weights of.
_JX = {"hidden_act": "gelu", "resample": "bicubic"}
_TIMM = {**_JX, "pool_padding": "symmetric"}
_CIFAR = {
    "image_size": 32,
    "patch_size": 1,
    "block_size": 4,
    "depths": [3, 3, 3, 3],
    "attention_type": "multi_query",
    "drop_path_rate": 0.1,
    "num_labels": 10,
    "crop_pct": 1.0,
    "image_mean": (0.4914, 0.4822, 0.4465),
    "image_std": (0.2471, 0.2435, 0.2616),
}


@strict
class VitfNestConfig(VitfPyramidConfig):
    r"""
    Nested hierarchical Transformer. Differs from ViT by blocks of the map of patches, of one size in every stage,
    within which patches attend to each other; between stages a convolution and a max-pool make one block of four. There
    is no class token: patches are averaged.

    Args:
        block_size (`int`, *optional*, defaults to 14): Height and width of a block, in tokens.
        attention_type (`str`, *optional*, defaults to `"multi_head"`):
            `"multi_query"` has one key and one value for all heads.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`):
            Activation. Flax's GELU is the tanh approximation; timm runs the same weights with the exact one.
        pool_padding (`str`, *optional*, defaults to `"same"`): Where the max-pool between stages pads: `"same"` pads an
            even map only below and to the right, as TensorFlow and flax do; `"symmetric"` on all sides, as timm's
            models without "jx" do.

    The other fields are those of [`VitfPyramidConfig`]. `patch_size` is that of the first stage in pixels, not the
    original's, which counts the tokens of a block.
    """

    model_type = "vitf_nest"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    # libml/preprocess.py of the original resizes bilinearly.
    PREPROCESSING: ClassVar[dict[str, Any]] = {**VitfPyramidConfig.PREPROCESSING, "resample": "bilinear"}

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "nest_tiny_s196_224": {**_TINY},
        "nest_small_s196_224": {**_SMALL},
        "nest_base_s196_224": {**_BASE},
        "nest_tiny_s16_32": {**_CIFAR, "hidden_sizes": [192] * 4, "num_heads": [3] * 4},
        "nest_small_s16_32": {**_CIFAR, "hidden_sizes": [384] * 4, "num_heads": [6] * 4},
        "nest_base_s16_32": {**_CIFAR, "hidden_sizes": [768] * 4, "num_heads": [12] * 4},
        "nest_tiny_jx": {**_TINY, **_JX},
        "nest_small_jx": {**_SMALL, **_JX},
        "nest_base_jx": {**_BASE, **_JX},
        "nest_tiny": {**_TINY, **_TIMM},
        "nest_small": {**_SMALL, **_TIMM},
        "nest_base": {**_BASE, **_TIMM},
    }

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384)
    depths: list[int] | tuple[int, ...] = (2, 2, 8)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12)
    block_size: int = 14
    attention_type: Literal["multi_head", "multi_query"] = "multi_head"
    qkv_bias: bool = True
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu_pytorch_tanh"
    pool_padding: Literal["same", "symmetric"] = "same"

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        if self.block_size < 1:
            raise ValueError(f"VitfNestConfig: block_size={self.block_size} must be at least 1")
        check_divides(self, "num_heads", "hidden_sizes")


__all__ = ["VitfNestConfig"]
