"""Configuration of TimeSformer (Bertasius et al., "Is Space-Time Attention All You Need...?", arXiv 2102.05095)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfVideoConfig, check_divides

# facebookresearch/TimeSformer@a5ef29a configs/: frames and the distance between them, size in pixels. The frames of
# Something-Something were files of 30 a second (timesformer/datasets/DATASET.md).
_HR = {"num_frames": 16, "image_size": 448}
_K400 = {"num_labels": 400, "frame_sampling": "dense_from_start", "sampling_rate": 32}
_K600 = {**_K400, "num_labels": 600}
_SSV2 = {"num_labels": 174, "frame_sampling": "segments"}
_HOWTO100M = {"num_labels": 1059, "frame_sampling": "dense_from_start", "sampling_rate": 32}


@strict
class VitfTimesformerConfig(VitfVideoConfig):
    r"""
    TimeSformer: ViT on the patches of all frames of a clip. Differs from ViT by its attention, which each layer divides
    into one over time, at each place of the frame, and one over space, in each frame.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layer.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        attention_type (`str`, *optional*, defaults to `"divided_space_time"`):
            `"divided_space_time"`; `"joint_space_time"`, one attention over all patches of the clip; or `"space_only"`,
            one in each frame, whose tokens are averaged over time in the end.

    The other fields are those of [`VitfVideoConfig`].
    """

    model_type = "vitf_timesformer"

    # timesformer/config/defaults.py; one clip with three crops, whose logits utils/meters.py adds up.
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfVideoConfig.PREPROCESSING,
        "crop_pct": 1.0,
        "image_mean": (0.45, 0.45, 0.45),
        "image_std": (0.225, 0.225, 0.225),
        "resample": "bilinear",
        "num_crops": 3,
    }
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "timesformer_base_k400": {**_K400},
        "timesformer_hr_k400": {**_HR, **_K400, "sampling_rate": 16},
        "timesformer_large_k400": {"num_frames": 96, **_K400, "sampling_rate": 4},
        "timesformer_base_k600": {**_K600},
        "timesformer_hr_k600": {**_HR, **_K600, "sampling_rate": 16},
        "timesformer_large_k600": {"num_frames": 96, **_K600, "sampling_rate": 4},
        "timesformer_base_ssv2": {**_SSV2},
        "timesformer_hr_ssv2": {**_HR, **_SSV2},
        "timesformer_large_ssv2": {"num_frames": 64, **_SSV2},
        # As many clips as cover a video of ten minutes.
        "timesformer_8_howto100m": {**_HOWTO100M, "num_views": 48},
        "timesformer_32_howto100m": {"num_frames": 32, **_HOWTO100M, "num_views": 12},
        "timesformer_64_howto100m": {"num_frames": 64, **_HOWTO100M, "num_views": 6},
        "timesformer_96_howto100m": {"num_frames": 96, **_HOWTO100M, "num_views": 4},
        "timesformer_space_only_k400": {"attention_type": "space_only", **_K400},
        "timesformer_joint_k400": {"attention_type": "joint_space_time", **_K400},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    attention_type: Literal["divided_space_time", "joint_space_time", "space_only"] = "divided_space_time"
    # timesformer/models/vit.py: the default, which every published model was trained with.
    drop_path_rate: float | int = 0.1

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")


__all__ = ["VitfTimesformerConfig"]
