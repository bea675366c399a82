from dossier import NORMS, TRUNC_NORMAL, WIDTH, Dossier, Initialisation, TimmGroups

_TINY = {
    "image_size": 48,
    "large_branch_scale": [2, 3],
    "hidden_sizes": [24, 32],
    "depths": [[1, 2], [1, 1]],
    "num_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "num_labels": 5,
}
_TIMM = {
    "img_size": 48,
    "img_scale": (1.0, 2 / 3),
    "patch_size": [12, 16],
    "embed_dim": [24, 48],
    "depth": [[1, 2, 0], [1, 1, 0]],
    "num_heads": [3, 4],
    "mlp_ratio": [2, 3, 1],
}

DOSSIER = Dossier(
    tiny={
        "crossvit": _TINY,
        "crossvit-conv": {**_TINY, "patch_embedding_type": "convolutional"},
    },
    initialisation={
        "crossvit": Initialisation(
            {
                **NORMS,
                r"branches\.0\.patch_embeddings\.": ("uniform", (12 * 12 * 3) ** -0.5),
                r"branches\.1\.patch_embeddings\.": ("uniform", (16 * 16 * 3) ** -0.5),
                **TRUNC_NORMAL,
            },
            {"hidden_sizes": [64, WIDTH], "num_labels": 64},
        ),
    },
    parity=2e-15,
    cifar10=(
        "crossvit_tiny_224",
        {
            "patch_sizes": [4, 8],
            "large_branch_scale": [1, 1],
            "hidden_sizes": [64, 96],
            "depths": [[1, 2], [1, 2]],
            "num_heads": [4, 4],
            "mlp_ratios": [2, 2],
        },
    ),
    speed={
        "crossvit_tiny_224": ["timm"],
    },
    outputs={
        "features_0": lambda model, outputs, encoded: encoded.pooler_output[:, : model.config.hidden_sizes[0]],
        "features_1": lambda model, outputs, encoded: encoded.pooler_output[:, model.config.hidden_sizes[0] :],
        "logits_branch0": lambda model, outputs, encoded: model.classifier.branch_logits(encoded.pooler_output)[0],
        "logits_branch1": lambda model, outputs, encoded: model.classifier.branch_logits(encoded.pooler_output)[1],
    },
    # timm's float32 run of the same weights is off by 1.08e-5 as well.
    coarser={"features_1": 2, "logits_branch1": 2},
    timm_groups=(TimmGroups("crossvit_15_240", _TIMM, "a stage: the layers of both branches and the exchange"),),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; two branches and their fusion give more",
    },
)
