"""Configuration of RegionViT (Chen et al., "RegionViT: Regional-to-Local Attention", arXiv 2106.02689)."""

from itertools import pairwise
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides, pair

# Table 1 of arXiv 2106.02689; IBM/RegionViT@77000c2 regionvit/regionvit.py.
_TINY = {}
_SMALL = {"hidden_sizes": [96, 192, 384, 768], "num_heads": [3, 6, 12, 24]}
_MEDIUM = {**_SMALL, "depths": [2, 2, 14, 2], "patch_conv_type": "1conv"}
_BASE = {**_MEDIUM, "hidden_sizes": [128, 256, 512, 1024], "num_heads": [4, 8, 16, 32]}
_PLUS = {"window_sizes": [14, 14, 14, 14]}


@strict
class VitfRegionvitConfig(VitfPyramidConfig):
    r"""
    Regional-to-local vision transformer. Differs from ViT by two kinds of tokens: local tokens of small patches, and a
    regional token for each window of them. In a layer the regional tokens attend to each other, then each to the local
    tokens of its window and these to it. Both maps are halved between stages. The classifier reads the mean of the
    regional tokens.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4): Distance of neighbouring local tokens, in pixels.
        window_sizes (`list[int]`, *optional*, defaults to `[7, 7, 7, 7]`):
            Height and width of a regional token's window in each stage, in local tokens.
        patch_conv_type (`str`, *optional*, defaults to `"3conv"`): What makes local tokens: `"3conv"`, three
            convolutions, of which two halve the map (`patch_size` 4 only), or `"1conv"`, one over patches that
            overlap.
        peg (`bool`, *optional*, defaults to `False`):
            Whether a depth-wise convolution gives both maps positions after the first layer of each stage (the PEG of
            arXiv 2102.10882).
        stage_norms (`bool`, *optional*, defaults to `False`):
            Whether each stage ends with a norm of the local tokens, as the original's detectors have it.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.

    The other fields are those of [`VitfPyramidConfig`].
    """

    model_type = "vitf_regionvit"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "window_sizes")

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "regionvit_tiny_224": {**_TINY},
        "regionvit_small_224": {**_SMALL},
        "regionvit_medium_224": {**_MEDIUM},
        "regionvit_base_224": {**_BASE},
        # The paper's "+" forms.
        "regionvit_small_w14_224": {**_SMALL, **_PLUS},
        "regionvit_small_w14_peg_224": {**_SMALL, **_PLUS, "peg": True},
        "regionvit_base_w14_224": {**_BASE, **_PLUS},
        "regionvit_base_w14_peg_224": {**_BASE, **_PLUS, "peg": True},
    }

    depths: list[int] | tuple[int, ...] = (2, 2, 8, 2)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    window_sizes: list[int] | tuple[int, ...] = (7, 7, 7, 7)
    patch_conv_type: Literal["1conv", "3conv"] = "3conv"
    peg: bool = False
    stage_norms: bool = False
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"

    def validate_geometry(self):
        if self.patch_conv_type == "3conv" and pair(self.patch_size) != (4, 4):
            raise ValueError(
                f"VitfRegionvitConfig: patch_size={self.patch_size} does not fit patch_conv_type='3conv', which takes 4"
            )
        if min(self.window_sizes) < 1 or len(set(self.window_sizes)) > 1:
            # A window is what one regional token stands for, in every stage.
            raise ValueError(f"VitfRegionvitConfig: window_sizes={self.window_sizes} must be equal, and at least 1")
        check_divides(self, "num_heads", "hidden_sizes")
        if any(wide % narrow for narrow, wide in pairwise(self.hidden_sizes)):
            raise ValueError(
                f"VitfRegionvitConfig: hidden_sizes={self.hidden_sizes}: each must be a multiple of the one before"
            )

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        patch = pair(self.patch_size)
        if self.patch_conv_type == "3conv":
            size = tuple((side + stride - 1) // stride for side, stride in zip((height, width), patch, strict=True))
        else:  # a window of two patches, of which all but one pixel are padding at the border
            size = tuple((side - 2) // stride + 1 for side, stride in zip((height, width), patch, strict=True))
        sizes = [size, size]
        for _ in self.depths[1:]:
            sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
        return sizes


__all__ = ["VitfRegionvitConfig"]
