from dossier import CIFAR10_PYRAMID, NORMS, Dossier, Initialisation, TimmGroups

_TINY = {
    "image_size": 32,
    "patch_size": 2,
    "block_size": 4,
    "hidden_sizes": [16, 24, 32],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "mlp_ratio": 2,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "nest": _TINY,
        "nest-multiquery": {**_TINY, "attention_type": "multi_query", "pool_padding": "symmetric"},
    },
    initialisation={
        # Cut at two standard deviations of the normal before the cut.
        "nest": Initialisation({**NORMS, r"bias$": ("constant", 0.0), r"": ("normal", 0.02 * 0.87962566103423978)}),
    },
    parity=2e-15,
    cifar10=("nest_tiny_s16_32", {**CIFAR10_PYRAMID, "block_size": 4, "mlp_ratio": 2}),
    speed={
        "nest_tiny": ["timm"],
    },
    timm_groups=(TimmGroups("nest_tiny_jx"),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of NesT has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of NesT change with the stage",
    },
)
