"""Configuration of PVT (Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions", arXiv 2102.12122)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides, pair


@strict
class VitfPvtConfig(VitfPyramidConfig):
    r"""
    Pyramid Vision Transformer. Differs from ViT by four stages, each of which merges the tokens of the one before it,
    and by attention to a map that a convolution made smaller; the class token joins in the last stage.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4):
            Height and width of a patch of the first stage, in pixels; each further stage merges 2 x 2 tokens.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 2, 2]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[1, 2, 5, 8]`): Heads of each stage; divide its channels.
        mlp_ratios (`list[float]`, *optional*, defaults to `[8, 8, 4, 4]`):
            Width of the feed-forward layers of each stage over that of the stage.
        sr_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            Tokens, in height and in width, that become one key in each stage; 1 in the last one, with the class token.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        conv_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the LayerNorms after convolutions, of patches and of keys; `layer_norm_eps` is that of the
            others.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_pvt"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "mlp_ratios", "sr_ratios")

    # whai362/PVT@57e2dfa classification/pvt.py; table 1 of arXiv 2102.12122. No weights of the last one were published.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "pvt_tiny": {},
        "pvt_small": {"depths": [3, 4, 6, 3]},
        "pvt_medium": {"depths": [3, 4, 18, 3]},
        "pvt_large": {"depths": [3, 8, 27, 3]},
        "pvt_huge_v2": {
            "hidden_sizes": [128, 256, 512, 768],
            "num_heads": [2, 4, 8, 12],
            "depths": [3, 10, 60, 3],
        },
    }

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    num_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (8, 8, 4, 4)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    conv_norm_eps: float = 1e-5

    def validate_geometry(self):
        self.validate_stages()
        check_divides(self, "num_heads", "hidden_sizes")
        if self.sr_ratios[-1] != 1:
            raise ValueError(
                f"{type(self).__name__}: sr_ratios={self.sr_ratios} must end with 1: the class token is on no map to "
                f"reduce"
            )
        grid = self.feature_map_sizes(*pair(self.image_size))[-1]
        if 0 in grid:
            raise ValueError(
                f"{type(self).__name__}: image_size={self.image_size} is smaller than the last stage's stride, "
                f"{self.stage_strides[-1]}"
            )

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        # What is over at the border is left out, as the original does.
        return [(height // rows, width // columns) for rows, columns in self.stage_strides]


__all__ = ["VitfPvtConfig"]
