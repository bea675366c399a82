"""The same model in other libraries: what the benchmark compares with ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..conversion_scripts.vit_pytorch import constructor_arguments
from ..errors import UserError
from ..modeling.configuration_crossvit import VitfCrossvitConfig
from ..modeling.configuration_pit import VitfPitConfig
from ..modeling.configuration_swin import VitfSwinConfig
from ..modeling.configuration_swinv2 import VitfSwinv2Config
from ..modeling.configuration_vitf import VitfConfig, pair


def _timm(name: str, config: VitfConfig) -> nn.Module:
    import timm

    timm_name = TIMM_NAMES.get(name, name)
    if not timm.is_model(timm_name):
        raise UserError(f"timm has no model named {timm_name!r}")
    kwargs: dict[str, Any] = {"num_classes": config.num_labels, "in_chans": config.num_channels}
    if (
        getattr(config, "hidden_act", "gelu") == "gelu_pytorch_tanh"
    ):  # a slower kernel than the exact GELU of timm's default
        kwargs["act_layer"] = "gelu_tanh"
    return timm.create_model(timm_name, img_size=pair(config.image_size), **kwargs)


def _timm_of_any_size(name: str, config: VitfConfig) -> nn.Module:
    """A model of timm's that is not built for one size of images."""
    import timm

    return timm.create_model(name, num_classes=config.num_labels, in_chans=config.num_channels)


def _transformers_vit(name: str, config: VitfConfig) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_native_vit_fields(config)))


def _transformers_deit(name: str, config: VitfConfig) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    if not config.distilled:
        return _transformers_vit(name, config)
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**_native_vit_fields(config)))


def _transformers_timesformer(name: str, config: VitfConfig) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    fields = {
        **_native_vit_fields(config),
        "image_size": pair(config.image_size)[0],
        "patch_size": pair(config.patch_size)[0],
    }
    # Its drop_path_rate is a whole number: it stays 0.
    return TimesformerForVideoClassification(
        TimesformerConfig(
            num_frames=config.num_frames,
            attention_type=config.attention_type,
            **fields,
        )
    )


def _transformers_vivit(name: str, config: VitfConfig) -> nn.Module:
    from transformers import VivitConfig, VivitForVideoClassification

    if config.attention_type != "joint_space_time":
        raise UserError(f"transformers' ViViT has only joint attention, not {config.attention_type}")
    fields = _native_vit_fields(config)
    del fields["patch_size"]
    tubelet_size = [config.tubelet_size, *pair(config.patch_size)]
    return VivitForVideoClassification(VivitConfig(num_frames=config.num_frames, tubelet_size=tubelet_size, **fields))


def _native_vit_fields(config: VitfConfig) -> dict[str, Any]:
    same = "hidden_size num_hidden_layers num_attention_heads hidden_act image_size patch_size num_channels qkv_bias"
    fields = {key: getattr(config, key) for key in (*same.split(), "layer_norm_eps", "num_labels")}
    return {**fields, "intermediate_size": round(config.mlp_ratio * config.hidden_size)}


def _transformers_levit(name: str, config: VitfConfig) -> nn.Module:
    from transformers import LevitConfig, LevitForImageClassificationWithTeacher

    stages = len(config.depths)
    fields = {
        key: getattr(config, key) for key in ("image_size", "num_channels", "hidden_sizes", "depths", "num_labels")
    }
    return LevitForImageClassificationWithTeacher(
        LevitConfig(num_attention_heads=config.num_heads, key_dim=[config.key_dim] * stages, **fields)
    )


def _transformers_pvt(name: str, config: VitfConfig) -> nn.Module:
    from transformers import PvtConfig, PvtForImageClassification

    return PvtForImageClassification(
        PvtConfig(
            image_size=pair(config.image_size)[0],
            sequence_reduction_ratios=config.sr_ratios,
            num_attention_heads=config.num_heads,
            **_native_pyramid_fields(config),
        )
    )


def _transformers_pvt_v2(name: str, config: VitfConfig) -> nn.Module:
    from transformers import PvtV2Config, PvtV2ForImageClassification

    return PvtV2ForImageClassification(
        PvtV2Config(
            image_size=config.image_size,
            sr_ratios=config.sr_ratios,
            num_attention_heads=config.num_heads,
            linear_attention=config.linear_attention,
            **_native_pyramid_fields(config),
        )
    )


def _native_pyramid_fields(config: VitfConfig) -> dict[str, Any]:
    same = "num_channels depths hidden_sizes mlp_ratios hidden_act qkv_bias layer_norm_eps num_labels"
    return {key: getattr(config, key) for key in same.split()}


def _transformers_swin(name: str, config: VitfConfig) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig(**_native_swin_fields(config)))


def _transformers_swinv2(name: str, config: VitfConfig) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    fields = _native_swin_fields(config)
    return Swinv2ForImageClassification(Swinv2Config(**fields, pretrained_window_sizes=config.pretrained_window_sizes))


def _native_swin_fields(config: VitfConfig) -> dict[str, Any]:
    same = "image_size patch_size num_channels depths num_heads window_size mlp_ratio qkv_bias hidden_act num_labels"
    return {**{key: getattr(config, key) for key in same.split()}, "embed_dim": config.hidden_sizes[0]}


def _transformers_cvt(name: str, config: VitfConfig) -> nn.Module:
    from transformers import CvtConfig, CvtForImageClassification

    return CvtForImageClassification(
        CvtConfig(
            num_channels=config.num_channels,
            embed_dim=config.hidden_sizes,
            num_heads=config.num_heads,
            depth=config.depths,
            num_labels=config.num_labels,
        )
    )


def _vit_pytorch_cvt(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.cvt import CvT

    # It has no class token, exact GELU, one width of heads, and projects keys and values together.
    stages = {
        f"s{stage + 1}_{key}": values[stage]
        for stage in range(3)
        for key, values in (("emb_dim", config.hidden_sizes), ("heads", config.num_heads), ("depth", config.depths))
    }
    return CvT(num_classes=config.num_labels, channels=config.num_channels, **stages)


def _vit_pytorch_vit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch import SimpleViT, ViT

    arguments = constructor_arguments(config)
    if getattr(config, "position_embedding_type", None) == "sincos_simple":
        return SimpleViT(**arguments)
    # DeiT always has a class token, and reads it.
    return ViT(**arguments, pool="cls" if getattr(config, "use_cls_token", True) else "mean")


def _vit_pytorch_rvt(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.rvt import RvT

    return RvT(
        **constructor_arguments(config),
        use_rotary=config.position_embedding_type == "rotary",
        use_ds_conv=config.query_projection == "conv",
        use_glu=config.mlp_type == "gated",
    )


def _vit_pytorch_cct(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.cct import CCT

    return CCT(
        img_size=pair(config.image_size),
        embedding_dim=config.hidden_size,
        n_conv_layers=config.num_conv_layers,
        kernel_size=config.kernel_size,
        stride=config.stride,
        padding=config.padding,
        pooling_kernel_size=config.pooling_kernel_size,
        pooling_stride=config.pooling_stride,
        pooling_padding=config.pooling_padding,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_labels,
        positional_embedding={"learned": "learnable"}.get(
            config.position_embedding_type, config.position_embedding_type
        ),
    )


def _vit_pytorch_cait(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.cait import CaiT

    arguments = constructor_arguments(config)
    del arguments["channels"]  # it reads three
    return CaiT(**arguments, cls_depth=config.num_class_attention_layers)


def _vit_pytorch_pit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.pit import PiT

    # Its stages double in width and share one width of heads and feed-forward layers: those of the first stage.
    return PiT(
        image_size=pair(config.image_size)[0],
        patch_size=pair(config.patch_size)[0],
        num_classes=config.num_labels,
        dim=config.stage_channels[0],
        depth=tuple(config.depths),
        heads=tuple(config.num_heads),
        mlp_dim=round(config.mlp_ratio * config.stage_channels[0]),
        dim_head=config.base_dims[0],
        channels=config.num_channels,
    )


def _vit_pytorch_t2t_vit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.t2t import T2TViT

    # Its tokenizer keeps the width of unfolded windows: the nearest there is, and heavier.
    return T2TViT(
        image_size=pair(config.image_size)[0],
        num_classes=config.num_labels,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        dim_head=config.hidden_size // config.num_attention_heads,
        mlp_dim=round(config.mlp_ratio * config.hidden_size),
        channels=config.num_channels,
    )


def _vit_pytorch_deepvit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.deepvit import DeepViT

    # It re-attends in every layer, normalises the maps over the heads, and has only linear patches.
    return DeepViT(**constructor_arguments(config))


def _vit_pytorch_crossvit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.cross_vit import CrossViT

    # It sees one image at both patch sizes, adds class tokens to their old ones and has only linear patches.
    small, large = (
        {
            "dim": config.hidden_sizes[branch],
            "patch_size": config.patch_sizes[branch],
            "enc_depth": config.depths[0][branch],
            "enc_heads": config.num_heads[branch],
            "enc_mlp_dim": round(config.mlp_ratios[branch] * config.hidden_sizes[branch]),
            "enc_dim_head": config.hidden_sizes[branch] // config.num_heads[branch],
        }
        for branch in (0, 1)
    )
    return CrossViT(
        image_size=pair(config.image_size)[0],
        num_classes=config.num_labels,
        **{f"sm_{key}": value for key, value in small.items()},
        **{f"lg_{key}": value for key, value in large.items()},
        cross_attn_depth=1,
        cross_attn_heads=config.num_heads[1],
        cross_attn_dim_head=config.hidden_sizes[1] // config.num_heads[1],
        depth=len(config.depths),
        channels=config.num_channels,
    )


def _timm_nest(name: str, config: VitfConfig) -> nn.Module:
    import timm
    from timm.layers import get_act_layer

    if config.attention_type != "multi_head":
        raise UserError("timm has no NesT with one key and value for all heads")
    return timm.models.nest.Nest(
        img_size=pair(config.image_size),
        in_chans=config.num_channels,
        patch_size=pair(config.patch_size)[0],
        num_levels=len(config.depths),
        embed_dims=tuple(config.hidden_sizes),
        num_heads=tuple(config.num_heads),
        depths=tuple(config.depths),
        num_classes=config.num_labels,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
        act_layer=get_act_layer({"gelu_pytorch_tanh": "gelu_tanh"}.get(config.hidden_act, config.hidden_act)),
        pad_type={"same": "same", "symmetric": ""}[config.pool_padding],
    )


def _vit_pytorch_nest(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.nest import NesT

    # Exact GELU, one position for all channels, and widths that double.
    return NesT(
        image_size=pair(config.image_size)[0],
        patch_size=pair(config.patch_size)[0],
        num_classes=config.num_labels,
        dim=config.hidden_sizes[0],
        heads=config.num_heads[0],
        num_hierarchies=len(config.depths),
        block_repeats=tuple(config.depths),
        mlp_mult=round(config.mlp_ratio),
        channels=config.num_channels,
    )


def _vit_pytorch_regionvit(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.regionvit import RegionViT

    # Its downsampling is a full convolution, its heads are 4 of 32 channels in every stage, and a stage shares its
    # bias.
    return RegionViT(
        dim=tuple(config.hidden_sizes),
        depth=tuple(config.depths),
        window_size=config.window_sizes[0],
        num_classes=config.num_labels,
        tokenize_local_3_conv=config.patch_conv_type == "3conv",
        local_patch_size=pair(config.patch_size)[0],
        use_peg=config.peg,
        channels=config.num_channels,
    )


def _vit_pytorch_twins(name: str, config: VitfConfig) -> nn.Module:
    from vit_pytorch.twins_svt import TwinsSVT

    if config.attention_pattern != ["local", "global"]:
        raise UserError(f"vit-pytorch has only Twins-SVT, not {name!r}")
    # Its heads are 8 of 64 channels at every width, its keys come from 7 x 7 tokens, and its last stage is global
    # throughout: the nearest there is, and heavier.
    pairs = [depth // 2 - 1 for depth in config.depths[:-1]] + [config.depths[-1] - 1]
    stages = {}
    for number, depth in enumerate(pairs):
        stages |= {
            f"s{number + 1}_emb_dim": config.hidden_sizes[number],
            f"s{number + 1}_patch_size": 2 if number else pair(config.patch_size)[0],
            f"s{number + 1}_local_patch_size": config.window_sizes[number],
            f"s{number + 1}_depth": depth,
        }
    return TwinsSVT(num_classes=config.num_labels, **stages)


def _torchvision_vit(name: str, config: VitfConfig) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=pair(config.image_size)[0],
        patch_size=pair(config.patch_size)[0],
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=round(config.mlp_ratio * config.hidden_size),
        num_classes=config.num_labels,
    )


def _torchvision_mvit(name: str, config: VitfConfig) -> nn.Module:
    from torchvision.models import video

    makers = {"mvit_base_16x4_k400": video.mvit_v1_b, "mvitv2_small_16x4_k400": video.mvit_v2_s}
    if name not in makers:
        raise UserError(f"torchvision has no {name!r}; it has {' and '.join(makers)}")
    model = makers[name](num_classes=config.num_labels, stochastic_depth_prob=config.drop_path_rate)
    return _ChannelsBeforeFrames(model)


class _ChannelsBeforeFrames(nn.Module):
    """A model that takes clips as (B, num_channels, T, H, W), for clips (B, T, num_channels, H, W)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values.transpose(1, 2))


# Names under which timm has a variant, where they are not ours.
TIMM_NAMES: dict[str, str] = {
    **{name: f"{name}_224" for name in VitfPitConfig.VARIANTS},
    **{name: name.removesuffix("_22k") for name in VitfSwinConfig.VARIANTS},
    **{name: name.replace("_patch4", "").removesuffix("_22k") for name in VitfSwinv2Config.VARIANTS},
    # timm counts the pixels that come in.
    **{name: name.replace("_224", "_240").replace("_384", "_408") for name in VitfCrossvitConfig.VARIANTS},
}

# Library, then architecture: what builds the peer from a variant's name and configuration. timm finds its own by name.
PEERS: dict[str, dict[str, Callable[[str, VitfConfig], nn.Module]]] = {
    "timm": {
        "vit": _timm,
        "deit": _timm,
        "pit": _timm,
        "convit": _timm,
        "cait": _timm,
        "crossvit": _timm,
        "levit": _timm,
        "pvt_v2": _timm_of_any_size,
        "swin": _timm,
        "swinv2": _timm,
        "nest": _timm_nest,
        "mvit": _timm,
        "twins": _timm,
        "coatnet": _timm,
    },
    "transformers": {
        "vit": _transformers_vit,
        "deit": _transformers_deit,
        "levit": _transformers_levit,
        "cvt": _transformers_cvt,
        "pvt": _transformers_pvt,
        "pvt_v2": _transformers_pvt_v2,
        "swin": _transformers_swin,
        "swinv2": _transformers_swinv2,
        "timesformer": _transformers_timesformer,
        "vivit": _transformers_vivit,
    },
    "vit_pytorch": {
        "vit": _vit_pytorch_vit,
        "deit": _vit_pytorch_vit,
        "rvt": _vit_pytorch_rvt,
        "cct": _vit_pytorch_cct,
        "pit": _vit_pytorch_pit,
        "cait": _vit_pytorch_cait,
        "t2t_vit": _vit_pytorch_t2t_vit,
        "deepvit": _vit_pytorch_deepvit,
        "crossvit": _vit_pytorch_crossvit,
        "nest": _vit_pytorch_nest,
        "regionvit": _vit_pytorch_regionvit,
        "cvt": _vit_pytorch_cvt,
        "twins": _vit_pytorch_twins,
    },
    "torchvision": {"vit": _torchvision_vit, "deit": _torchvision_vit, "mvit_video": _torchvision_mvit},
}


def create_peer(library: str, architecture: str, name: str, config: VitfConfig) -> nn.Module:
    """
    The same variant of another library, with random weights.

    Raises:
        UserError: if the library has no such architecture or variant, or is not installed.
    """
    try:
        make = PEERS[library][architecture]
    except KeyError:
        having = [key for key, makers in PEERS.items() if architecture in makers]
        raise UserError(f"{library} has no {architecture}; peers of {architecture}: {', '.join(having)}") from None
    try:
        return make(name, config)
    except ImportError as error:
        raise UserError(f"{library} is not installed ({error}); pip install 'hf_vit_family[dev]' brings it") from error
