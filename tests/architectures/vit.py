from dossier import CIFAR10_PLAIN, JAX, PLAIN, TIMM_VIT, TRUNC_NORMAL, Dossier, Initialisation, TimmGroups

# With a decoder of MAE as small as the rest.
_PLAIN = {
    **PLAIN,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}

DOSSIER = Dossier(
    tiny={
        "vit": {**_PLAIN, "representation_size": 24},
        "vit-deit3": {
            **_PLAIN,
            "layer_scale_init_value": 0.1,
            "prefix_position_embeddings": False,
            "position_interpolation": "bicubic",
            "initialization": "trunc_normal",
        },
        "vit-registers": {**_PLAIN, "num_register_tokens": 3, "pooling": "mean", "position_embedding_type": "sincos"},
        "vit-rotary": {
            **_PLAIN,
            "position_embedding_type": "rotary",
            "use_cls_token": False,
            "pooling": "mean",
            "qkv_bias": False,
        },
        "vit-clip": {
            **_PLAIN,
            "pre_layernorm": True,
            "patch_bias": False,
            "hidden_act": "quick_gelu",
            "position_interpolation": "bicubic_antialias",
            "final_layernorm": "none",
        },
        "vit-dinov2": {**_PLAIN, "pooling": "cls_mean", "num_register_tokens": 2, "layer_scale_init_value": 0.1},
        "vit-siglip": {
            **_PLAIN,
            "use_cls_token": False,
            "pooling": "map",
            "num_register_tokens": 2,
            "register_position_embeddings": True,
            "pool_prefix_tokens": True,
        },
        "vit-aimv2": {
            **_PLAIN,
            "use_cls_token": False,
            "pooling": "mean",
            "norm_type": "rmsnorm",
            "norm_pix_loss": True,
            "patch_layernorm": True,
            "mlp_type": "gated",
            "hidden_act": "silu",
            "qkv_bias": False,
            "proj_bias": False,
        },
        "vit-postnorm": {
            **_PLAIN,
            "pooling": "mean",
            "norm_position": "post",
            "sub_layernorm": True,
            "final_layernorm": "pooled",
        },
        "vit-simple": {
            **_PLAIN,
            "head_dim": 12,
            "pixel_layernorm": True,
            "patch_layernorm": True,
            "qkv_bias": False,
            "attention_proj_bias": False,
            "use_cls_token": False,
            "pooling": "mean",
            "position_embedding_type": "sincos_simple",
        },
        "vit-hybrid": {**_PLAIN, "image_size": 64, "resnet_depths": [1, 1], "resnet_width": 32},
    },
    initialisation={
        "vit": Initialisation(JAX),
        "vit-deit3": Initialisation(TRUNC_NORMAL),
        "vit-hybrid": Initialisation(
            {
                r"norm3\.weight": ("constant", 0.0),
                r"root\.weight": ("normal", (7 * 7 * 3) ** -0.5),
                r"conv1|shortcut\.": ("normal", 32**-0.5),
                r"conv2": ("normal", (3 * 3 * 32) ** -0.5),
                r"conv3": ("normal", 32**-0.5),
                r"projection\.weight": ("normal", (2 * 2 * 128) ** -0.5),
                **JAX,
            },
            {"resnet_depths": [1]},
        ),
        "vit-registers": Initialisation(JAX),
    },
    parity=4e-15,
    cifar10=("vit_tiny_patch16_224", CIFAR10_PLAIN),
    speed={
        "vit_small_patch16_224": ["timm", "transformers"],
    },
    more_goldens=("vit_hybrid", "deit3"),
    # The dual encoder reads the width of `pooler_output` in `hidden_size`, as every model of transformers has it.
    composite_fields={"dual_encoder": {"representation_size": 32}},
    pooling="pre_logits.",
    onnx_at_any_size=False,
    timm_groups=(
        TimmGroups("vit_base_patch16_224", TIMM_VIT),
        TimmGroups("deit3_base_patch16_224", TIMM_VIT),
    ),
)
