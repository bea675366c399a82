from dossier import FAN_IN, NORMS, PLAIN, WIDTH, Dossier, Initialisation

DOSSIER = Dossier(
    tiny={
        "rvt": {**PLAIN, "head_dim": 10},
        "rvt-plain": {**PLAIN, "head_dim": 16, "query_projection": "linear", "mlp_type": "plain"},
    },
    initialisation={
        "rvt": Initialisation(  # vit-pytorch 1.26.11 rvt.py
            {
                **NORMS,
                r"cls_token": ("normal", 1.0),
                r"patch_embeddings\.": ("uniform", FAN_IN**-0.5),
                r"depthwise\.": ("uniform", (5 * 5) ** -0.5),
                r"mlp\.fc2\.": ("uniform", (2 * WIDTH) ** -0.5),
                r"": ("uniform", WIDTH**-0.5),
            },
            {"head_dim": 64},
        ),
    },
    parity=2e-15,
    outputs={
        "last_hidden_state": lambda model, outputs, encoded: encoded.hidden_states[-1],
    },
    has_variants=False,
    # Its rotary frequencies are the image size.
    size_is_function=("image_size",),
    untrained={
        # In the last layer the classifier reads what the class token asks for, and the decoder what the patches do.
        "ForImageClassification": r"layers\.1\.attention\.query\.(depthwise|pointwise)\.",
        "ForMaskedImageModeling": r"layers\.1\.attention\.query\.cls_projection\.",
    },
)
