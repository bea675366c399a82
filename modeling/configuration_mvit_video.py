"""Configuration of MViT for clips (Fan et al., "Multiscale Vision Transformers", arXiv 2104.11227; Li et al., "MViTv2:
Improved Multiscale Vision Transformers for Classification and Detection", arXiv 2112.01526)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_mvit import DEPTHS_24, LARGE, V1, VitfMvitConfig
from .configuration_vitf import IMAGENET_MEAN, IMAGENET_STD, VitfVideoConfig

_16X4 = {"num_frames": 16, "sampling_rate": 4}
_32X3 = {"num_frames": 32, "sampling_rate": 3}
_K400 = {"num_labels": 400, "frame_sampling": "dense", "num_views": 5}
_K600 = {**_K400, "num_labels": 600}
# With three crops frames are scaled to the size of the crop. They were files of 30 a second
# (slowfast/datasets/DATASET.md).
_SSV2 = {"num_labels": 174, "frame_sampling": "segments", "sampling_rate": 1, "num_crops": 3, "crop_pct": 1.0}
_V2_BASE = {"depths": DEPTHS_24, "drop_path_rate": 0.3}
_V2_LARGE = {**LARGE, "num_frames": 40, "image_size": 312, "drop_path_rate": 0.4}
# One kernel for all strides was not yet in use: it is the stride plus one, and one frame long.
_V1_24 = {**V1, "depths": DEPTHS_24, "kv_kernel_sizes": [9, 5, 3, 1], "pool_kernel_frames": 1, "drop_path_rate": 0.3}


@strict
class VitfMvitVideoConfig(VitfVideoConfig, VitfMvitConfig):
    r"""
    Multiscale Vision Transformer, for clips. Differs from ViT as [`VitfMvitConfig`], with maps that have a time axis,
    along which they keep their length.

    Args:
        tubelet_size (`int`, *optional*, defaults to 2):
            Distance of neighbouring patches in time, in frames; a patch is twice as long less one frame.
        pool_kernel_frames (`int`, *optional*, defaults to 3):
            Length in time of the convolutions that pool, odd, in tokens.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.5): Dropout before the classifier.

    The other fields are those of [`VitfVideoConfig`] and [`VitfMvitConfig`]; by default there is a class token.
    Absolute positions are the sum of one in space and one in time.
    """

    model_type = "vitf_mvit_video"

    # facebookresearch/SlowFast@287ec00: slowfast/config/defaults.py, utils/meters.py sums what the softmax of the head
    # gives.
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfVideoConfig.PREPROCESSING,
        "image_mean": (0.45, 0.45, 0.45),
        "image_std": (0.225, 0.225, 0.225),
        "resample": "bilinear",
        "view_average": "softmax",
    }
    # configs/Kinetics and configs/SSv2.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "mvit_base_16x4_k400": {**V1, **_16X4, **_K400},
        # facebookresearch/pytorchvideo@f3142bb; SlowFast gives this name to the model of 24 layers.
        "mvit_base_32x3_k400": {**V1, **_32X3, **_K400},
        "mvit_base24_32x3_k400": {**_V1_24, **_32X3, **_K400},
        "mvit_base24_32x3_k600": {**_V1_24, **_32X3, **_K600},
        "mvitv2_small_16x4_k400": {**_16X4, **_K400},
        "mvitv2_base_32x3_k400": {**_V2_BASE, **_32X3, **_K400},
        "mvitv2_large_40x3_k400": {
            **_V2_LARGE,
            **_K400,
            "sampling_rate": 3,
            "num_crops": 3,
            "crop_pct": 1.0,
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
        },
        "mvitv2_small_16_ssv2": {**_16X4, **_SSV2},
        "mvitv2_base_32_ssv2": {**_V2_BASE, **_32X3, **_SSV2},
        # Its frames were normalised as BGR and only then turned around.
        "mvitv2_large_40_ssv2": {
            **_V2_LARGE,
            **_SSV2,
            "image_mean": IMAGENET_MEAN[::-1],
            "image_std": IMAGENET_STD[::-1],
        },
    }

    num_frames: int = 16
    tubelet_size: int = 2
    pool_kernel_frames: int = 3
    classifier_dropout_prob: float | int = 0.5
    kv_strides: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    use_cls_token: bool = True
    drop_path_rate: float | int = 0.2

    def validate_time(self):
        if self.pool_kernel_frames % 2 == 0:
            raise ValueError(f"VitfMvitVideoConfig: pool_kernel_frames={self.pool_kernel_frames} must be odd")

    @property
    def frame_stride(self) -> int:
        return self.tubelet_size

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Groups of frames, rows and columns of the tokens of the first stage, at the configured size."""
        return (-(-self.num_frames // self.tubelet_size), *super().token_grid)

    def pool_kernel(self, size: int) -> tuple[int, ...]:
        return (self.pool_kernel_frames, *super().pool_kernel(size))


__all__ = ["VitfMvitVideoConfig"]
