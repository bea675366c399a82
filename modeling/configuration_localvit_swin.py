"""Configuration of LocalViT (Li et al., "LocalViT: Bringing Locality to Vision Transformers", arXiv 2104.05707) on the
body of Swin."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_localvit import check_squeezes
from .configuration_swin import VitfSwinConfig


@strict
class VitfLocalvitSwinConfig(VitfSwinConfig):
    r"""
    A Swin whose feed-forward layers look across the borders of windows. Differs from ViT by stages of attention within
    shifted windows, and by feed-forward layers that are inverted residual blocks over the map, without a LayerNorm
    before them.

    Args:
        hidden_act (`str`, *optional*, defaults to `"hardswish"`): Activation of the feed-forward layers.
        channel_attention (`str`, *optional*, defaults to `"se"`):
            What weights the channels inside a feed-forward layer, as in [`VitfLocalvitConfig`]: `"se"`, `"eca"`,
            `"eca_hard"` or `"none"`.
        se_reductions (`list[int]`, *optional*, defaults to `[24, 48, 96, 192]`): For each stage, channels inside a
            feed-forward layer over those that `"se"` squeezes them to; the original has a quarter of `hidden_sizes`.

    The other fields are those of [`VitfSwinConfig`]; `drop_path_rate` and dropout do not act on the feed-forward
    layers.
    """

    model_type = "vitf_localvit_swin"
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfSwinConfig.PER_STAGE, "se_reductions")

    # ofsoundof/LocalViT@f497260 models/localvit_swin.py.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {"localvit_swin_tiny_patch4_window7_224": {"drop_path_rate": 0.1}}

    hidden_act: str = "hardswish"
    channel_attention: Literal["none", "se", "eca", "eca_hard"] = "se"
    se_reductions: list[int] | tuple[int, ...] = (24, 48, 96, 192)

    def validate_squeezes(self):
        self.validate_stages()
        check_squeezes(self, "se_reductions", self.se_reductions, self.inner_channels)

    @property
    def inner_channels(self) -> list[int]:
        """Channels inside a feed-forward layer of each stage."""
        return [int(self.mlp_ratio * width) for width in self.hidden_sizes]


__all__ = ["VitfLocalvitSwinConfig"]
