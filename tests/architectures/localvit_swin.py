from dossier import CIFAR10_PYRAMID, TRUNC_NORMAL, WIDTH, Dossier, Initialisation

from .localvit import FEED_FORWARD
from .swin import TINY

DOSSIER = Dossier(
    tiny={
        "localvit_swin": {**TINY, "se_reductions": [4, 8, 16]},
    },
    initialisation={
        "localvit_swin": Initialisation(
            {
                **FEED_FORWARD,
                r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
                r"position_bias": ("normal", 0.02),
                **TRUNC_NORMAL,
            },
            {"hidden_sizes": [WIDTH] * 3, "num_heads": [2, 4, 8], "num_labels": 64},
        ),
    },
    parity=1e-15,
    cifar10=(
        "localvit_swin_tiny_patch4_window7_224",
        {**CIFAR10_PYRAMID, "window_size": 4, "mlp_ratio": 2, "se_reductions": [8, 16, 32]},
    ),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of Swin has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of Swin change with the stage",
    },
)
