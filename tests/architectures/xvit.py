from dossier import CLIP, NORMS, TRUNC_NORMAL, WIDTH, Dossier, Initialisation

_TINY = {**CLIP, "classifier_dropout_prob": 0.0, "classifier_hidden_size": 24}

DOSSIER = Dossier(
    tiny={
        "xvit": _TINY,
        "xvit-segments": {**_TINY, "segment_size": 3, "time_embedding_period": 3, "mixing_layers": [1], "shift_div": 4},
        "xvit-mean": {**_TINY, "temporal_pooling": "mean"},
    },
    initialisation={
        "xvit": Initialisation(
            {
                r"time_embeddings|temporal_encoder\.cls_token|frame_classifier_bias": ("constant", 0.0),
                **NORMS,
                r"frame_classifier": ("normal", 0.001),
                r"temporal_encoder.*fc2\.": ("uniform", (4 * WIDTH) ** -0.5),
                r"temporal_encoder|classifier\.": ("uniform", WIDTH**-0.5),
                **TRUNC_NORMAL,
            },
            {"classifier_hidden_size": WIDTH},
        ),
    },
    parity=1e-15,
    outputs={
        "features": lambda model, outputs, encoded: encoded.last_hidden_state.unflatten(
            1, encoded.hidden_states[-1].shape[1:3]
        )[:, :, 0],
    },
    pooling="temporal_encoder.",
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; the layers over the frames give maps besides",
        "test_hidden_states_output": "asserts tokens in the second dimension; X-ViT has frames there",
    },
)
