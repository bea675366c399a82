"""Configuration of LocalViT (Li et al., "LocalViT: Bringing Locality to Vision Transformers", arXiv 2104.05707)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides


@strict
class VitfLocalvitConfig(VitfConfig):
    r"""
    A DeiT whose feed-forward layers look at the neighbours of a patch. Differs from ViT by feed-forward layers that are
    inverted residual blocks over the map of patches (1x1, depth-wise 3x3 and 1x1 convolutions with batch norm, and
    squeeze-and-excitation), without a LayerNorm before them; the class token passes them by.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 192): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 4): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Channels inside a feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"hardswish"`): Activation of the feed-forward layers.
        channel_attention (`str`, *optional*, defaults to `"se"`):
            What weights the channels inside a feed-forward layer by their mean over the map: `"se"`,
            squeeze-and-excitation (arXiv 1709.01507); `"eca"`, a convolution over neighbouring channels (arXiv
            1910.03151); `"eca_hard"`, the same with a hard sigmoid; `"none"`.
        se_reduction (`int`, *optional*, defaults to 192): Channels inside a feed-forward layer over those that `"se"`
            squeezes them to.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.

    The other fields are those of [`VitfConfig`]; `drop_path_rate` and dropout do not act on the feed-forward layers.
    """

    model_type = "vitf_localvit"

    # ofsoundof/LocalViT@f497260 models/localvit.py: the names tell mlp_ratio, activation and reduction.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "localvit_tiny_mlp6_act1": {"mlp_ratio": 6, "hidden_act": "relu6", "channel_attention": "none"},
        "localvit_tiny_mlp4_act3_r4": {"se_reduction": 4},
        "localvit_tiny_mlp4_act3_r192": {},
        "localvit_small_mlp4_act3_r384": {"hidden_size": 384, "num_attention_heads": 8, "se_reduction": 384},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 192
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    mlp_ratio: float | int = 4.0
    hidden_act: str = "hardswish"
    channel_attention: Literal["none", "se", "eca", "eca_hard"] = "se"
    se_reduction: int = 192
    qkv_bias: bool = True

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_squeezes(self, "se_reduction", [self.se_reduction], [self.inner_channels])

    @property
    def inner_channels(self) -> int:
        """Channels inside a feed-forward layer."""
        return int(self.mlp_ratio * self.hidden_size)


def check_squeezes(config: VitfConfig, field: str, reductions: list[int], inner_channels: list[int]) -> None:
    """Raises a ValueError that names the field when `"se"` cannot squeeze the channels inside a feed-forward layer."""
    if config.channel_attention != "se":
        return
    for reduction, channels in zip(reductions, inner_channels, strict=True):
        if not 0 < reduction <= channels:
            raise ValueError(
                f"{type(config).__name__}: {field}={getattr(config, field)} is not between 1 and the {channels} "
                f"channels inside a feed-forward layer"
            )


__all__ = ["VitfLocalvitConfig"]
