"""
What flax names alike in every architecture that was written in it: norms, linear layers, feed-forward and attention
layers.
"""

from ..conversion.rules import Concatenate, Permute, Reshape, Rule


def flax_norm_rules(source: str, target: str) -> list[Rule]:
    """A LayerNorm of flax."""
    return [Rule(f"{source}/scale", f"{target}.weight"), Rule(f"{source}/bias", f"{target}.bias")]


def flax_dense_rules(source: str, target: str) -> list[Rule]:
    """A linear layer of flax."""
    return [Rule(f"{source}/kernel", f"{target}.weight", Permute(1, 0)), Rule(f"{source}/bias", f"{target}.bias")]


def flax_mlp_rules(source: str, target: str) -> list[Rule]:
    """The feed-forward layer of flax's ViT and its descendants."""
    return [
        *flax_dense_rules(f"{source}/Dense_0", f"{target}.fc1"),
        *flax_dense_rules(f"{source}/Dense_1", f"{target}.fc2"),
    ]


def flax_attention_rules(source: str, target: str, width: int, heads: int) -> list[Rule]:
    """An attention layer of flax, whose matrices have a dimension of heads."""
    split, square = (heads, width // heads), (width, width)
    qkv = [f"{source}/{name}/" for name in ("query", "key", "value")]
    return [
        Rule(
            tuple(name + "kernel" for name in qkv),
            target + ".qkv.weight",
            Reshape((width, *split), square),
            Permute(1, 0),
            Concatenate(3),
        ),
        Rule(tuple(name + "bias" for name in qkv), target + ".qkv.bias", Reshape(split, (width,)), Concatenate(3)),
        Rule(f"{source}/out/kernel", target + ".proj.weight", Reshape((*split, width), square), Permute(1, 0)),
        Rule(f"{source}/out/bias", target + ".proj.bias"),
    ]
