from dossier import CIFAR10_PYRAMID, NORMS, Dossier, Initialisation, TimmGroups

from .pvt import TINY

DOSSIER = Dossier(
    tiny={
        "pvt_v2": TINY,
        "pvt_v2-linear": {**TINY, "linear_attention": True},
    },
    initialisation={
        "pvt_v2": Initialisation(
            {
                **NORMS,
                r"bias$": ("constant", 0.0),
                r"^pvt_v2\.embeddings\.": ("normal", (2 / (7 * 7 * 16)) ** 0.5),
                r"patch_embeddings\.": ("normal", (2 / (3 * 3 * 32)) ** 0.5),
                r"reduction\.conv\.": ("normal", (2 / (2 * 2 * 16)) ** 0.5),
                r"depthwise\.": ("normal", (2 / (3 * 3)) ** 0.5),
                r"weight$": ("normal", 0.02),
            }
        ),
    },
    parity=2e-15,
    cifar10=("pvt_v2_b0", {**CIFAR10_PYRAMID, "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1]}),
    speed={
        "pvt_v2_b0": ["timm", "transformers"],
    },
    timm_groups=(TimmGroups("pvt_v2_b0", {}, "a stage"),),
    not_applicable={
        "test_attention_outputs": "asserts num_hidden_layers maps; a stage of PVT v2 has one a layer",
        "test_hidden_states_output": (
            "asserts one number of tokens and one width; those of PVT v2 change with the stage"
        ),
    },
)
