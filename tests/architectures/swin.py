from dossier import CIFAR10_PYRAMID, TRUNC_NORMAL, WIDTH, Dossier, Initialisation, TimmGroups

TINY = {
    "image_size": 32,
    "patch_size": 2,
    "hidden_sizes": [8, 16, 32],
    "depths": [2, 2, 2],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2,
    "num_labels": 5,
}
TIMM = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 3], "num_heads": [1, 2], "window_size": 4}

DOSSIER = Dossier(
    tiny={
        "swin": TINY,
        "swin-absolute": {
            **TINY,
            "use_absolute_embeddings": True,
            "patch_norm": False,
            "qkv_bias": False,
            "qk_scale": 0.3,
        },
    },
    initialisation={
        "swin": Initialisation(
            {
                r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
                r"position_bias": ("normal", 0.02),
                **TRUNC_NORMAL,
            },
            {"hidden_sizes": [32, 64, WIDTH], "num_heads": [2, 4, 8], "num_labels": 64},
        ),
    },
    parity=1e-15,
    cifar10=("swin_tiny_patch4_window7_224", {**CIFAR10_PYRAMID, "window_size": 4, "mlp_ratio": 2}),
    speed={
        "swin_tiny_patch4_window7_224": ["timm", "transformers"],
    },
    timm_groups=(TimmGroups("swin_tiny_patch4_window7_224", TIMM),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of Swin has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of Swin change with the stage",
    },
)
