"""Configuration of CrossViT (Chen et al., "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification", arXiv 2103.14899)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides, pair

# Kernel size, stride and padding of the three convolutions of convolutional patches, by the size of the patch.
CONVOLUTIONS = {
    12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
    16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}

# Table 1 of arXiv 2103.14899; IBM/CrossViT@3f7ab77 models/crossvit.py. The numbers in the names are those of the large
# branch.
_TINY = {"hidden_sizes": [96, 192], "num_heads": [3, 3]}
_BASE = {"hidden_sizes": [384, 768], "num_heads": [12, 12]}
_9 = {"hidden_sizes": [128, 256], "num_heads": [4, 4], "depths": [[1, 3]] * 3, "mlp_ratios": [3, 3]}
_15 = {"depths": [[1, 5]] * 3, "mlp_ratios": [3, 3]}
_18 = {"hidden_sizes": [224, 448], "num_heads": [7, 7], "depths": [[1, 6]] * 3, "mlp_ratios": [3, 3]}
_DAGGER = {"patch_embedding_type": "convolutional"}
_AT_384 = {"image_size": 408, "large_branch_scale": [16, 17]}


@strict
class VitfCrossvitConfig(VitfConfig):
    r"""
    Two branches with patches of different size. Differs from ViT in that the small branch cuts the image into small
    patches, the large branch a scaled copy into large ones, and at the end of each stage the class token of either
    branch attends to the patches of the other. Lists of two numbers are of the small and of the large branch.

    Args:
        large_branch_scale (`[int, int]`, *optional*, defaults to `[14, 15]`): Side of the image that the large branch
            sees over the side that the small one sees, as numerator and denominator; the side is rounded to whole
            patches. `image_size` is what the small branch sees.
        input_resizing (`str`, *optional*, defaults to `"native"`): `"native"`: the small branch sees an image as it is,
            and positions are resized to it. `"fixed"`: every image is resized to `image_size`, as the original does;
            feature maps then have the same size for all images. At `image_size` both are the same.
        patch_sizes (`[int, int]`, *optional*, defaults to `[12, 16]`): Height and width of a patch, in pixels.
        patch_embedding_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, or `"convolutional"`: three convolutions, for patches of 12 and 16 pixels (the paper's dagger).
        hidden_sizes (`[int, int]`, *optional*, defaults to `[192, 384]`): Width of a token, in channels. depths (`list`
        of `[int, int]`, *optional*, defaults to three times `[1, 4]`): Layers of each stage. num_heads (`[int, int]`,
        *optional*, defaults to `[6, 6]`): Heads; must divide `hidden_sizes`. mlp_ratios (`[float, float]`, *optional*,
        defaults to `[4, 4]`): Width of the feed-forward layer over that of a token. hidden_act (`str`, *optional*,
        defaults to `"gelu"`): Activation. qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and
        values have a bias.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_crossvit"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "stages.*.layers.*.*": "free_full_weight",
        "stages.*.fusions.*": "free_full_weight",
    }

    # Names are those of the paper and its code, though the images have 240 and 408 pixels a side.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "crossvit_tiny_224": {**_TINY},
        "crossvit_small_224": {},
        "crossvit_base_224": {**_BASE},
        "crossvit_9_224": {**_9},
        "crossvit_15_224": {**_15},
        "crossvit_18_224": {**_18},
        "crossvit_9_dagger_224": {**_9, **_DAGGER},
        "crossvit_15_dagger_224": {**_15, **_DAGGER},
        "crossvit_15_dagger_384": {**_15, **_DAGGER, **_AT_384},
        "crossvit_18_dagger_224": {**_18, **_DAGGER},
        "crossvit_18_dagger_384": {**_18, **_DAGGER, **_AT_384},
    }

    image_size: int | list[int] | tuple[int, int] = 240
    large_branch_scale: list[int] | tuple[int, int] = (14, 15)
    input_resizing: Literal["native", "fixed"] = "native"
    patch_sizes: list[int] | tuple[int, int] = (12, 16)
    patch_embedding_type: Literal["linear", "convolutional"] = "linear"
    hidden_sizes: list[int] | tuple[int, int] = (192, 384)
    depths: list[list[int]] | tuple[tuple[int, int], ...] = ((1, 4), (1, 4), (1, 4))
    num_heads: list[int] | tuple[int, int] = (6, 6)
    mlp_ratios: list[float | int] | tuple[float | int, float | int] = (4, 4)
    hidden_act: str = "gelu"
    qkv_bias: bool = True

    def __post_init__(self, **kwargs):
        for name in ("large_branch_scale", "patch_sizes", "hidden_sizes", "num_heads", "mlp_ratios"):
            setattr(self, name, list(getattr(self, name)))
        self.depths = [list(stage) for stage in self.depths]
        super().__post_init__(**kwargs)

    def validate_geometry(self):
        for name in ("large_branch_scale", "patch_sizes", "hidden_sizes", "num_heads", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 2 or min(values) <= 0:
                raise ValueError(f"VitfCrossvitConfig: {name}={values} must be two positive numbers")
        if not self.depths or any(len(stage) != 2 or min(stage) <= 0 for stage in self.depths):
            raise ValueError(f"VitfCrossvitConfig: depths={self.depths} must be two positive numbers for each stage")
        check_divides(self, "num_heads", "hidden_sizes")
        if any(side % self.patch_sizes[0] for side in pair(self.image_size)):
            raise ValueError(
                f"VitfCrossvitConfig: image_size={self.image_size} is not a multiple of the first of "
                f"patch_sizes={self.patch_sizes}"
            )
        if self.patch_embedding_type == "convolutional" and not set(self.patch_sizes) <= set(CONVOLUTIONS):
            raise ValueError(
                f"VitfCrossvitConfig: patch_embedding_type='convolutional' needs patch_sizes of {list(CONVOLUTIONS)}, "
                f"not {self.patch_sizes}"
            )

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages: transformers counts hidden states by this name, and each stage gives one."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of both branches: models that contain an encoder read the width of its outputs by this name."""
        return sum(self.hidden_sizes)

    @property
    def size_multiple(self) -> tuple[int, int]:
        return (1, 1) if self.input_resizing == "fixed" else self.stage_strides[0]

    @property
    def stage_channels(self) -> list[int]:
        return [self.hidden_sizes[0]] * len(self.stage_names)

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        """The strides of the small branch, whose patches are the feature maps."""
        return [pair(self.patch_sizes[0])] * len(self.stage_names)

    def branch_image_size(self, branch: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that a branch, 0 or 1, sees of an image of `height` x `width` pixels."""
        if self.input_resizing == "fixed":
            height, width = pair(self.image_size)
        if branch == 0:
            return height, width
        numerator, denominator = self.large_branch_scale
        patch = self.patch_sizes[1]

        def scaled(side: int) -> int:
            # In whole numbers, which compilers can follow where the size is not known beforehand.
            return max(1, (2 * side * numerator + denominator * patch) // (2 * denominator * patch)) * patch

        return scaled(height), scaled(width)

    @property
    def pooler_output_size(self) -> int:
        return sum(self.hidden_sizes)

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        return super().feature_map_sizes(*self.branch_image_size(0, height, width))


__all__ = ["VitfCrossvitConfig"]
