from dossier import CLIP, TRUNC_NORMAL, Dossier, Initialisation

DOSSIER = Dossier(
    tiny={
        "timesformer": CLIP,
        "timesformer-joint": {**CLIP, "attention_type": "joint_space_time"},
        "timesformer-space": {**CLIP, "attention_type": "space_only"},
    },
    initialisation={
        "timesformer": Initialisation(
            {
                r"time_embeddings|temporal_dense": ("constant", 0.0),
                **TRUNC_NORMAL,
            }
        ),
    },
    parity=2e-15,
    without_time=("timesformer-space",),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; divided layers give two each",
    },
)
