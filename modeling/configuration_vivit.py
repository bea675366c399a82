"""Configuration of ViViT (Arnab et al., "ViViT: A Video Vision Transformer", arXiv 2103.15691)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import HALF_MEAN, HALF_STD, VitfVideoConfig, check_divides

# google-research/scenic@4a38d47 projects/vivit/configs. Sizes: section 4.1 of the paper.
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14}
_FACTORISED_ENCODER = {"attention_type": "factorised_encoder"}
# The configurations of Kinetics have as many layers over time as over space; the paper has 4 everywhere.
_LARGE_FACTORISED_ENCODER = {**_LARGE, **_FACTORISED_ENCODER, "num_temporal_layers": 24}
_K400 = {"num_labels": 400}
_K600 = {"num_labels": 600}


@strict
class VitfVivitConfig(VitfVideoConfig):
    r"""
    ViViT: ViT on a clip that is cut into tubelets, patches that reach over several frames. Differs from ViT by these,
    and by how `attention_type` factorises attention over space and time: the four models of the paper.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a tubelet, in pixels.
        tubelet_size (`int`, *optional*, defaults to 2): Frames of a tubelet.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers; of a factorised encoder, those over space.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`): Activation of the feed-forward layer.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        attention_type (`str`, *optional*, defaults to `"joint_space_time"`):
            `"joint_space_time"` (model 1): one attention over all tubelets. `"factorised_encoder"` (model 2): layers
            within each group of frames, then a second encoder over what was pooled of each.
            `"factorised_self_attention"` (model 3): each layer attends over time and over space.
            `"factorised_dot_product"` (model 4): the first half of the heads of each layer attends over time, the
            second half over space.
        attention_order (`str`, *optional*, defaults to `"time_space"`):
            Which attention of a layer of model 3 comes first: `"time_space"` or `"space_time"`.
        pooling (`str`, *optional*, defaults to `"cls"`): What the head reads: `"cls"`, a class token, or `"mean"`, the
            average over the tubelets, without class tokens. Models 3 and 4 need `"mean"`.
        num_temporal_layers (`int`, *optional*, defaults to 4): Layers over time of a factorised encoder.
        num_temporal_heads (`int`, *optional*): Heads of these; by default `num_attention_heads`. temporal_mlp_ratio
        (`float`, *optional*): Feed-forward width of these over `hidden_size`; by default `mlp_ratio`.
        representation_size (`int`, *optional*): Width of the tanh layer before the head ("pre_logits"); none by
        default. tubelet_initialization (`str`, *optional*, defaults to `"central_frame"`):
            How `from_image_model` makes the filters of tubelets of those of patches: `"central_frame"`, which leaves
            the others zero, or `"average_frame"`, which inflates the filter over all frames and divides it by their
            number.

    The other fields are those of [`VitfVideoConfig`].
    """

    model_type = "vitf_vivit"

    # Frames in [-1, 1]; 4 clips of 32 frames, every second one, with 3 crops, whose logits are averaged (section 4.1).
    # Files of Kinetics have 25 frames a second there; the rate of the other sets is not published, and frames are those
    # of the file.
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfVideoConfig.PREPROCESSING,
        "image_mean": HALF_MEAN,
        "image_std": HALF_STD,
        "resample": "bilinear",
        "frame_sampling": "strided",
        "sampling_rate": 2,
        "sampling_fps": 25,
        "crop_rounding": "down",
        "num_views": 4,
        "num_crops": 3,
    }
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "vivit_base_16x2_k400": {**_K400},
        "vivit_base_16x2_fe_k400": {**_FACTORISED_ENCODER, **_K400},
        "vivit_base_16x2_fsa_k400": {"attention_type": "factorised_self_attention", "pooling": "mean", **_K400},
        "vivit_base_16x2_fdp_k400": {"attention_type": "factorised_dot_product", "pooling": "mean", **_K400},
        "vivit_large_16x2_fe_k400": {**_LARGE_FACTORISED_ENCODER, **_K400},
        "vivit_large_16x2_fe_k600": {**_LARGE_FACTORISED_ENCODER, **_K600},
        # 300 nouns, then 97 verbs, in one head.
        "vivit_large_16x2_fe_epic_kitchens": {
            **_LARGE,
            **_FACTORISED_ENCODER,
            "num_labels": 397,
            "sampling_rate": 1,
            "sampling_fps": None,
            "num_crops": 1,
        },
        "vivit_large_16x2_fe_ssv2": {
            **_LARGE,
            **_FACTORISED_ENCODER,
            "image_size": 256,
            "num_labels": 174,
            "crop_pct": 256 / 288,
            "sampling_rate": 1,
            "sampling_fps": None,
        },
        "vivit_huge_14x2_k400": {**_HUGE, **_K400},
    }

    num_frames: int = 32
    patch_size: int | list[int] | tuple[int, int] = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu_pytorch_tanh"
    qkv_bias: bool = True
    attention_type: Literal[
        "joint_space_time", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"
    ] = "joint_space_time"
    attention_order: Literal["time_space", "space_time"] = "time_space"
    pooling: Literal["cls", "mean"] = "cls"
    num_temporal_layers: int = 4
    num_temporal_heads: int | None = None
    temporal_mlp_ratio: float | int | None = None
    representation_size: int | None = None
    tubelet_initialization: Literal["central_frame", "average_frame"] = "central_frame"

    def __post_init__(self, **kwargs):
        if self.num_temporal_heads is None:
            self.num_temporal_heads = self.num_attention_heads
        if self.temporal_mlp_ratio is None:
            self.temporal_mlp_ratio = self.mlp_ratio
        super().__post_init__(**kwargs)

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "tubelet_size", "num_frames")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_divides(self, "num_temporal_heads", "hidden_size")

    def validate_attention(self):
        if self.attention_type in ("factorised_self_attention", "factorised_dot_product") and self.pooling != "mean":
            raise ValueError(f"VitfVivitConfig: attention_type={self.attention_type!r} needs pooling='mean'")
        if self.attention_type == "factorised_dot_product" and self.num_attention_heads % 2:
            raise ValueError(
                f"VitfVivitConfig: attention_type='factorised_dot_product' needs an even number of heads, "
                f"not num_attention_heads={self.num_attention_heads}"
            )

    @property
    def frame_stride(self) -> int:
        return self.tubelet_size

    @property
    def pooler_output_size(self) -> int:
        return self.representation_size or self.hidden_size


__all__ = ["VitfVivitConfig"]
