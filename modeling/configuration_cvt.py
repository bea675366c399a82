"""Configuration of CvT (Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides, pair

# Table 2 of arXiv 2103.15808; microsoft/CvT@f851e68 experiments/imagenet/cvt/*.yaml.
_21 = {"depths": [1, 4, 16]}
_W24 = {"hidden_sizes": [192, 768, 1024], "num_heads": [3, 12, 16], "depths": [2, 2, 20], "drop_path_rate": 0.3}
# The whole image is resized to the very size.
_384 = {"image_size": 384, "crop_pct": None}


@strict
class VitfCvtConfig(VitfPyramidConfig):
    r"""
    CvT. Differs from ViT by convolutions: overlapping ones make the tokens of each of three stages, and depth-wise ones
    stand before the projections of queries, keys and values. There are no positions, and a class token only in the
    last stage.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4):
            Stride of the convolution that makes the tokens of the first stage, in pixels. That of the others is 2.
        patch_kernel_sizes (`list[int]`, *optional*, defaults to `[7, 3, 3]`): Kernels of these convolutions, in cells.
        patch_paddings (`list[int]`, *optional*, defaults to `[2, 1, 1]`): Their padding, in cells.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 192, 384]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[1, 2, 10]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[1, 3, 6]`): Heads of each stage.
        kernel_size (`int`, *optional*, defaults to 3): Kernel of the depth-wise convolutions, in tokens; odd.
        kv_stride (`int`, *optional*, defaults to 2): Stride of those before keys and values, in tokens.
        qkv_bias (`bool`, *optional*, defaults to `True`): Bias of queries, keys and values.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"quick_gelu"`):
            Activation. The published weights were trained with this one, though transformers' CvT runs them with
            `"gelu"`.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Of the last layer, rising linearly from 0 within the last stage; the stages before have none.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_cvt"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "patch_kernel_sizes", "patch_paddings")

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "cvt_13": {},
        "cvt_21": {**_21},
        "cvt_13_384": {**_384},
        "cvt_21_384": {**_21, **_384},
        "cvt_w24_384": {**_W24, **_384},
    }

    patch_kernel_sizes: list[int] | tuple[int, ...] = (7, 3, 3)
    patch_paddings: list[int] | tuple[int, ...] = (2, 1, 1)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 192, 384)
    depths: list[int] | tuple[int, ...] = (1, 2, 10)
    num_heads: list[int] | tuple[int, ...] = (1, 3, 6)
    kernel_size: int = 3
    kv_stride: int = 2
    qkv_bias: bool = True
    mlp_ratio: float | int = 4.0
    hidden_act: str = "quick_gelu"
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-5

    def validate_geometry(self):
        check_divides(self, "num_heads", "hidden_sizes")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"VitfCvtConfig: kernel_size={self.kernel_size} is not odd")

    @property
    def patch_strides(self) -> list[tuple[int, int]]:
        """(vertical, horizontal) stride of the convolution that makes the tokens of each stage."""
        return [pair(self.patch_size), *[(2, 2)] * (len(self.depths) - 1)]

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        sizes, sides = [], (height, width)
        for kernel, padding, strides in zip(
            self.patch_kernel_sizes, self.patch_paddings, self.patch_strides, strict=True
        ):
            sides = tuple(
                (side + 2 * padding - kernel) // stride + 1 for side, stride in zip(sides, strides, strict=True)
            )
            sizes.append(sides)
        return [sizes[0], *sizes]


__all__ = ["VitfCvtConfig"]
