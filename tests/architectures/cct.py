from dossier import NORMS, Dossier, Initialisation

_TINY = {
    "image_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 5,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}

DOSSIER = Dossier(
    tiny={
        "cct": _TINY,
        "cct-patches": {**_TINY, "num_conv_layers": 0, "kernel_size": 4, "stride": 4, "padding": 0, "pooling": "cls"},
        "cct-sine": {**_TINY, "position_embedding_type": "sine"},
    },
    initialisation={
        # SHI-Labs/Compact-Transformers@cd11f09 src/utils/{tokenizer,transformers}.py.
        "cct": Initialisation(
            {
                **NORMS,
                r"conv_layers\.": ("normal", (2 / (3 * 3 * 3)) ** 0.5),
                r"bias$": ("constant", 0.0),
                r"position_embeddings": ("normal", 0.2),
                r"weight$": ("normal", 0.02),
            }
        ),
    },
    parity=2e-15,
    cifar10=(
        "cct_2_3x2_32",
        {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 2},
    ),
    speed={
        "cct_7_3x1_32": ["vit_pytorch"],
    },
    pooling="attention_pool.",
)
