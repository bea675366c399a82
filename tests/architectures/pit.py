from dossier import NORMS, WIDTH, Dossier, Initialisation

_TINY = {
    "image_size": 24,
    "patch_size": 4,
    "stride": 2,
    "base_dims": [8, 8, 8],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "mlp_ratio": 2,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "pit": {**_TINY, "distilled": True},
        "pit-plain": _TINY,
    },
    initialisation={
        "pit": Initialisation(
            {
                **NORMS,
                r"position_embeddings|prefix_tokens": ("normal", 0.02),
                r"patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
                r"pool\.conv\.": ("uniform", (3 * 3) ** -0.5),
                r"mlp\.fc2\.": ("uniform", (2 * WIDTH) ** -0.5),
                r"": ("uniform", WIDTH**-0.5),
            },
            {"base_dims": [64, 32, 32], "num_heads": [2, 4, 4], "num_labels": 64},
        ),
    },
    parity=3e-15,
    cifar10=(
        "pit_ti",
        {
            "patch_size": 4,
            "stride": 2,
            "base_dims": [16] * 3,
            "depths": [1, 2, 2],
            "num_heads": [2, 4, 8],
            "mlp_ratio": 2,
        },
    ),
    speed={
        "pit_ti": ["timm"],
    },
    outputs={
        "features": lambda model, outputs, encoded: encoded.last_hidden_state[:, : model.pit.num_prefix_tokens],
    },
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; three stages have at least three",
        "test_attention_outputs": "asserts one number of heads and of tokens; those of PiT change with the stage",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of PiT change with the stage",
    },
)
