from dossier import NORMS, WIDTH, Dossier, Initialisation, TimmGroups

_TINY = {
    "image_size": 128,
    "hidden_sizes": [8, 16, 16],
    "depths": [1, 2, 1],
    "num_heads": [2, 1, 3],
    "key_dim": 4,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "levit": _TINY,
        "levit-plain": {**_TINY, "distilled": False},
    },
    initialisation={
        "levit": Initialisation(
            {
                # The last norm of a branch with a residual: a new layer passes on what it is given.
                r"(layers\.\d\.attention\.proj|fc2)\.norm\.weight$": ("constant", 0.0),
                **NORMS,
                r"position_bias|classifier\.linear\.bias": ("constant", 0.0),
                r"classifier\.linear\.weight": ("normal", 0.02),
                r"convs\.0\.": ("uniform", (3 * 3 * 3) ** -0.5),
                r"convs\.1\.": ("uniform", (3 * 3 * 16) ** -0.5),
                r"convs\.2\.": ("uniform", (3 * 3 * 32) ** -0.5),
                r"convs\.3\.": ("uniform", (3 * 3 * 64) ** -0.5),
                r"shrink\.attention\.proj\.": ("uniform", (4 * WIDTH) ** -0.5),
                r"attention\.proj\.|fc2": ("uniform", (2 * WIDTH) ** -0.5),
                r"": ("uniform", WIDTH**-0.5),
            },
            {"hidden_sizes": [WIDTH] * 3, "num_heads": [16] * 3, "key_dim": 8, "num_labels": 64},
        ),
    },
    parity=3e-15,
    cifar10=(
        "levit_128s",
        {"patch_size": 4, "hidden_sizes": [64, 96, 128], "depths": [1, 1, 1], "num_heads": [2, 3, 4]},
    ),
    speed={
        "levit_128s": ["timm", "transformers"],
    },
    fixed_sizes=("image_size",),
    timm_groups=(TimmGroups("levit_128s", {}, "the layer that shrinks the map and the first one on the smaller map"),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; there are three stages",
        "test_attention_outputs": "asserts one number of heads and tokens; those of LeViT change with the stage",
        "test_hidden_states_output": "asserts one number of tokens and one width; LeViT changes both by stage",
    },
)
