"""
Configuration of PVT v2 (Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", arXiv 2106.13797).
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides


@strict
class VitfPvtV2Config(VitfPyramidConfig):
    r"""
    Pyramid Vision Transformer v2. Differs from ViT by four stages with attention to a smaller map, as in PVT; in place
    of positions and class token, patches overlap and feed-forward layers hold a depth-wise convolution.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4): Distance of neighbouring patches of the first
            stage, in pixels. A patch is twice as large less one pixel; each further stage merges 3 x 3 tokens at a
            distance of 2.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 2, 2]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[1, 2, 5, 8]`): Heads of each stage; divide its channels.
        mlp_ratios (`list[float]`, *optional*, defaults to `[8, 8, 4, 4]`):
            Width of the feed-forward layers of each stage over that of the stage.
        sr_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            Tokens, in height and in width, that become one key in each stage.
        linear_attention (`bool`, *optional*, defaults to `False`):
            Whether all stages attend to a map pooled to 7 x 7 tokens, and feed-forward layers have a ReLU before their
            convolution; `sr_ratios` is not used then.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        conv_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the LayerNorms after convolutions, of patches and of keys; `layer_norm_eps` is that of the
            others.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_pvt_v2"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "mlp_ratios", "sr_ratios")

    # whai362/PVT@57e2dfa classification/pvt_v2.py; table 1 of arXiv 2106.13797.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "pvt_v2_b0": {"hidden_sizes": [32, 64, 160, 256]},
        "pvt_v2_b1": {},
        "pvt_v2_b2": {"depths": [3, 4, 6, 3]},
        "pvt_v2_b2_li": {"depths": [3, 4, 6, 3], "linear_attention": True},
        "pvt_v2_b3": {"depths": [3, 4, 18, 3]},
        "pvt_v2_b4": {"depths": [3, 8, 27, 3]},
        "pvt_v2_b5": {"depths": [3, 6, 40, 3], "mlp_ratios": [4, 4, 4, 4]},
    }

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    num_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (8, 8, 4, 4)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    linear_attention: bool = False
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    conv_norm_eps: float = 1e-5

    def validate_heads(self):
        self.validate_stages()
        check_divides(self, "num_heads", "hidden_sizes")


__all__ = ["VitfPvtV2Config"]
