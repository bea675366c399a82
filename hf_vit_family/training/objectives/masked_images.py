"""
Learning to tell what was hidden of an image: SimMIM (arXiv 2111.09886) and masked patch prediction (arXiv 2010.11929,
appendix B.1.2).

Shapes: B batch, C channels, H x W pixels, N cells of the mask, each of `config.stage_strides[0]` pixels, row by row.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...data.augmentation import stack_samples
from ...errors import UserError
from .objective import PretextObjective, Samples


@dataclass(frozen=True)
class BlockGrid:
    """
    The blocks of an image that are masked as a whole, and the cells of a model's mask in them.

    Args:
        rows, columns: Blocks of an image.
        cells: Rows and columns of cells in a block.
        masked: Blocks of an image that are masked.
    """

    rows: int
    columns: int
    cells: tuple[int, int]
    masked: int

    @property
    def count(self) -> int:
        """Blocks of an image."""
        return self.rows * self.columns

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        image_size: tuple[int, int],
        block_size: tuple[int, int],
        mask_ratio: float,
        what: str,
    ) -> "BlockGrid":
        """
        Blocks of `block_size` pixels, of which the part `mask_ratio` is masked, rounded up as in
        microsoft/SimMIM@d3e29bc data/data_simmim.py.

        Args:
            what: What gives the size of a block, for messages.

        Raises:
            UserError: if whole cells do not fill a block, or whole blocks an image, or no block would be left to see.
        """
        sides = []
        for name, side, block, cell in zip(
            ("height", "width"), image_size, block_size, model.config.stage_strides[0], strict=True
        ):
            if block % cell:
                near = max(1, round(block / cell)) * cell
                raise UserError(
                    f"{what} {block}: the {name} of a masked block must be a multiple of the {cell} pixels that "
                    f"{type(model).__name__} masks at a time, such as {near}"
                )
            if side % block:
                fitting = [size for size in range(cell, side // 2 + 1, cell) if side % size == 0]
                raise UserError(
                    f"{what} {block} does not divide the image's {name} of {side} pixels; "
                    + (f"sizes that do are {', '.join(map(str, fitting))}" if fitting else "choose another image_size")
                )
            sides.append((side // block, block // cell))
        (rows, row_cells), (columns, column_cells) = sides
        masked = math.ceil(rows * columns * mask_ratio)
        if not 0 < masked < rows * columns:
            raise UserError(
                f"{what} {block_size[0]} and mask_ratio {mask_ratio:g} mask {masked} of the {rows * columns} blocks "
                f"of an image of {image_size[0]} x {image_size[1]} pixels: choose smaller blocks, or another ratio"
            )
        return cls(rows, columns, (row_cells, column_cells), masked)

    def cell_mask(self, blocks: torch.Tensor) -> torch.Tensor:
        """Booleans of blocks (B, rows * columns) as those of cells (B, N)."""
        mask = blocks.view(-1, self.rows, self.columns)
        return mask.repeat_interleave(self.cells[0], 1).repeat_interleave(self.cells[1], 2).flatten(1)


def draw_blocks(grid: BlockGrid, generator: torch.Generator) -> torch.Tensor:
    """A random choice of exactly `grid.masked` blocks, (rows * columns,) booleans."""
    chosen = torch.zeros(grid.count, dtype=torch.bool)
    chosen[torch.randperm(grid.count, generator=generator)[: grid.masked]] = True
    return chosen


def _generators(samples: Samples) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sample["seed"]) for sample in samples]


@dataclass(frozen=True)
class BlockMaskCollate:
    """Stacks samples and masks blocks of each: also `bool_masked_pos` (B, N)."""

    grid: BlockGrid

    def __call__(self, samples: Samples) -> dict[str, torch.Tensor]:
        blocks = torch.stack([draw_blocks(self.grid, generator) for generator in _generators(samples)])
        return {**stack_samples(samples), "bool_masked_pos": self.grid.cell_mask(blocks)}


class SimmimObjective(PretextObjective):
    """
    SimMIM: the mean absolute error of the normalised pixels under the mask, as `...ForMaskedImageModeling` computes it.

    Args:
        model: A `...ForMaskedImageModeling`.
        grid: Which blocks are masked.
    """

    title = "SimMIM (arXiv 2111.09886)"
    head = "ForMaskedImageModeling"

    def __init__(self, model: PreTrainedModel, grid: BlockGrid):
        super().__init__(model)
        self.grid = grid
        self.collate = BlockMaskCollate(grid)

    @classmethod
    def from_options(
        cls, model: PreTrainedModel, options, processor: BaseImageProcessor, image_size: tuple[int, int]
    ) -> "SimmimObjective":
        ratio = 0.6 if options.mask_ratio is None else options.mask_ratio
        blocks = (options.mask_patch_size, options.mask_patch_size)
        return cls(model, BlockGrid.for_model(model, image_size, blocks, ratio, "mask_patch_size"))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pixel_values, mask = batch["pixel_values"], batch["bool_masked_pos"]
        outputs = self.model(pixel_values=pixel_values, bool_masked_pos=mask)
        if self.training:
            return {"loss": outputs.loss}
        rows, columns = self.model.config.stage_strides[0]
        shape = (-1, 1, self.grid.rows * self.grid.cells[0], self.grid.columns * self.grid.cells[1])
        pixels = mask.view(shape).repeat_interleave(rows, 2).repeat_interleave(columns, 3)
        error = (outputs.reconstruction - pixel_values).abs() * pixels
        return {"loss": error.sum((1, 2, 3)) / (pixels.sum((1, 2, 3)) * pixel_values.shape[1])}


@dataclass(frozen=True)
class CorruptPatchesCollate:
    """
    Stacks samples and chooses patches to corrupt, which are the blocks of `grid`. Of those chosen, each for itself, the
    share `masked` gets the mask token, the share `replaced` another patch of the image, and the rest stays.

    Returns:
        Also `chosen` (B, P) booleans of the P patches, `masked` (B, P) those of them with the mask token, and `source`
        (B, P), the patch whose pixels each shows: its own index or another's.
    """

    grid: BlockGrid
    masked: float = 0.8
    replaced: float = 0.1

    def __call__(self, samples: Samples) -> dict[str, torch.Tensor]:
        count, decisions = self.grid.count, []
        own = torch.arange(count)
        for generator in _generators(samples):
            chosen = draw_blocks(self.grid, generator)
            fate = torch.rand(count, generator=generator)
            other = (own + torch.randint(1, count, (count,), generator=generator)) % count
            moved = chosen & (fate >= self.masked) & (fate < self.masked + self.replaced)
            decisions.append((chosen, chosen & (fate < self.masked), torch.where(moved, other, own)))
        chosen, masked, source = map(torch.stack, zip(*decisions, strict=True))
        return {**stack_samples(samples), "chosen": chosen, "masked": masked, "source": source}


class MaskedPatchObjective(PretextObjective):
    """
    Masked patch prediction: the cross-entropy of the mean colour of each corrupted patch, among `2 ** (bits * C)`
    colours.

    A patch is what a token of the last feature map stands for. Patches are replaced as pixels; with patches that do not
    overlap this is what the paper does to their embeddings. Means are those of the pixels before normalisation, in 0 to
    1; one exactly on the edge of two bins belongs to the lower, as in lucidrains/vit-pytorch@aa49c27
    vit_pytorch/mpp.py.

    Args:
        model: A backbone.
        grid: Its patches, and how many are corrupted.
        mean, std: What the C channels of the pixels were normalised with.
        bits: Of each channel's mean.
    """

    title = "masked patch prediction (arXiv 2010.11929, appendix B.1.2)"
    # What a classifier pools with has nothing to learn here: a base model would hold it.
    head = "Backbone"

    def __init__(self, model: PreTrainedModel, grid: BlockGrid, mean: list[float], std: list[float], bits: int = 3):
        super().__init__(model)
        self.grid = grid
        self.collate = CorruptPatchesCollate(grid)
        self.bits = bits
        config = model.config
        self.mask_token = nn.Parameter(torch.zeros(config.stage_channels[0]))
        self.colors = nn.Linear(config.stage_channels[-1], 2 ** (bits * config.num_channels))
        nn.init.trunc_normal_(self.mask_token, std=config.initializer_range)
        nn.init.trunc_normal_(self.colors.weight, std=config.initializer_range)
        nn.init.zeros_(self.colors.bias)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    @classmethod
    def from_options(
        cls, model: PreTrainedModel, options, processor: BaseImageProcessor, image_size: tuple[int, int]
    ) -> "MaskedPatchObjective":
        ratio = 0.5 if options.mask_ratio is None else options.mask_ratio
        patch = model.config.stage_strides[-1]
        grid = BlockGrid.for_model(model, image_size, patch, ratio, "a patch of")
        return cls(model, grid, processor.image_mean, processor.image_std)

    def split_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, P, C, pixels of a patch)."""
        maps = pixel_values.unflatten(3, (self.grid.columns, -1)).unflatten(2, (self.grid.rows, -1))
        return maps.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)

    def color_labels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The class (B, P) of each patch's mean colour: of each channel one digit of base `2 ** bits`, the first the
        lowest.
        """
        means = self.split_patches(pixel_values).mean(3) * self.std.to(pixel_values) + self.mean.to(pixel_values)
        count = 2**self.bits
        edges = torch.arange(1, count, device=means.device, dtype=means.dtype) / count
        digits = torch.bucketize(means, edges)
        return (digits * count ** torch.arange(digits.shape[2], device=digits.device)).sum(2)

    def corrupt(self, pixel_values: torch.Tensor, masked: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) whose patches show those of `source` (B, P), and zeros where they are `masked` (B, P)."""
        patches = self.split_patches(pixel_values)
        index = source[..., None, None].expand_as(patches)
        # Where patches overlap, or mix before the mask token comes in, pixels of a masked one would be seen by others.
        patches = patches.gather(1, index).masked_fill(masked[..., None, None], 0)
        height = pixel_values.shape[2] // self.grid.rows
        maps = patches.unflatten(3, (height, -1)).unflatten(1, (self.grid.rows, self.grid.columns))
        return maps.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def logits(self, pixel_values: torch.Tensor, masked: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Of each patch's colour, (B, P, 2 ** (bits * C))."""
        height, width = pixel_values.shape[2:]
        outputs = self.model.base_model(
            self.corrupt(pixel_values, masked, source),
            bool_masked_pos=self.grid.cell_mask(masked),
            mask_token=self.mask_token.view(1, 1, -1),
        )
        features = self.model.feature_map(outputs.last_hidden_state, height, width)
        return self.colors(features.flatten(2).transpose(1, 2))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        chosen = batch["chosen"]
        logits = self.logits(batch["pixel_values"], batch["masked"], batch["source"])
        labels = self.color_labels(batch["pixel_values"])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * chosen
        if self.training:
            return {"loss": losses.sum() / chosen.sum()}
        return {"loss": losses.sum(1) / chosen.sum(1)}
