from dossier import CIFAR10_PYRAMID, TRUNC_NORMAL, Dossier, Initialisation, TimmGroups

TINY = {
    "image_size": 32,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "kv_strides": [2, 1],
    "kv_kernel_sizes": [3, 3],
    "mlp_ratio": 2,
    "drop_path_rate": 0.0,
    "num_labels": 5,
}
V1 = {
    "use_cls_token": True,
    "position_embedding_type": "absolute",
    "query_pooling": "stage_start",
    "residual_pooling": False,
    "dim_mul_in_att": False,
    "kv_kernel_sizes": [3, 1],
}

DOSSIER = Dossier(
    tiny={
        "mvit": TINY,
        "mvit-v1": {**TINY, **V1},
        "mvit-pooled": {**TINY, "use_cls_token": True, "final_layernorm": "pooled"},
    },
    initialisation={
        "mvit": Initialisation(
            {
                r"patch_embeddings\.projection": ("uniform", (7 * 7 * 3) ** -0.5),
                r"pool\.weight": ("uniform", 1 / 3),
                **TRUNC_NORMAL,
            }
        ),
    },
    parity=1e-15,
    cifar10=("mvitv2_tiny", {**CIFAR10_PYRAMID, "kv_strides": [4, 2, 1], "kv_kernel_sizes": [3, 3, 3], "mlp_ratio": 2}),
    speed={
        "mvitv2_tiny": ["timm"],
    },
    fixed_sizes=("image_size",),
    # One number for all keys.
    untrained={"*": r"key_pool\.layernorm\.bias$"},
    timm_groups=(TimmGroups("mvitv2_tiny", {}, "a stage"),),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of MViT has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; MViT changes both by stage",
    },
)
