"""Configuration of MViT for images (Fan et al., "Multiscale Vision Transformers", arXiv 2104.11227; Li et al., "MViTv2:
Improved Multiscale Vision Transformers for Classification and Detection", arXiv 2112.01526)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig, check_divides, pair

# What the first version does otherwise than the second.
V1 = {
    "use_cls_token": True,
    "position_embedding_type": "absolute",
    "query_pooling": "stage_start",
    "residual_pooling": False,
    "dim_mul_in_att": False,
}
DEPTHS_24 = [2, 3, 16, 3]
LARGE = {
    "hidden_sizes": [144, 288, 576, 1152],
    "depths": [2, 6, 36, 4],
    "num_heads": [2, 4, 8, 16],
    # So in the published files and in arXiv 2112.01526, table 1; SlowFast's configuration of the video model says
    # otherwise.
    "dim_mul_in_att": False,
}
_BASE = {"depths": DEPTHS_24, "drop_path_rate": 0.3}
# facebookresearch/mvit@dfbdfdf names the files without their arguments; these are from timm 1.0.31
# timm/models/mvitv2.py.
_21K = {"use_cls_token": True, "num_labels": 19168}


@strict
class VitfMvitConfig(VitfPyramidConfig):
    r"""
    Multiscale Vision Transformer, for images. Differs from ViT by attention whose queries, keys and values are pooled
    over the map, which so gets smaller, and wider, from stage to stage.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4):
            Distance of neighbouring patches, in pixels; a patch is twice as large less one pixel.
        hidden_sizes (`list[int]`, *optional*, defaults to `[96, 192, 384, 768]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[1, 2, 11, 2]`): Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[1, 2, 4, 8]`): Heads of each stage; divide its channels.
        kv_strides (`list[int]`, *optional*, defaults to `[4, 2, 1, 1]`):
            Tokens, in height and in width, that become one key and one value in each stage.
        kv_kernel_sizes (`list[int]`, *optional*, defaults to `[3, 3, 3, 3]`): Height and width of the convolution that
            does so, odd, in tokens. Where it and the stride are 1 there is none.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layers over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layers.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        use_cls_token (`bool`, *optional*, defaults to `False`):
            Whether a class token is read by the classifier, which takes the mean of the patches otherwise.
        position_embedding_type (`str`, *optional*, defaults to `"relative"`): `"relative"`: each layer adds to its
            scores what the query makes of the distance to the key along each axis (MViTv2); `"absolute"`: a learned
            position is added to each patch (MViT).
        query_pooling (`str`, *optional*, defaults to `"every_layer"`): Layers with a convolution over the queries:
            `"every_layer"`, or those at a `"stage_start"`, which halve the map.
        residual_pooling (`bool`, *optional*, defaults to `True`): Whether pooled queries are added to what they attend
        to. residual_cls_token (`bool`, *optional*, defaults to `False`):
            Whether the class token's query is added as well (timm 1.0.31 models/mvitv2.py); the authors leave it out.
        dim_mul_in_att (`bool`, *optional*, defaults to `True`): Whether the attention of the first layer of a stage
            widens the tokens, or before it the last feed-forward layer of the stage before it, so that each stage hands
            over tokens of the next one's width.
        final_layernorm (`str`, *optional*, defaults to `"tokens"`): What the classifier reads: of the normed `"tokens"`
            the class token or the mean; or the norm of what is `"pooled"`, the mean of the patches, class token or not
            (MaskFeat, arXiv 2112.09133; `MVIT.USE_MEAN_POOLING` of PySlowFast).

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_mvit"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "kv_strides", "kv_kernel_sizes")

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        # facebookresearch/SlowFast@287ec00 configs/ImageNet/MVIT_B_16_CONV.yaml
        "mvit_base_16": {**V1},
        # facebookresearch/mvit@dfbdfdf configs/
        "mvitv2_tiny": {"depths": [1, 2, 5, 2]},
        "mvitv2_small": {},
        "mvitv2_base": {**_BASE},
        "mvitv2_large": {**LARGE, "drop_path_rate": 0.5},
        "mvitv2_base_cls": {**_BASE, **_21K},
        "mvitv2_large_cls": {**LARGE, **_21K, "dim_mul_in_att": True, "drop_path_rate": 0.5},
        "mvitv2_huge_cls": {
            "hidden_sizes": [192, 384, 768, 1536],
            "depths": [4, 8, 60, 8],
            "num_heads": [3, 6, 12, 24],
            **_21K,
            "drop_path_rate": 0.8,
        },
    }

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (1, 2, 11, 2)
    num_heads: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    kv_strides: list[int] | tuple[int, ...] = (4, 2, 1, 1)
    kv_kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 3, 3)
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    use_cls_token: bool = False
    position_embedding_type: Literal["relative", "absolute"] = "relative"
    query_pooling: Literal["every_layer", "stage_start"] = "every_layer"
    residual_pooling: bool = True
    residual_cls_token: bool = False
    dim_mul_in_att: bool = True
    final_layernorm: Literal["tokens", "pooled"] = "tokens"
    drop_path_rate: float | int = 0.1

    def validate_geometry(self):
        self.validate_stages()
        check_divides(self, "num_heads", "hidden_sizes")
        if any(size % 2 == 0 for size in self.kv_kernel_sizes):
            raise ValueError(f"{type(self).__name__}: kv_kernel_sizes={self.kv_kernel_sizes} must be odd")

    @property
    def stage_channels(self) -> list[int]:
        ends = self.hidden_sizes if self.dim_mul_in_att else [*self.hidden_sizes[1:], self.hidden_sizes[-1]]
        return [self.hidden_sizes[0], *ends]

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Rows and columns of the tokens of the first stage, at the configured size."""
        return self.feature_map_sizes(*pair(self.image_size))[0]

    def pool_kernel(self, size: int) -> tuple[int, ...]:
        """The kernel of a convolution over the map of `size` x `size` tokens."""
        return (size, size)


__all__ = ["VitfMvitConfig"]
