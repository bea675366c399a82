"""
Configuration of Swin V2 (Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_swin import BASE, LARGE, SMALL, TINY, check_windows
from .configuration_vitf import VitfPyramidConfig

# Section 4.1 of arXiv 2111.09883; configs/swinv2/ of microsoft/Swin-Transformer@f82860b.
_22K = {"image_size": 192, "window_size": 12, "num_labels": 21841, "drop_path_rate": 0.2}
_FINE_TUNED = {"pretrained_window_sizes": [12, 12, 12, 6], "drop_path_rate": 0.2}
_384 = {"image_size": 384, "window_size": 24, "crop_pct": 1.0}


@strict
class VitfSwinv2Config(VitfPyramidConfig):
    r"""
    Swin Transformer V2. Differs from Swin by norms after each branch, attention by the cosine of queries and keys, and
    a bias that a small network makes of the logarithm of the distance, so that windows can grow after pretraining.

    Args:
        image_size (`int` or `(int, int)`, *optional*, defaults to 256): Height and width in pixels.
        hidden_sizes (`list[int]`, *optional*, defaults to `[96, 192, 384, 768]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 6, 2]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[3, 6, 12, 24]`): Heads of each stage.
        window_size (`int`, *optional*, defaults to 8):
            Side of a window, in tokens. A stage whose map is not larger has one window of its own size, which is not
            shifted.
        pretrained_window_sizes (`list[int]`, *optional*, defaults to `[0, 0, 0, 0]`):
            Side of a window in each stage, in tokens, when the bias was learned; 0 where that is the side now.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        qkv_bias (`bool`, *optional*, defaults to `True`): Bias of queries and values; keys have none.
        use_absolute_embeddings (`bool`, *optional*, defaults to `False`):
            Whether patches also get a learned absolute position.
        patch_norm (`bool`, *optional*, defaults to `True`): Whether there is a norm after the patch embedding.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every LayerNorm.

    The other fields are those of [`VitfPyramidConfig`].
    """

    model_type = "vitf_swinv2"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "pretrained_window_sizes")

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "swinv2_tiny_patch4_window8_256": {**TINY},
        "swinv2_small_patch4_window8_256": {**SMALL},
        "swinv2_base_patch4_window8_256": {**BASE},
        "swinv2_tiny_patch4_window16_256": {**TINY, "window_size": 16},
        "swinv2_small_patch4_window16_256": {**SMALL, "window_size": 16},
        "swinv2_base_patch4_window16_256": {**BASE, "window_size": 16},
        # Pretrained on ImageNet-22k, with the head of its classes.
        "swinv2_base_patch4_window12_192_22k": {**BASE, **_22K},
        "swinv2_large_patch4_window12_192_22k": {**LARGE, **_22K},
        # Pretrained there, then fine-tuned with larger windows.
        "swinv2_base_patch4_window12to16_192to256": {**BASE, **_FINE_TUNED, "window_size": 16},
        "swinv2_base_patch4_window12to24_192to384": {**BASE, **_FINE_TUNED, **_384},
        "swinv2_large_patch4_window12to16_192to256": {**LARGE, **_FINE_TUNED, "window_size": 16},
        "swinv2_large_patch4_window12to24_192to384": {**LARGE, **_FINE_TUNED, **_384},
    }

    image_size: int | list[int] | tuple[int, int] = 256
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 8
    pretrained_window_sizes: list[int] | tuple[int, ...] = (0, 0, 0, 0)
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    use_absolute_embeddings: bool = False
    patch_norm: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    def validate_windows(self):
        check_windows(self)


__all__ = ["VitfSwinv2Config"]
