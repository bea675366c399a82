from dossier import CIFAR10_PLAIN, PLAIN, TIMM_VIT, TRUNC_NORMAL, Dossier, Initialisation, TimmGroups

DOSSIER = Dossier(
    tiny={
        "deit": PLAIN,
        "deit-plain": {**PLAIN, "distilled": False},
    },
    initialisation={
        "deit": Initialisation(TRUNC_NORMAL),
    },
    parity=2e-15,
    cifar10=("deit_tiny_distilled_patch16_224", CIFAR10_PLAIN),
    speed={
        "deit_tiny_patch16_224": ["timm", "transformers"],
    },
    timm_groups=(TimmGroups("deit_base_distilled_patch16_224", TIMM_VIT),),
)
