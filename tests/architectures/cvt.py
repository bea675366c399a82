from dossier import CIFAR10_PYRAMID, NORMS, WIDTH, Dossier, Initialisation

DOSSIER = Dossier(
    tiny={
        "cvt": {
            "image_size": 32,
            "hidden_sizes": [8, 16, 24],
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 3],
            "mlp_ratio": 2,
            "drop_path_rate": 0.0,
            "num_labels": 5,
        },
    },
    initialisation={
        "cvt": Initialisation(
            {
                **NORMS,
                r"cls_token": ("normal", 0.02),
                r"^cvt\.patch_embeddings\.": ("uniform", (7 * 7 * 3) ** -0.5),
                r"patch_embeddings\.": ("uniform", (3 * 3 * WIDTH) ** -0.5),
                r"conv\.weight$": ("uniform", 1 / 3),
                r"classifier\.bias$": ("uniform", WIDTH**-0.5),
                r"bias$": ("constant", 0.0),
                r"weight$": ("normal", 0.02),
            },
            {"hidden_sizes": [WIDTH] * 3, "num_heads": [2] * 3, "num_labels": 64},
        ),
    },
    parity=3e-15,
    cifar10=(
        "cvt_13",
        {**CIFAR10_PYRAMID, "patch_kernel_sizes": [3, 3, 3], "patch_paddings": [1, 1, 1], "mlp_ratio": 2},
    ),
    speed={
        "cvt_13": ["transformers"],
    },
    onnx_at_any_size=False,
    # Only the class token is read, and its query passes by the convolution.
    untrained={"ForImageClassification": r"stages\.2\.layers\.1\.attention\.query\.(conv|norm)\."},
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts one number of heads and tokens; those of CvT change with the stage",
        "test_hidden_states_output": "asserts one number of tokens and one width; CvT changes both by stage",
    },
)
