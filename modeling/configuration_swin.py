"""
Configuration of Swin (Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv
2103.14030).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides

# Sizes, also those of Swin V2: section 3.3 of arXiv 2103.14030; configs/swin/ of microsoft/Swin-Transformer@f82860b.
TINY = {"drop_path_rate": 0.2}
SMALL = {"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}
BASE = {
    "hidden_sizes": [128, 256, 512, 1024],
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "drop_path_rate": 0.5,
}
LARGE = {
    "hidden_sizes": [192, 384, 768, 1536],
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "drop_path_rate": 0.2,
}
_384 = {"window_size": 12, "image_size": 384, "crop_pct": 1.0}
_22K = {"num_labels": 21841}


@strict
class VitfSwinConfig(VitfPyramidConfig):
    r"""
    Swin Transformer. Differs from ViT by stages of ever larger patches, and by attention within square windows, which
    in every second layer are shifted by half their side; scores have a learned bias by relative position.

    Args:
        hidden_sizes (`list[int]`, *optional*, defaults to `[96, 192, 384, 768]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 6, 2]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[3, 6, 12, 24]`): Heads of each stage.
        window_size (`int`, *optional*, defaults to 7):
            Side of a window, in tokens. A stage whose map is not larger has one window of its own size, which is not
            shifted.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        qkv_bias (`bool`, *optional*, defaults to `True`): Bias of the query, key and value projection.
        qk_scale (`float`, *optional*): Factor of the scores; one over the root of a head's width by default.
        use_absolute_embeddings (`bool`, *optional*, defaults to `False`):
            Whether patches also get a learned absolute position.
        patch_norm (`bool`, *optional*, defaults to `True`): Whether there is a norm after the patch embedding.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every LayerNorm.

    The other fields are those of [`VitfPyramidConfig`].
    """

    model_type = "vitf_swin"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "swin_tiny_patch4_window7_224": {**TINY},
        "swin_small_patch4_window7_224": {**SMALL},
        "swin_base_patch4_window7_224": {**BASE},
        "swin_base_patch4_window12_384": {**BASE, **_384},
        "swin_large_patch4_window7_224": {**LARGE},
        "swin_large_patch4_window12_384": {**LARGE, **_384},
        "swin_tiny_c24_patch4_window8_256": {
            **TINY,
            "num_heads": [4, 8, 16, 32],
            "window_size": 8,
            "image_size": 256,
        },
        # Pretrained on ImageNet-22k, with the head of its classes.
        "swin_tiny_patch4_window7_224_22k": {**TINY, **_22K, "drop_path_rate": 0.1},
        "swin_small_patch4_window7_224_22k": {**SMALL, **_22K, "drop_path_rate": 0.2},
        "swin_base_patch4_window7_224_22k": {**BASE, **_22K, "drop_path_rate": 0.2},
        "swin_base_patch4_window12_384_22k": {**BASE, **_384, **_22K, "drop_path_rate": 0.2},
        "swin_large_patch4_window7_224_22k": {**LARGE, **_22K},
        "swin_large_patch4_window12_384_22k": {**LARGE, **_384, **_22K},
    }

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | list[int] | tuple[int, ...] = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    use_absolute_embeddings: bool = False
    patch_norm: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    def validate_windows(self):
        check_windows(self)


def stage_windows(config: VitfPyramidConfig) -> list[int]:
    """Side of the windows of each stage, in tokens, where the map is large enough."""
    size = config.window_size
    return [size] * len(config.depths) if isinstance(size, int) else list(size)


def check_windows(config: VitfPyramidConfig) -> None:
    """
    Raises a ValueError that names the fields when there can be no windows, or heads do not divide a stage's channels.
    """
    windows = stage_windows(config)
    if len(windows) != len(config.depths) or min(windows, default=1) < 1:
        raise ValueError(
            f"{type(config).__name__}: window_size={config.window_size} must be at least 1, one number or one for "
            f"each of the {len(config.depths)} stages"
        )
    check_divides(config, "num_heads", "hidden_sizes")


__all__ = ["VitfSwinConfig"]
