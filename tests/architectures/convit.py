import torch
from dossier import CIFAR10_PLAIN, PLAIN, TIMM_VIT, TRUNC_NORMAL, Dossier, Initialisation, TimmGroups

DOSSIER = Dossier(
    tiny={
        "convit": {**PLAIN, "num_hidden_layers": 3, "num_attention_heads": 4, "local_up_to_layer": 2},
        "convit-unplaced": {
            **PLAIN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "local_up_to_layer": 2,
            "position_embedding_type": "none",
        },
    },
    initialisation={
        "convit": Initialisation(
            {
                r"attention\.value\.weight": ("table", lambda shape: torch.eye(shape[0])),
                r"attention\.gate": ("constant", 1.0),
                # Four heads: the corners of a 2 x 2 kernel, by column and row, and the curvature.
                r"attention\.position\.weight": (
                    "table",
                    lambda shape: torch.tensor([[-1.0, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]]),
                ),
                **TRUNC_NORMAL,
            }
        ),
    },
    parity=1e-15,
    cifar10=("convit_tiny", {**CIFAR10_PLAIN, "local_up_to_layer": 3}),
    speed={
        "convit_tiny": ["timm"],
    },
    timm_groups=(TimmGroups("convit_base", {**TIMM_VIT, "embed_dim": 8, "local_up_to_layer": 2}),),
    not_applicable={
        "test_num_layers_is_small": "asserts at most two layers; two gated and one plain layer show both kinds",
        "test_attention_outputs": "asserts all tokens in the first layer; the class token joins after the gates",
        "test_hidden_states_output": "asserts all tokens in the first layer; the class token joins after the gates",
        "test_retain_grad_hidden_states_attentions": (
            "asserts a gradient of the map; a gated one is made only for the caller, the result from its factors"
        ),
    },
)
