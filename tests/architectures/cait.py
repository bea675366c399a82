from dossier import CIFAR10_PLAIN, PLAIN, TIMM_VIT, TRUNC_NORMAL, Dossier, Initialisation, TimmGroups

DOSSIER = Dossier(
    tiny={
        "cait": {**PLAIN, "class_attention_mlp_ratio": 2, "layer_scale_init_value": 0.1},
    },
    initialisation={
        "cait": Initialisation(TRUNC_NORMAL),
    },
    parity=1e-15,
    cifar10=("cait_xxs24_224", {**CIFAR10_PLAIN, "class_attention_mlp_ratio": 2, "layer_scale_init_value": 0.1}),
    speed={
        "cait_xxs24_224": ["timm"],
    },
    mixes_heads=True,
    own_maps=("ForMaskedImageModeling", "Backbone"),
    # One number for all keys, which the softmax takes out.
    untrained={"*": r"mix_scores\.bias$"},
    # timm pairs the layers of the class token with the last layers of the patches, although they follow them.
    timm_groups=(TimmGroups("cait_s24_224", {**TIMM_VIT, "depth_token_only": 2}, apart="class_stage.layers."),),
    not_applicable={
        "test_attention_outputs": (
            "asserts num_hidden_layers maps of all tokens; the layers of class attention give maps of "
            "the class token besides"
        ),
        "test_hidden_states_output": "asserts all tokens in the first layer; the class token joins after the last",
    },
)
