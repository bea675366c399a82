"""Classes of vit-pytorch that no configuration here computes as, by their keys, and how they differ from the papers."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..conversion.rules import find_indices


@dataclass(frozen=True)
class RefusedClass:
    """
    A class of vit-pytorch 1.26.11.

    Args:
        name: Its name there. file: Its file in vit_pytorch/.
        requires: Key patterns of which each is found in its state dicts; together in those of no other class.
        reason: What it does, and what the paper's does.
        forbids: Key patterns of which none is found there.
    """

    name: str
    file: str
    requires: tuple[str, ...]
    reason: str
    forbids: tuple[str, ...] = ()

    def fits(self, keys: Iterable[str]) -> bool:
        return all(find_indices(each, keys) for each in self.requires) and not any(
            find_indices(each, keys) for each in self.forbids
        )


REFUSED = (
    RefusedClass(
        "ViT with one head",
        "vit.py",
        (
            "to_patch_embedding.2.weight",
            "transformer.layers.{i}.0.to_qkv.weight",
            "transformer.layers.{i}.1.net.0.weight",
        ),
        "has no output projection of attention where its one head is as wide as a token, and the paper's always has "
        "one",
        forbids=(
            *("transformer.layers.{i}.0.to_out.*", "transformer.layers.{i}.0.to_out.0.*"),
            "to_patch_embedding.{n}.layers.{i}.0.to_qkv.weight",
        ),
    ),
    RefusedClass(
        "ViT for small data sets",
        "vit_for_small_dataset.py",
        ("to_patch_embedding.to_patch_tokens.1.weight", "transformer.layers.{i}.0.temperature"),
        "cuts patches from shifted images, too, and lets no token attend to itself, where the paper's ViT does neither",
    ),
    RefusedClass(
        "DeepViT",
        "deepvit.py",
        ("transformer.layers.{i}.0.reattn_weights", "transformer.layers.{i}.0.reattn_norm.1.weight"),
        "normalises its mixed attention maps by a layer norm over the heads, where the paper's has a batch norm",
    ),
    RefusedClass(
        "CaiT",
        "cait.py",
        ("patch_transformer.layers.{i}.0.fn.mix_heads_pre_attn", "cls_transformer.layers.{i}.0.fn.to_kv.weight"),
        "mixes heads in class attention, too, and does not normalise the patches that it reads, where the paper's "
        "mixes heads among the patches only, and normalises what class attention reads",
    ),
    RefusedClass(
        "T2TViT",
        "t2t.py",
        ("to_patch_embedding.{n}.layers.0.0.to_qkv.weight", "pos_embedding"),
        "attends to the unfolded pixels in their full width, where the paper's first projects them to a small one",
    ),
    RefusedClass(
        "CrossViT",
        "cross_vit.py",
        ("sm_image_embedder.cls_token", "multi_scale_encoder.layers.{i}.2.layers.{j}.0.fn.to_kv.weight"),
        "adds what a class token reads in the other branch to the old one, where the paper's replaces it, with a norm "
        "and an activation before each projection between the branches",
    ),
    RefusedClass(
        "PiT",
        "pit.py",
        ("to_patch_embedding.2.weight", "layers.{i}.layers.{j}.0.to_qkv.weight", "cls_token"),
        "pools by a depth-wise and a point-wise convolution and has a position for the class token, where the paper's "
        "has the depth-wise convolution only, and no such position",
    ),
    RefusedClass(
        "LeViT",
        "levit.py",
        ("conv_embedding.0.weight", "backbone.{i}.layers.{j}.0.pos_bias.weight"),
        "has a stem of four convolutions with nothing between them, where the paper's has a batch norm and Hardswish "
        "after each",
    ),
    RefusedClass(
        "CvT",
        "cvt.py",
        ("layers.{i}.1.g", "layers.{i}.2.layers.{j}.0.to_kv.net.1.running_mean"),
        "has no class token and scales scores by the width of a head, where the paper's has one in the last stage, "
        "and scales by the width of all heads",
    ),
    RefusedClass(
        "TwinsSVT",
        "twins_svt.py",
        ("layers.{i}.0.proj.0.g", "layers.{i}.1.layers.{j}.2.fn.to_kv.weight"),
        "makes global keys and values by one convolution, where the paper's reduces the map by a convolution, "
        "normalises it and projects it",
    ),
    RefusedClass(
        "RegionViT",
        "regionvit.py",
        ("region_encoder.1.weight", "layers.{i}.2.local_rel_pos_bias.weight"),
        "has one table of relative positions for all layers of a stage, and in each layer one norm for regional and "
        "local tokens, where the paper's has a table for each layer and a norm for each kind",
    ),
    RefusedClass(
        "NesT",
        "nest.py",
        ("to_patch_embedding.1.g", "layers.{i}.0.pos_emb"),
        "adds one number to all channels of a position, where the paper's adds a vector",
    ),
    RefusedClass(
        "LocalViT",
        "local_vit.py",
        ("to_patch_embedding.1.weight", "transformer.layers.{i}.1.fn.fn.net.3.net.0.weight"),
        "has a layer norm over each row of a map and no batch norm in its feed-forward layers, where the paper's has "
        "batch norms",
    ),
)


def refused_class(keys: Iterable[str]) -> str | None:
    """Why a state dict of these keys cannot be converted, if it is that of such a class; `None` otherwise."""
    keys = list(keys)
    found = next((each for each in REFUSED if each.fits(keys)), None)
    return found and f"this is vit-pytorch's {found.name}, which {found.reason}; not convertible"
