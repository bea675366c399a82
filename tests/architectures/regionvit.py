from dossier import CIFAR10_PYRAMID, NORMS, Dossier, Initialisation

_TINY = {
    "image_size": 48,
    "hidden_sizes": [16, 32, 32],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "window_sizes": [3, 3, 3],
    "mlp_ratio": 2,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "regionvit": _TINY,
        "regionvit-peg": {**_TINY, "patch_conv_type": "1conv", "peg": True},
    },
    initialisation={
        "regionvit": Initialisation(
            {
                **NORMS,
                r"patch_embeddings\.convs\.0\.": ("uniform", (3 * 3 * 3) ** -0.5),
                r"patch_embeddings\.convs\.1\.": ("uniform", (3 * 3 * 16) ** -0.5),
                r"patch_embeddings\.convs\.2\.": ("uniform", (3 * 3 * 32) ** -0.5),
                r"region_embeddings\.": ("uniform", (12 * 12 * 3) ** -0.5),
                r"downsampling\.conv\.": ("uniform", 1 / 3),
                r"bias$": ("constant", 0.0),
                r"weight$": ("normal", 0.02),
            },
            {"hidden_sizes": [64, 128, 256], "num_labels": 64},
        ),
    },
    parity=1e-15,
    cifar10=(
        "regionvit_tiny_224",
        {**CIFAR10_PYRAMID, "patch_conv_type": "1conv", "window_sizes": [4, 4, 4], "mlp_ratio": 2},
    ),
    pooling="layernorm.",
    # In the last layer the classifier reads only regional tokens, whose scores have no bias.
    untrained={"ForImageClassification": r"stages\.2\.layers\.0\.attention\.position_bias\."},
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of RegionViT has one a layer",
        "test_hidden_states_output": (
            "asserts one number of tokens and one width; those of RegionViT change with the stage"
        ),
    },
)
