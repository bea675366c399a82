from dossier import CIFAR10_PLAIN, NORMS, PLAIN, TRUNC_NORMAL, WIDTH, Dossier, Initialisation

FEED_FORWARD = {
    **NORMS,
    r"feed_forward\.expansion\.": ("uniform", WIDTH**-0.5),
    r"feed_forward\.depthwise\.": ("uniform", 1 / 3),
    r"feed_forward\.reduction\.": ("uniform", (2 * WIDTH) ** -0.5),
}

DOSSIER = Dossier(
    tiny={
        "localvit": {**PLAIN, "se_reduction": 8},
        "localvit-eca": {**PLAIN, "channel_attention": "eca", "hidden_act": "relu6"},
    },
    initialisation={
        "localvit": Initialisation({**FEED_FORWARD, **TRUNC_NORMAL}),
    },
    parity=1e-15,
    cifar10=("localvit_tiny_mlp4_act3_r192", {**CIFAR10_PLAIN, "se_reduction": 16}),
    # It changes the patches, of which the class token sees nothing more.
    untrained={"ForImageClassification": r"layers\.1\.feed_forward\."},
)
