from dossier import Dossier, Initialisation

from .mvit import TINY, V1

_CLIP = {"num_frames": 4, "classifier_dropout_prob": 0.0}

DOSSIER = Dossier(
    tiny={
        "mvit_video": {**TINY, **_CLIP},
        "mvit_video-v1": {**TINY, **_CLIP, **V1, "pool_kernel_frames": 1},
    },
    initialisation={
        "mvit_video": Initialisation(
            {
                r"patch_embeddings.*bias": ("uniform", (3 * 7 * 7 * 3) ** -0.5),
                r"norm.*\.weight$": ("constant", 1.0),
                r"bias$": ("constant", 0.02),
                r"(weight|token)$": ("normal", 0.02),
            }
        ),
    },
    parity=1e-15,
    fixed_sizes=("image_size", "num_frames"),
    # One number for all keys. In the last layer only the class token is read, which has no distances and is not pooled.
    untrained={"*": r"key_pool\.layernorm\.bias$|stages\.1\.layers\.1\.attention\.(relative|query_pool\.weight)"},
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of MViT has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; MViT changes both by stage",
    },
)
