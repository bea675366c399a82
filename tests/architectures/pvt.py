from dossier import CIFAR10_PYRAMID, NORMS, Dossier, Initialisation

TINY = {
    "image_size": 32,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "pvt": TINY,
    },
    initialisation={
        "pvt": Initialisation(
            {
                **NORMS,
                r"^pvt\.embeddings\.patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
                r"patch_embeddings\.|reduction\.conv\.": ("uniform", (2 * 2 * 16) ** -0.5),
                r"bias$": ("constant", 0.0),
                r"(weight|token)$": ("normal", 0.02),
            }
        ),
    },
    parity=2e-15,
    cifar10=("pvt_tiny", {**CIFAR10_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1]}),
    speed={
        "pvt_tiny": ["transformers"],
    },
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of PVT has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of PVT change with the stage",
    },
)
