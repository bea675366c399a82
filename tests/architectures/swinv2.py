import math

from dossier import CIFAR10_PYRAMID, TRUNC_NORMAL, WIDTH, Dossier, Initialisation, TimmGroups

from .swin import TIMM, TINY

DOSSIER = Dossier(
    tiny={
        "swinv2": {**TINY, "pretrained_window_sizes": [2, 0, 0]},
        "swinv2-unbiased": {**TINY, "pretrained_window_sizes": [0, 0, 0], "qkv_bias": False},
    },
    initialisation={
        "swinv2": Initialisation(
            {
                r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
                r"layernorm_(attention|mlp)\.": ("constant", 0.0),  # layers start as the identity
                r"logit_scale": ("constant", math.log(10)),
                **TRUNC_NORMAL,
            },
            {"hidden_sizes": [32, 64, WIDTH], "num_heads": [2, 4, 8], "num_labels": 64},
        ),
    },
    parity=2e-15,
    cifar10=(
        "swinv2_tiny_patch4_window8_256",
        {**CIFAR10_PYRAMID, "window_size": 4, "pretrained_window_sizes": [0, 0, 0], "mlp_ratio": 2},
    ),
    speed={
        "swinv2_tiny_patch4_window8_256": ["timm", "transformers"],
    },
    timm_groups=(TimmGroups("swinv2_tiny_window8_256", {**TIMM, "pretrained_window_sizes": [0, 0]}),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of Swin V2 has one a layer",
        "test_hidden_states_output": (
            "asserts one number of tokens and one width; those of Swin V2 change with the stage"
        ),
    },
)
