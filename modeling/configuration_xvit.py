"""Configuration of X-ViT (Bulat et al., "Space-time Mixing Attention for Video Transformer", arXiv 2106.05968)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import HALF_MEAN, HALF_STD, VitfVideoConfig, check_divides

# 1adrianb/video-transformers@82ca176 configs/. The released code makes eight embeddings in time however many frames
# there are.
_KINETICS = {"segment_size": 8, "shift_div": 8, "time_embedding_period": 8, "sampling_rate": 16}
# Nothing says at which rate the frames of Something-Something were stored: they are those of the file.
_SSV2 = {
    "segment_size": 16,
    "shift_div": 4,
    "time_embedding_period": 8,
    "frame_sampling": "segments",
    "sampling_fps": None,
    "num_views": 2,
}


@strict
class VitfXvitConfig(VitfVideoConfig):
    r"""
    X-ViT: ViT on each frame of a clip. Differs from ViT by its attention, in which some channels of the keys and values
    come from the next and the previous frame, and by attention over the class tokens of the frames in the end.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layer.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        segment_size (`int`, *optional*, defaults to 8):
            Frames of a segment; keys and values are mixed among neighbours within it. A clip of more frames has
            several.
        shift_div (`int`, *optional*, defaults to 8): One in so many channels of keys and values comes from the next
            frame, and one from the previous one; at least 2.
        mixing_layers (`list[int]`, *optional*): Layers that mix, from 0; by default all.
        time_embedding_period (`int`, *optional*):
            Frames after which the embeddings in time begin again. By default each of `num_frames` has its own, and
            other numbers of frames take the nearest one's.
        temporal_pooling (`str`, *optional*, defaults to `"attention"`): How the class tokens of the frames become one:
            `"attention"`, layers over them and another class token; or `"mean"`.
        num_temporal_layers (`int`, *optional*, defaults to 1): Layers over the frames' class tokens; their queries,
            keys and values have no bias.
        num_temporal_heads (`int`, *optional*): Heads of these; by default `num_attention_heads`.
        temporal_layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of their norms, and of that of the
        head. classifier_hidden_size (`int`, *optional*): Width of the head's hidden layer, which follows attention over
        frames; by
            default `hidden_size`.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.5):
            Dropout of the class tokens of the frames, and before the head's last layer.

    The other fields are those of [`VitfVideoConfig`].
    """

    model_type = "vitf_xvit"

    # slowfast/datasets: frames in [-1, 1], 3 crops of the short side; logits are added up.
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfVideoConfig.PREPROCESSING,
        "crop_pct": 1.0,
        "image_mean": HALF_MEAN,
        "image_std": HALF_STD,
        "resample": "bilinear",
        "frame_sampling": "dense_from_start",
        "num_crops": 3,
    }
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "xvit_base_16_k600": {**_KINETICS, "num_labels": 600},
        "xvit_base_16_ssv2": {**_SSV2, "num_labels": 174},
        "xvit_base_16_k400": {**_KINETICS, "num_labels": 400},
    }

    num_frames: int = 16
    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    segment_size: int = 8
    shift_div: int = 8
    mixing_layers: list[int] | tuple[int, ...] | None = None
    time_embedding_period: int | None = None
    temporal_pooling: Literal["attention", "mean"] = "attention"
    num_temporal_layers: int = 1
    num_temporal_heads: int | None = None
    temporal_layer_norm_eps: float = 1e-5
    classifier_hidden_size: int | None = None
    classifier_dropout_prob: float | int = 0.5

    def __post_init__(self, **kwargs):
        if self.num_temporal_heads is None:
            self.num_temporal_heads = self.num_attention_heads
        if self.classifier_hidden_size is None:
            self.classifier_hidden_size = self.hidden_size
        super().__post_init__(**kwargs)

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_divides(self, "num_temporal_heads", "hidden_size")

    def validate_mixing(self):
        for name, least in (("segment_size", 1), ("shift_div", 2), ("time_embedding_period", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"VitfXvitConfig: {name}={value} is less than {least}")
        for layer in self.mixing_layers or ():
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(
                    f"VitfXvitConfig: mixing_layers={list(self.mixing_layers)} names layer {layer}, there are "
                    f"{self.num_hidden_layers} from 0"
                )


__all__ = ["VitfXvitConfig"]
