from dossier import CIFAR10_PYRAMID, TRUNC_NORMAL, WIDTH, Dossier, Initialisation

from .localvit import FEED_FORWARD
from .pvt import TINY

DOSSIER = Dossier(
    tiny={
        "localvit_pvt": {**TINY, "se_reductions": [8, 16]},
    },
    initialisation={
        "localvit_pvt": Initialisation(
            {
                **FEED_FORWARD,
                r"^localvit_pvt\.embeddings\.patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
                r"patch_embeddings\.|attention\.reduction\.conv\.": ("uniform", (2 * 2 * WIDTH) ** -0.5),
                **TRUNC_NORMAL,
            },
            {"hidden_sizes": [WIDTH] * 2, "num_labels": 64},
        ),
    },
    parity=2e-15,
    cifar10=(
        "localvit_pvt_tiny",
        {**CIFAR10_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1], "se_reductions": [8, 16, 32]},
    ),
    # It changes the patches, of which the class token sees nothing more.
    untrained={"ForImageClassification": r"stages\.1\.layers\.1\.feed_forward\."},
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of PVT has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of PVT change with the stage",
    },
)
