"""Configuration of Twins (Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers",
arXiv 2104.13840)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides

_PCPVT = {
    "hidden_sizes": [64, 128, 320, 512],
    "num_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
    "attention_pattern": ["global"],
}


@strict
class VitfTwinsConfig(VitfPyramidConfig):
    r"""
    Twins. Differs from ViT by four stages and by positions that a depth-wise convolution generates in each of them.
    Twins-SVT attends within windows and to a smaller map in turn; Twins-PCPVT attends to a smaller map in every layer,
    as PVT.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4):
            Height and width of a patch of the first stage, in pixels; each further stage merges 2 x 2 tokens.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 256, 512]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 10, 4]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[2, 4, 8, 16]`): Heads of each stage; divide its channels.
        mlp_ratios (`list[float]`, *optional*, defaults to `[4, 4, 4, 4]`):
            Width of the feed-forward layers of each stage over that of the stage.
        sr_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            Tokens, in height and in width, that become one key of global attention in each stage.
        window_sizes (`list[int]`, *optional*, defaults to `[7, 7, 7, 7]`):
            Tokens, in height and in width, of the windows of local attention in each stage.
        attention_pattern (`list[str]`, *optional*, defaults to `["local", "global"]`): The attention of the layers of a
            stage, repeated from its first one on: `"local"`, within windows, or `"global"`, to a smaller map.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        conv_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the LayerNorms after convolutions, of patches and of keys; `layer_norm_eps` is that of the
            others.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_twins"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "mlp_ratios", "sr_ratios", "window_sizes")

    # Meituan-AutoML/Twins@c1ff671 gvt.py (there alt_gvt_... and pcpvt_..._v0); tables 1 and 2 of arXiv 2104.13840.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "twins_pcpvt_small": {**_PCPVT, "depths": [3, 4, 6, 3]},
        "twins_pcpvt_base": {**_PCPVT, "depths": [3, 4, 18, 3]},
        "twins_pcpvt_large": {**_PCPVT, "depths": [3, 8, 27, 3]},
        "twins_svt_small": {},
        "twins_svt_base": {
            "hidden_sizes": [96, 192, 384, 768],
            "num_heads": [3, 6, 12, 24],
            "depths": [2, 2, 18, 2],
        },
        "twins_svt_large": {
            "hidden_sizes": [128, 256, 512, 1024],
            "num_heads": [4, 8, 16, 32],
            "depths": [2, 2, 18, 2],
        },
    }

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 10, 4)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (4, 4, 4, 4)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    window_sizes: list[int] | tuple[int, ...] = (7, 7, 7, 7)
    attention_pattern: list[Literal["local", "global"]] | tuple[Literal["local", "global"], ...] = ("local", "global")
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    conv_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        self.attention_pattern = list(self.attention_pattern)
        super().__post_init__(**kwargs)

    def validate_heads(self):
        self.validate_stages()
        check_divides(self, "num_heads", "hidden_sizes")
        if not self.attention_pattern:
            raise ValueError("VitfTwinsConfig: attention_pattern is empty; it names 'local' or 'global' for each layer")

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        # What is over at the border is left out, as the original does.
        return [(height // rows, width // columns) for rows, columns in self.stage_strides]


__all__ = ["VitfTwinsConfig"]
