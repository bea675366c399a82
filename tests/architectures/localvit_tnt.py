from dossier import CIFAR10_PLAIN, PLAIN, TRUNC_NORMAL, WIDTH, Dossier, Initialisation

from .localvit import FEED_FORWARD

DOSSIER = Dossier(
    tiny={
        "localvit_tnt": {
            **PLAIN,
            "pixel_hidden_size": 6,
            "num_pixel_attention_heads": 2,
            "pixel_mlp_ratio": 2,
            "se_reduction": 8,
        },
    },
    initialisation={
        "localvit_tnt": Initialisation(
            {
                **FEED_FORWARD,
                r"patch_embeddings\.projection": ("uniform", (7 * 7 * 3) ** -0.5),
                r"pixel_positions": ("normal", 0.02),
                **TRUNC_NORMAL,
            },
            {"pixel_hidden_size": WIDTH},
        ),
    },
    parity=1e-15,
    cifar10=(
        "localvit_tnt_t_patch16_224",
        {
            **CIFAR10_PLAIN,
            "pixel_hidden_size": 8,
            "num_pixel_attention_heads": 2,
            "pixel_stride": 2,
            "se_reduction": 16,
        },
    ),
    # It changes the patches, of which the class token sees nothing more.
    untrained={"ForImageClassification": r"layers\.1\.feed_forward\."},
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; the pixels of patches give one a layer besides",
    },
)
