from dossier import CIFAR10_PLAIN, PLAIN, TRUNC_NORMAL, Dossier, Initialisation

DOSSIER = Dossier(
    tiny={
        "deepvit": {**PLAIN, "apply_transform": [False, True]},
        "deepvit-conv": {
            **PLAIN,
            "patch_embedding_type": "convolutional",
            "apply_transform": [True, False],
            "transform_scale": True,
            "scale_adjustment": 0.5,
        },
    },
    initialisation={
        "deepvit": Initialisation(
            {r"mixing\.": ("uniform", 16**-0.5), **TRUNC_NORMAL},
            {"num_attention_heads": 16},
        ),
    },
    parity=1e-15,
    cifar10=("deepvit_patch16_224_re_attn_16b", CIFAR10_PLAIN),
    mixes_heads=True,
    # One number for all entries of a map, which batch norm takes out.
    untrained={"*": r"mixing\.bias$"},
)
