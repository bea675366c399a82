"""Attention that every architecture shares: one dispatcher to transformers' attention interface, and plain
self-attention.

Shapes: B batch, h heads, N query tokens, M key tokens, d head width, C channels.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .embeddings import apply_rotary


def probabilities_of(scores: torch.Tensor) -> torch.Tensor:
    """
    Softmax over the keys of (B, h, N, M). Half precision is too coarse for that and is widened; double stays double.
    """
    half = scores.dtype in (torch.float16, torch.bfloat16)
    return scores.softmax(-1, dtype=torch.float32 if half else scores.dtype).to(scores.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Softmax attention that also returns its map.

    Args:
        query (`torch.Tensor` of shape `(B, h, N, d)`), key, value (`(B, h, M, d)`).
        position_bias (`torch.Tensor`, broadcastable to `(B, h, N, M)`): Added to the scores.

    Returns:
        The context `(B, N, h, d)` and the probabilities `(B, h, N, M)`, whose rows sum to 1.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))  # queries are smaller than scores
    for bias in (attention_mask, position_bias):
        if bias is not None:
            scores = scores + bias
    probabilities = probabilities_of(scores).to(query.dtype)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    output_attentions: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Softmax attention by the implementation that `module.config` names (eager, sdpa, flash, flex, or a user's own).

    A call that asks for maps gets them whatever is configured: fused kernels have none, so that call runs eagerly.

    Args:
        module (`nn.Module`): Has `config` and `is_causal = False`; dropout is `config.attention_probs_dropout_prob`.
        query (`torch.Tensor` of shape `(B, h, N, d)`), key, value (`(B, h, M, d)`).
        position_bias (`torch.Tensor`, broadcastable to `(B, h, N, M)`): Added to the scores; without gradient limits.

    Returns:
        The context `(B, N, h * d)` and the map `(B, h, N, M)`, or `None` where a fused kernel ran.
    """
    dropout = module.config.attention_probs_dropout_prob if module.training else 0.0
    learned_bias = position_bias is not None and position_bias.requires_grad
    implementation = "eager" if output_attentions else module.config._attn_implementation
    if implementation == "sdpa" and query.is_cpu and (dropout or learned_bias) and not torch.jit.is_tracing():
        # CPUs have no fused kernel with dropout or with a gradient for the bias; what sdpa does instead is slower.
        implementation = "eager"
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    if position_bias is not None:
        if implementation == "flex_attention":  # it reads the bias of each example by index
            position_bias = position_bias.expand(query.shape[0], -1, -1, -1)
        kwargs["position_bias"] = position_bias
    context, probabilities = interface(
        module,
        query,
        key,
        value,
        None,
        scaling=scaling,
        dropout=dropout,
        **kwargs,
    )
    return context.flatten(2), probabilities


class SelfAttention(nn.Module):
    """
    Multi-head self-attention with one fused projection: rows of `qkv` are [queries; keys; values], each by head.

    Args:
        config: Gives the attention implementation and the two dropout rates. hidden_size (`int`): C. num_heads (`int`):
        h, divides C. qkv_bias (`bool`): Bias of `qkv`; `proj` always has one. head_dim (`int`, *optional*): d; C / h by
        default. With another one, h need not divide C.
    """

    is_causal = False

    def __init__(self, config, hidden_size: int, num_heads: int, qkv_bias: bool, head_dim: int | None = None):
        super().__init__()
        head_dim = head_dim or hidden_size // num_heads
        self.config = config
        self.num_heads = num_heads
        self.scaling = head_dim**-0.5
        self.qkv = nn.Linear(hidden_size, 3 * num_heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * head_dim, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) to (B, N, C) and the map (B, h, N, N); `rotary` turns queries and keys (see `apply_rotary`)."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.output(context), probabilities

    def output(self, context: torch.Tensor) -> torch.Tensor:
        """Projects what the heads read, side by side (B, N, h * d), to the output of the layer (B, N, C)."""
        return self.dropout(self.proj(context))


def mix_heads(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """
    Each head's map becomes a learned combination of all heads' maps.

    Args:
        maps (`torch.Tensor` of shape `(B, h, N, M)`). weight (`torch.Tensor` of shape `(h, h)`): Rows are the new
        heads. bias (`(h,)`): Added to each entry of a new map.

    Returns:
        `torch.Tensor` of shape `(B, h, N, M)`.
    """
    flat = maps.flatten(2)
    # One batched product without moving the heads to the last dimension, which would copy the maps twice.
    return torch.baddbmm(bias[:, None], weight.expand(flat.shape[0], -1, -1), flat).view(maps.shape)


class HeadMixing(nn.Module):
    """A learned linear combination over heads (see `mix_heads`): `weight` (h, h) and `bias` (h)."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(num_heads))
        self.bias = nn.Parameter(torch.zeros(num_heads))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return mix_heads(maps, self.weight, self.bias)
