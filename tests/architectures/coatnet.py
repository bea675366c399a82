from dossier import CIFAR10_PYRAMID, Dossier, Initialisation, TimmGroups

_TINY = {
    "image_size": 64,
    "stem_channels": [8, 16],
    "hidden_sizes": [16, 24, 32],
    "depths": [2, 2, 2],
    "conv_depths": [2, 1, 0],
    "num_heads": [2, 3, 4],
    "mlp_ratio": 2,
    "position_bias_dropout_prob": 0.0,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "coatnet": _TINY,
        "coatnet-rw": {
            **_TINY,
            "conv_act": "silu",
            "pre_norm_act": True,
            "expand_output": False,
            "conv_bias": False,
            "stride_mode": "pool",
            "pool_type": "max",
            "se_position": "before_norm",
            "expand_first": False,
            "position_bias_type": "mlp",
            "position_bias_size": 16,
            "norm_type": "batch",
            "layer_scale_init_value": 0.1,
        },
        "coatnet-next": {
            **_TINY,
            "conv_layer_type": "convnext",
            "hidden_sizes": [16, 32, 64],
            "num_heads": [2, 4, 8],
            "representation_size": 24,
        },
    },
    initialisation={
        "coatnet": Initialisation(
            {
                r"norm.*weight$": ("constant", 1.0),
                r"position_bias\.": ("normal", 0.02),
                # Inverted bottlenecks and the stem by fan-out: 2 / (kernel elements * channels out / groups).
                r"conv\d\.weight$": ("normal", (2 / (3 * 3 * 64)) ** 0.5),
                r"depthwise\.weight$": ("normal", (2 / (3 * 3)) ** 0.5),
                r"stages\.[01]\.layers\.0\.(expand|squeeze_excitation\.fc2)\.weight$": ("normal", (2 / 256) ** 0.5),
                r"squeeze_excitation\.fc1\.weight$": ("normal", (2 / 16) ** 0.5),
                r"stages\.0\.layers\.0\.(reduce|shortcut\.expand)\.weight$": ("normal", (2 / 64) ** 0.5),
                # Attention layers Xavier uniform: 6 / (channels in + channels out).
                r"qkv\.weight$": ("uniform", (6 / (64 + 3 * 64)) ** 0.5),
                r"attention\.proj\.weight$": ("uniform", (6 / (64 + 64)) ** 0.5),
                r"mlp\.fc\d\.weight$": ("uniform", (6 / (64 + 128)) ** 0.5),
                r"mlp\.fc\d\.bias$": ("normal", 1e-6),
                r"classifier\.": ("uniform", 64**-0.5),
                r"bias$": ("constant", 0.0),
            },
            {
                "stem_channels": [64, 64],
                "hidden_sizes": [64, 64],
                "depths": [1, 1],
                "conv_depths": [1, 0],
                "num_heads": [4, 4],
                "num_labels": 64,
            },
        ),
    },
    parity=1e-15,
    cifar10=(
        "coatnet_0_224",
        {
            **CIFAR10_PYRAMID,
            "patch_size": 1,
            "stem_channels": [32, 32],
            "conv_depths": [2, 0, 0],
            "representation_size": None,
        },
    ),
    speed={
        "coatnet_0_rw_224": ["timm"],
    },
    outputs={
        # Those of the models with a tanh layer stand before the norm.
        "features": lambda model, outputs, encoded: (
            encoded.last_hidden_state.transpose(1, 2).view(encoded.hidden_states[-1].shape)
            if model.config.representation_size is None
            else encoded.hidden_states[-1]
        ),
    },
    # PyTorch cannot change the order in memory, channels last, of what is mapped.
    without_vmap=True,
    fixed_sizes=("image_size",),
    # One number for all keys.
    untrained={"*": r"position_bias\.fc2_bias$"},
    timm_groups=(TimmGroups("coatnet_nano_rw_224", {}, "a stage"),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts one number of heads and tokens; those of CoAtNet change with the stage",
    },
)
