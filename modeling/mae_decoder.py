"""What MAE (arXiv 2111.06377) has besides an encoder: the choice of patches that it reads, and a decoder of the others.

Order of operations from facebookresearch/mae@efb2a80 models_mae.py.

Shapes: B batch, N patches (row by row), K of them visible, P prefix tokens, C and D channels of encoder and decoder,
H x W pixels, p x q pixels of a patch.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .caches import size_table
from .configuration_vitf import pair
from .embeddings import FrozenPositionEmbeddings, PositionEmbeddings, check_input, sincos_positions
from .shapes import split_dim


@dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """
    Args:
        loss: Mean squared error of the masked patches: of the mean over each patch's values, the mean over patches.
        logits (`torch.Tensor` of shape `(B, N, p * q * num_channels)`):
            The values that are predicted of each patch, pixel by pixel and row by row, the channels of a pixel
            together. With `config.norm_pix_loss` they are normalised by the mean and deviation of the patch.
        mask (`torch.Tensor` of shape `(B, N)`): 1 where a patch was hidden from the encoder, 0 where it was visible.
        ids_restore (`torch.LongTensor` of shape `(B, N)`):
            The place of each patch among all in the order of the noise, of which the first K were visible.
        hidden_states, attentions: As the encoder returns them, of the prefix tokens and the visible patches, in that
            order.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def fixed_noise(count: int, device: torch.device) -> torch.Tensor:
    """
    The same scattered numbers each time, (1, count): an integer hash of their indices (the last steps of MurmurHash3).
    A generator of torch's could not be exported.
    """
    bits = 0xFFFFFFFF
    noise = (torch.arange(1, count + 1, device=device) * 0x9E3779B1) & bits
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        noise = ((noise ^ (noise >> shift)) * factor) & bits
    return (noise ^ (noise >> 16))[None]


def choose_tokens(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of tokens (B, N, C) those of each example at `index` (B, K), in that order: (B, K, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def to_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """(B, num_channels, H, W) to the values of each patch, (B, N, p * q * num_channels), channels last."""
    rows, columns = patch_size
    patches = split_dim(split_dim(pixel_values, 3, (-1, columns)), 2, (-1, rows))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(patches: torch.Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """The inverse of [`to_patches`], for a `grid` of rows and columns of patches."""
    patches = split_dim(split_dim(patches, 2, (*patch_size, -1)), 1, grid)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def fixed_table(positions: PositionEmbeddings) -> torch.Tensor:
    """
    The sine-cosine values of a table of positions, with rows of zeros for prefix tokens: what the original starts from
    and keeps. Where the width is no multiple of four, that of the next multiple is cut.
    """
    prefix, width = positions.num_prefix_tokens, positions.weight.shape[-1]
    table = sincos_positions(-(-width // 4) * 4, positions.grid)[..., :width]
    return nn.functional.pad(table, (0, 0, prefix, 0)).to(positions.weight)


class MaeDecoder(nn.Module):
    """
    What was read of an image to all of it: tokens of the encoder (B, P + K, C) to the values of each patch
    (B, N, p * q * num_channels). A mask token stands where a patch was hidden, and fixed positions tell them apart.

    Args:
        config: Gives sizes. layers: Its layers, of width D. grid: Rows and columns of patches of the table of
            positions.
        num_prefix_tokens: P.
    """

    def __init__(self, config, layers: nn.ModuleList, grid: tuple[int, int], num_prefix_tokens: int):
        super().__init__()
        width, (rows, columns) = config.decoder_hidden_size, pair(config.patch_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.projection = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = FrozenPositionEmbeddings(
            width, grid, num_prefix_tokens, config.position_interpolation
        )
        self.layers = layers
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.prediction = nn.Linear(width, rows * columns * config.num_channels)

    def forward(self, hidden_states: torch.Tensor, ids_restore: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`ids_restore` (B, N) is the place of each patch among the visible ones and then the hidden ones."""
        tokens, prefix = self.projection(hidden_states), self.num_prefix_tokens
        batch, count = ids_restore.shape
        hidden = self.mask_token.to(tokens.dtype).expand(batch, count + prefix - tokens.shape[1], -1)
        patches = choose_tokens(torch.cat((tokens[:, prefix:], hidden), dim=1), ids_restore)
        tokens = torch.cat((tokens[:, :prefix], patches), dim=1)
        tokens = tokens + self.position_embeddings(grid, like=tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.prediction(self.layernorm(tokens)[:, prefix:])


class PreTrainingMixin:
    """
    All of `...ForPreTraining` of a plain sequence of patches: the encoder reads the share `1 - config.mask_ratio` of
    the patches only, and a `decoder` predicts the pixels of the others (MAE, arXiv 2111.06377).

    A table of positions is fixed while this class trains, and starts as sine-cosine, as in the original; a classifier
    with the same configuration then learns it. The encoder sees to that, and takes `visible` patches.
    """

    def __init__(self, config):
        super().__init__(config)
        self.add_encoder()
        grid = config.feature_map_sizes(*pair(config.image_size))[-1]
        self.decoder = MaeDecoder(config, self.make_decoder_layers(), grid, self.base_model.num_prefix_tokens)
        self.post_init()

    def make_decoder_layers(self) -> nn.ModuleList:
        """The layers of the decoder."""
        raise NotImplementedError

    def hide(self, pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Pixels as the encoder gets them, which leaves out the tokens of the patches under the `mask` (B, N) itself. One
        whose tokens see pixels of their neighbours overrides it.
        """
        return pixel_values

    def num_visible(self, count: int) -> int:
        """How many of `count` patches the encoder reads: the share `1 - config.mask_ratio`, rounded down."""
        kept = int(count * (1 - self.config.mask_ratio))
        return kept if self.base_model.num_prefix_tokens else max(kept, 1)  # it needs a token

    def noise_for(self, pixel_values: torch.Tensor, count: int) -> torch.Tensor:
        """
        (B, count) numbers that decide what is visible: random ones in training mode, and in evaluation mode fixed ones,
        the same for each example.
        """
        if self.training:
            return torch.rand(pixel_values.shape[0], count, device=pixel_values.device)
        return size_table(fixed_noise, count, pixel_values.device).expand(pixel_values.shape[0], -1)

    def targets(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        What is to be predicted of each patch, (B, N, p * q * num_channels), and the mean and deviation (B, N, 1) that
        `config.norm_pix_loss` normalises it with: of the unbiased variance and 1e-6. Without it they are 0 and 1.
        """
        # Half precision is too coarse for a variance, and for sums over many patches.
        pixel_values = pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32))
        patches = to_patches(pixel_values, pair(self.config.patch_size))
        if not self.config.norm_pix_loss:
            return patches, torch.zeros_like(patches[..., :1]), torch.ones_like(patches[..., :1])
        mean = patches.mean(dim=-1, keepdim=True)
        deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        return (patches - mean) / deviation, mean, deviation

    def patch_errors(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The mean squared error of each patch, (B, N), whether it was hidden or not."""
        return (logits - self.targets(pixel_values)[0]).square().mean(dim=-1)

    def reconstruct(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        The prediction as pixels (B, num_channels, H, W). With `config.norm_pix_loss` the mean and deviation of each
        patch, which are not predicted, are those of the image.
        """
        _, mean, deviation = self.targets(pixel_values)
        grid = self.config.feature_map_sizes(*pixel_values.shape[-2:])[-1]
        return from_patches(logits * deviation + mean, pair(self.config.patch_size), grid)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, **kwargs
    ) -> MaskedAutoencoderOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W multiples of the patch size.
            noise (`torch.Tensor` of shape `(B, N)`, *optional*):
                Decides what is visible: of each image the `num_visible(N)` patches with the smallest numbers. By
                default it is random in training mode and fixed in evaluation mode.
        """
        check_input(pixel_values, self.config.num_channels, self.config.size_multiple)
        grid = self.config.feature_map_sizes(*pixel_values.shape[-2:])[-1]
        count = grid[0] * grid[1]
        if noise is None:
            noise = self.noise_for(pixel_values, count)
        elif noise.shape != (pixel_values.shape[0], count):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but there is one number for each of the {count} patches of "
                f"{pixel_values.shape[0]} images: ({pixel_values.shape[0]}, {count})"
            )
        kept = self.num_visible(count)
        order = noise.argsort(dim=1, stable=True)
        ids_restore = order.argsort(dim=1)
        mask = ids_restore >= kept
        outputs = self.base_model(self.hide(pixel_values, mask), visible=order[:, :kept], **kwargs)
        logits = self.decoder(outputs.last_hidden_state, ids_restore, grid)
        errors = self.patch_errors(pixel_values, logits)
        mask = mask.to(errors.dtype)
        return MaskedAutoencoderOutput(
            loss=(errors * mask).sum() / mask.sum().clamp(min=1),
            logits=logits,
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
