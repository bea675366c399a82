"""Configuration of LocalViT (Li et al., "LocalViT: Bringing Locality to Vision Transformers", arXiv 2104.05707) on the
body of TNT (Han et al., "Transformer in Transformer", arXiv 2103.00112)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_localvit import VitfLocalvitConfig
from .configuration_vitf import check_divides, pair


@strict
class VitfLocalvitTntConfig(VitfLocalvitConfig):
    r"""
    A TNT whose feed-forward layers look at the neighbours of a patch. Differs from ViT by a second transformer in every
    layer, on the pixel tokens within each patch, which it adds to that patch; and by feed-forward layers that are
    inverted residual blocks over the map of patches, without a LayerNorm before them, which the class token passes by.

    Args:
        num_attention_heads (`int`, *optional*, defaults to 3): Heads among patches; must divide `hidden_size`.
        pixel_hidden_size (`int`, *optional*, defaults to 12): Width of a pixel token, in channels.
        num_pixel_attention_heads (`int`, *optional*, defaults to 3):
            Heads among the pixel tokens of a patch; must divide `pixel_hidden_size`.
        pixel_mlp_ratio (`float`, *optional*, defaults to 4.0):
            Width of the feed-forward layers of pixel tokens over `pixel_hidden_size`.
        pixel_hidden_act (`str`, *optional*, defaults to `"gelu"`): Their activation.
        pixel_stride (`int`, *optional*, defaults to 4):
            Distance of pixel tokens, in pixels; must divide `patch_size`. Each is made of 7 x 7 pixels.
        qkv_bias (`bool`, *optional*, defaults to `False`): Whether queries, keys and values have a bias.

    The other fields are those of [`VitfLocalvitConfig`]; `drop_path_rate` and dropout do not act on the
    feed-forward layers over the map.
    """

    model_type = "vitf_localvit_tnt"

    # ofsoundof/LocalViT@f497260 models/localvit_tnt.py.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "localvit_tnt_t_patch16_224": {},
        "localvit_tnt_s_patch16_224": {
            "hidden_size": 384,
            "num_attention_heads": 6,
            "pixel_hidden_size": 24,
            "num_pixel_attention_heads": 4,
            "se_reduction": 384,
        },
    }

    num_attention_heads: int = 3
    pixel_hidden_size: int = 12
    num_pixel_attention_heads: int = 3
    pixel_mlp_ratio: float | int = 4.0
    pixel_hidden_act: str = "gelu"
    pixel_stride: int = 4
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-5

    def validate_pixels(self):
        check_divides(self, "num_pixel_attention_heads", "pixel_hidden_size")
        check_divides(self, "pixel_stride", "patch_size")

    @property
    def pixel_grid(self) -> tuple[int, int]:
        """Rows and columns of the pixel tokens of a patch."""
        return tuple(side // self.pixel_stride for side in pair(self.patch_size))


__all__ = ["VitfLocalvitTntConfig"]
