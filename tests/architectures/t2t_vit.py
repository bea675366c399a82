from dossier import NORMS, Dossier, Initialisation

from hf_vit_family.modeling.modeling_t2t_vit import sinusoid_table

_TINY = {
    "image_size": 64,
    "token_dim": 8,
    "token_dropout_prob": 0.0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "num_labels": 5,
}

DOSSIER = Dossier(
    tiny={
        "t2t_vit": _TINY,
        "t2t_vit-transformer": {**_TINY, "tokens_type": "transformer"},
    },
    initialisation={
        "t2t_vit": Initialisation(
            {
                **NORMS,
                r"position_embeddings": ("table", lambda shape: sinusoid_table(*shape[1:])),
                # Orthogonal rows of length sqrt(m), m the number of rows and 2 m that of columns.
                r"random_features": ("normal", 0.5**0.5),
                r"bias$": ("constant", 0.0),
                r"(weight|token)$": ("normal", 0.02),
            },
            {"token_dim": 64},
        ),
    },
    parity=2e-15,
    cifar10=(
        "t2t_vit_7",
        {
            "image_size": 64,
            "token_dim": 32,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "mlp_ratio": 2,
        },
    ),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; the tokenizer gives two besides",
    },
)
