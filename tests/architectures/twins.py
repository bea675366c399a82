from dossier import CIFAR10_PYRAMID, NORMS, Dossier, Initialisation, TimmGroups

from .pvt import TINY

DOSSIER = Dossier(
    tiny={
        "twins": {**TINY, "depths": [2, 2], "window_sizes": [3, 3]},
        "twins-pcpvt": {**TINY, "window_sizes": [3, 3], "attention_pattern": ["global"]},
    },
    initialisation={
        "twins": Initialisation(
            {
                **NORMS,
                r"bias$": ("constant", 0.0),
                r"^twins\.embeddings\.": ("normal", (2 / (4 * 4 * 16)) ** 0.5),
                r"patch_embeddings\.": ("normal", (2 / (2 * 2 * 32)) ** 0.5),
                r"reduction\.conv\.": ("normal", (2 / (2 * 2 * 16)) ** 0.5),
                r"position_generator\.": ("normal", (2 / (3 * 3)) ** 0.5),
                r"weight$": ("normal", 0.02),
            }
        ),
    },
    parity=3e-15,
    cifar10=(
        "twins_svt_small",
        {**CIFAR10_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1], "window_sizes": [4, 4, 4]},
    ),
    speed={
        "twins_svt_small": ["timm"],
        "twins_pcpvt_small": ["timm"],
    },
    onnx_at_any_size=True,
    timm_groups=(
        TimmGroups("twins_svt_small", {"wss": [7, 7, 7, 7]}),
        TimmGroups("twins_pcpvt_small"),
    ),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of Twins has one a layer",
        "test_hidden_states_output": "asserts one number of tokens and one width; those of Twins change with the stage",
    },
)
