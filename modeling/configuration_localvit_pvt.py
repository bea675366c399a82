"""Configuration of LocalViT (Li et al., "LocalViT: Bringing Locality to Vision Transformers", arXiv 2104.05707) on the
body of PVT."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_localvit import check_squeezes
from .configuration_pvt import VitfPvtConfig


@strict
class VitfLocalvitPvtConfig(VitfPvtConfig):
    r"""
    A PVT whose feed-forward layers look at the neighbours of a patch. Differs from ViT by stages of attention to a
    smaller map, and by feed-forward layers that are inverted residual blocks over the map, without a LayerNorm before
    them; the class token passes them by.

    Args:
        hidden_act (`str`, *optional*, defaults to `"hardswish"`): Activation of the feed-forward layers.
        channel_attention (`str`, *optional*, defaults to `"se"`):
            What weights the channels inside a feed-forward layer, as in [`VitfLocalvitConfig`]: `"se"`, `"eca"`,
            `"eca_hard"` or `"none"`.
        se_reductions (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`): For each stage, channels inside a
            feed-forward layer over those that `"se"` squeezes them to; the original has `hidden_sizes`.

    The other fields are those of [`VitfPvtConfig`]; `drop_path_rate` and dropout do not act on the feed-forward layers.
    """

    model_type = "vitf_localvit_pvt"
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPvtConfig.PER_STAGE, "se_reductions")

    # ofsoundof/LocalViT@f497260 models/localvit_pvt.py.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {"localvit_pvt_tiny": {}}

    hidden_act: str = "hardswish"
    channel_attention: Literal["none", "se", "eca", "eca_hard"] = "se"
    se_reductions: list[int] | tuple[int, ...] = (64, 128, 320, 512)

    def validate_squeezes(self):
        self.validate_stages()
        check_squeezes(self, "se_reductions", self.se_reductions, self.inner_channels)

    @property
    def inner_channels(self) -> list[int]:
        """Channels inside a feed-forward layer of each stage."""
        return [int(ratio * width) for ratio, width in zip(self.mlp_ratios, self.hidden_sizes, strict=True)]


__all__ = ["VitfLocalvitPvtConfig"]
