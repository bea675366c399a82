from dossier import CLIP, FAN_IN, JAX, Dossier, Initialisation

_TINY = {**CLIP, "tubelet_size": 2}
_INIT = {
    **JAX,
    r"patch_embeddings.*weight$": ("normal", (2 * FAN_IN) ** -0.5),
    r"time_embeddings": ("normal", 0.02),
}

DOSSIER = Dossier(
    tiny={
        "vivit": _TINY,
        "vivit-encoder": {**_TINY, "attention_type": "factorised_encoder", "num_temporal_layers": 2},
        "vivit-encoder-mean": {
            **_TINY,
            "attention_type": "factorised_encoder",
            "pooling": "mean",
            "representation_size": 24,
            "num_temporal_layers": 1,
            "num_temporal_heads": 4,
            "temporal_mlp_ratio": 1,
        },
        "vivit-self": {**_TINY, "attention_type": "factorised_self_attention", "pooling": "mean"},
        "vivit-dot": {**_TINY, "attention_type": "factorised_dot_product", "pooling": "mean"},
    },
    initialisation={
        "vivit": Initialisation(_INIT),
        "vivit-encoder": Initialisation(_INIT),
    },
    parity=2e-15,
)
