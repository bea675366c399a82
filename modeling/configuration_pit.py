"""Configuration of PiT (Heo et al., "Rethinking Spatial Dimensions of Vision Transformers", arXiv 2103.16302)."""

from itertools import pairwise
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides, pair

# Table 1 of arXiv 2103.16302; naver-ai/pit@9d97a62 pit.py.
_TI = {"base_dims": [32, 32, 32]}
_XS = {"base_dims": [48, 48, 48]}
_S = {"base_dims": [48, 48, 48], "num_heads": [3, 6, 12]}
_B = {"base_dims": [64, 64, 64], "num_heads": [4, 8, 16], "depths": [3, 6, 4], "patch_size": 14, "stride": 7}


@strict
class VitfPitConfig(VitfConfig):
    r"""
    Pooling-based Vision Transformer. Differs from ViT by stages: between them a depth-wise convolution halves the map
    of patch tokens and widens it, and a linear layer widens the class token. Patches overlap; only they have positions.

    Args:
        distilled (`bool`, *optional*, defaults to `False`):
            Whether there are a distillation token and its head, as in DeiT.
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        stride (`int` or `(int, int)`, *optional*, defaults to 8):
            Distance of neighbouring patches, in pixels; must divide `patch_size`.
        base_dims (`list[int]`, *optional*, defaults to `[48, 48, 48]`):
            Channels of a head in each stage; a stage is `base_dims * num_heads` wide, a multiple of the stage before.
        depths (`list[int]`, *optional*, defaults to `[2, 6, 4]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[2, 4, 8]`): Heads of each stage.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.

    The other fields are those of [`VitfConfig`]. `drop_path_rate` would be that of the layer after the last one.
    """

    model_type = "vitf_pit"
    # Evaluation loops gather every output of a model: the mean of the heads is what they need.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cls_logits", "distillation_logits"]
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "pit_ti": {**_TI},
        "pit_xs": {**_XS},
        "pit_s": {**_S},
        "pit_b": {**_B},
        "pit_ti_distilled": {**_TI, "distilled": True},
        "pit_xs_distilled": {**_XS, "distilled": True},
        "pit_s_distilled": {**_S, "distilled": True},
        "pit_b_distilled": {**_B, "distilled": True},
    }

    distilled: bool = False
    patch_size: int | list[int] | tuple[int, int] = 16
    stride: int | list[int] | tuple[int, int] = 8
    base_dims: list[int] | tuple[int, ...] = (48, 48, 48)
    depths: list[int] | tuple[int, ...] = (2, 6, 4)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8)
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"

    def __post_init__(self, **kwargs):
        for name in ("base_dims", "depths", "num_heads"):
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_geometry(self):
        check_divides(self, "stride", "patch_size", "image_size")
        if any(image < patch for image, patch in zip(pair(self.image_size), pair(self.patch_size), strict=True)):
            raise ValueError(
                f"VitfPitConfig: image_size={self.image_size} is smaller than patch_size={self.patch_size}"
            )
        if not len(self.base_dims) == len(self.depths) == len(self.num_heads) > 0:
            raise ValueError(
                f"VitfPitConfig: base_dims={self.base_dims}, depths={self.depths} and num_heads={self.num_heads} must "
                f"have one entry for each stage"
            )
        widths = self.stage_channels
        if any(wide % narrow for narrow, wide in pairwise(widths)):
            raise ValueError(
                f"VitfPitConfig: base_dims * num_heads = {widths[1:]}: each must be a multiple of the one before"
            )

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages: transformers counts hidden states by this name, and each stage gives one."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage: models that contain an encoder read the width of its output by this name."""
        return self.stage_channels[-1]

    @property
    def stage_channels(self) -> list[int]:
        widths = [width * heads for width, heads in zip(self.base_dims, self.num_heads, strict=True)]
        return [widths[0], *widths]

    @property
    def smallest_size(self) -> tuple[int, int]:
        return pair(self.patch_size)  # patches overlap: one of them is larger than the stride

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        rows, columns = pair(self.stride)
        return [(rows, columns), *((rows * 2**stage, columns * 2**stage) for stage in range(len(self.depths)))]

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        patch, stride = pair(self.patch_size), pair(self.stride)
        sizes = [tuple((side - p) // s + 1 for side, p, s in zip((height, width), patch, stride, strict=True))] * 2
        for _ in self.depths[1:]:  # a pooling of an odd side rounds up
            sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
        return sizes


__all__ = ["VitfPitConfig"]
