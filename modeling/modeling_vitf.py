"""The base of every architecture's models: the base class and the forward passes of the heads.

Shapes: B batch, T frames, N tokens, C channels, H x W pixels, h x w grid of a feature map.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .caches import Resizable, TensorCache
from .shapes import keep_example_size, split_dim

# What learns at one rate where rates fall from layer to layer.
LayerGroup = list[nn.Module | nn.Parameter]


def stage_groups(stage: nn.Module, norm: str | None = None) -> list[LayerGroup]:
    """
    A group for each of the `layers` of a stage. What else the stage has goes with the first of them, except the module
    named `norm`, which follows the last one: it is left out.
    """
    groups: list[LayerGroup] = [[layer] for layer in stage.layers]
    groups[0] += stage.parameters(recurse=False)
    groups[0] += [module for name, module in stage.named_children() if name not in ("layers", norm)]
    return groups


class VitfPreTrainedModel(PreTrainedModel):
    """
    Base of every model of the family.

    A base model's `forward(pixel_values, bool_masked_pos=None, mask_token=None)` returns `last_hidden_state`,
    `pooler_output` (B, `config.pooler_output_size`), what a head reads, and on request `hidden_states` and
    `attentions`. A head names its base model in `encoder_class`, and in `encoder_kwargs` what it is built with.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The losses here are means over the batch: Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Whether there are attention layers whose maps can be recorded.
    has_attention_maps: ClassVar[bool] = True
    # Patterns of the names of parameters with two or more dimensions that take no weight decay: positions and tokens,
    # which decay would pull towards zero for no reason (facebookresearch/deit@7e160fe models.py, no_weight_decay).
    without_weight_decay: ClassVar[tuple[str, ...]] = (r"position|time_embeddings", r"tokens?$")
    # Whether what a tracer or an exporter records of a base model at one size holds at every other: nothing is chosen
    # by the size.
    exports_any_size: ClassVar[bool] = False
    # Tokens of a base model that stand before those of the patches: class, distillation and register tokens.
    num_prefix_tokens = 0
    # What `freeze_caches` keeps, in the base model.
    kept: TensorCache | None = None
    encoder_class: ClassVar[type[PreTrainedModel]]
    encoder_kwargs: ClassVar[dict[str, bool]] = {}

    def add_encoder(self) -> None:
        """Adds the base model under `base_model_prefix`; the first thing that a head does."""
        setattr(self, self.base_model_prefix, self.encoder_class(self.config, **self.encoder_kwargs))

    def feature_map(self, hidden_states: torch.Tensor, height: int, width: int, stage: int = -1) -> torch.Tensor:
        """
        What a stage returned for an image of `height` x `width` pixels as a map: tokens (B, N, C), of which those of
        the patches come last, row by row, to (B, C, rows, columns). Maps stay as they are, but contiguous.
        """
        if hidden_states.ndim == 4:
            return hidden_states.contiguous()
        rows, columns = self.config.feature_map_sizes(height, width)[stage]
        return split_dim(hidden_states[:, -rows * columns :].transpose(1, 2), 2, (rows, columns)).contiguous()

    def layer_groups(self) -> list[LayerGroup]:
        """
        The stem (patches, positions, tokens), then the layers in the order in which they are computed, each with what
        is computed between it and its neighbours. Whatever is in no group comes after the last layer: the last norm and
        the heads.

        A base model with other parts than `embeddings` or `patch_embeddings` and `layers` or `stages` overrides it.
        """
        if self.base_model is not self:
            return self.base_model.layer_groups()
        stem = [module for name, module in self.named_children() if name in ("embeddings", "patch_embeddings")]
        if hasattr(self, "layers"):
            return [stem, *([layer] for layer in self.layers)]
        return [stem, *(group for stage in self.stages for group in stage_groups(stage))]

    def parameters_without_decay(self) -> set[str]:
        """
        Names of the parameters that take no weight decay: norms, biases and scales, which have one dimension, and
        others.
        """
        patterns = self.without_weight_decay
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or any(re.search(pattern, name) for pattern in patterns)
        }

    def freeze_caches(self, max_bytes: int = 128 * 2**20) -> "VitfPreTrainedModel":
        """
        Puts the model into evaluation mode and keeps from now on what it makes of parameters for an input size: resized
        positions, biases by relative position, standardised kernels. Outputs are the same; passes without gradients are
        up to a tenth faster.

        For weights that stay as they are. Most writes are noticed all the same, but not those through `.data` between
        two passes without gradients. `train()` ends it.

        Args:
            max_bytes (`int`, *optional*, defaults to 128 MiB): What is kept at most; then the oldest goes.

        Returns:
            The model itself.
        """
        kept = self.base_model.kept = TensorCache(max_bytes)
        for module in self.modules():
            if isinstance(module, Resizable):
                module.kept = kept
        return self.eval()

    def cast_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Pixels in the dtype of the patch embeddings. Under autocast they stay as they are: it casts them itself.

        Raises:
            TypeError: if they are no floating-point numbers.
        """
        if not pixel_values.is_floating_point():
            raise TypeError(
                f"pixel_values are {pixel_values.dtype}, but models take normalised floating-point pixels: pass images "
                "through the model's processor first"
            )
        weights = [weight for weight in self.get_input_embeddings().parameters() if weight.is_floating_point()]
        # Norms can have another dtype than layers; where weights are sharded, all have one dimension. A replica of
        # DataParallel has no parameters.
        dtypes = [weight.dtype for weight in weights if weight.ndim > 1] or [weight.dtype for weight in weights]
        dtype = dtypes[0] if dtypes else pixel_values.dtype
        if pixel_values.dtype == dtype:
            return pixel_values
        # Autocast does not touch double precision.
        if torch.is_autocast_enabled(pixel_values.device.type) and torch.float64 not in (pixel_values.dtype, dtype):
            return pixel_values
        return pixel_values.to(dtype)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its attention interface in the text of the file; ours is called in attention.py.
        return True

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside transformers, modules without parameters of their own are passed over, lest an in-place
        # initialisation overwrites loaded tensors. Ours does not touch loaded tensors (transformers.initialization),
        # and needs those modules: a layer that knows its role initialises its children.
        super()._initialize_weights(module)


def encoder_forward(forward: Callable) -> Callable:
    """
    Decorates `forward(self, pixel_values, ...)` of every base model: pixels get the dtype of the model, `hidden_states`
    and `attentions` are recorded on request, and what the caller leaves out comes from the configuration. Tracers and
    exporters fix the size, except for models with `exports_any_size`.
    """

    @wraps(forward)
    def forward_cast(self, pixel_values: torch.Tensor, *args, **kwargs):
        if self.kept is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.kept.clear()  # an optimiser may follow, and fused ones write without telling autograd
        pixel_values = self.cast_pixels(pixel_values)
        if not self.exports_any_size:
            pixel_values = keep_example_size(pixel_values)
        return forward(self, pixel_values, *args, **kwargs)

    return merge_with_config_defaults(capture_outputs(forward_cast, tie_last_hidden_states=False))


def masked_embeddings(
    embeddings: torch.Tensor, bool_masked_pos: torch.Tensor | None, mask_token: torch.Tensor | None
) -> torch.Tensor:
    """
    Puts the mask token, or zeros where there is none, in place of masked patches.

    Args:
        embeddings (`torch.Tensor` of shape `(B, N, C)`): Patch tokens, before positions and prefix tokens.
        bool_masked_pos (`torch.BoolTensor` of shape `(B, N)`): True where a patch is masked.
        mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*).
    """
    if bool_masked_pos is None:
        return embeddings
    mask = bool_masked_pos.flatten(1).bool()[..., None]
    if mask_token is None:
        return embeddings.masked_fill(mask, 0)
    return torch.where(mask, mask_token.to(embeddings.dtype), embeddings)


class ImageClassificationMixin:
    """All of `...ForImageClassification`: a `classifier` on the pooled output of the encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.add_encoder()
        self.add_classifiers()
        self.post_init()

    def add_classifiers(self) -> None:
        """Adds what makes logits of the encoder's outputs."""
        self.classifier = self.make_classifier()

    def make_classifier(self) -> nn.Module:
        """From the pooled output to logits: a linear layer, or the identity where there are no labels."""
        size, num_labels = self.config.pooler_output_size, self.config.num_labels
        return nn.Linear(size, num_labels) if num_labels > 0 else nn.Identity()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`).
            labels (`torch.Tensor`, *optional*): `(B,)` class indices; `(B, num_labels)` floats for multi-label targets;
                `(B,)` or `(B, num_labels)` floats for regression (see `config.problem_type`).

        Returns:
            `loss` (if labels are given), `logits` (B, num_labels), and on request `hidden_states` and `attentions`.
        """
        outputs = self.base_model(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class DistilledImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: Mean over both heads (one head: its own), if labels are given.
        logits (`torch.Tensor` of shape `(B, num_labels)`): Mean of both heads.
        cls_logits, distillation_logits (`torch.Tensor` of shape `(B, num_labels)`): Each head, for a distilled model.
        hidden_states, attentions: As the encoder returns them.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cls_logits: torch.FloatTensor | None = None
    distillation_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class DistilledImageClassificationMixin(ImageClassificationMixin):
    """
    All of `...ForImageClassification` with a `classifier` on the pooled output and, when `config.distilled` (else
    `None`), a `distillation_classifier` on `distillation_features`, the second token.

    The two heads' mean is the prediction (arXiv 2012.12877, section 4). Without a teacher both heads learn the labels:
    the original then trains only the class head, which spoils the mean on new classes. A teacher's loss is the
    trainer's work.
    """

    def add_classifiers(self) -> None:
        super().add_classifiers()
        self.distillation_classifier = self.make_classifier() if self.config.distilled else None

    def get_output_embeddings(self) -> nn.Module | None:
        """
        The linear layer of the distillation head. PEFT passes over it when it adapts all layers, as it does over the
        `classifier` that `modules_to_save` names: the name fits the end of both heads' names, so that it saves both.
        """
        if self.distillation_classifier is None:
            return super().get_output_embeddings()
        return next((each for each in self.distillation_classifier.modules() if isinstance(each, nn.Linear)), None)

    def distillation_features(self, outputs: ModelOutput) -> torch.Tensor:
        """Selects what the distillation classifier reads of the encoder's outputs, (B, C)."""
        return outputs.last_hidden_state[:, 1]

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> DistilledImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`).
            labels (`torch.Tensor`, *optional*): As in [`ImageClassificationMixin`].
        """
        outputs = self.base_model(pixel_values, **kwargs)
        heads = [self.classifier(outputs.pooler_output)]
        if self.distillation_classifier is not None:
            heads.append(self.distillation_classifier(self.distillation_features(outputs)))
        loss = None
        if labels is not None:
            loss = sum(self.loss_function(labels, logits, self.config, **kwargs) for logits in heads) / len(heads)
        cls_logits, distillation_logits = heads if len(heads) == 2 else (None, None)
        return DistilledImageClassifierOutput(
            loss=loss,
            logits=sum(heads) / len(heads),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VideoClassificationMixin(ImageClassificationMixin):
    """All of `...ForVideoClassification`: `ImageClassificationMixin` for `pixel_values` (B, T, num_channels, H, W)."""


class MaskedImageModelingMixin:
    """
    All of `...ForMaskedImageModeling`: masked patches become a learned token, and a linear decoder predicts their
    pixels from the last feature map (SimMIM, arXiv 2111.09886, section 3).
    """

    def __init__(self, config):
        super().__init__(config)
        self.add_encoder()
        rows, columns = config.stage_strides[-1]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.stage_channels[0]))
        self.decoder = nn.Conv2d(config.stage_channels[-1], rows * columns * config.num_channels, 1)
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        stem, *layers = super().layer_groups()
        return [[*stem, self.mask_token], *layers]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.trunc_normal_(self.mask_token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **kwargs
    ) -> MaskedImageModelingOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`).
            bool_masked_pos (`torch.BoolTensor` of shape `(B, N)`, *optional*):
                True where the input is masked, for each cell of `config.stage_strides[0]` pixels, row by row.

        Returns:
            `loss` (if a mask is given): the mean absolute error over masked pixels; `reconstruction` (B, num_channels,
            H, W).
        """
        height, width = pixel_values.shape[-2:]
        visible, mask = pixel_values, None
        if bool_masked_pos is not None:
            rows, columns = self.config.stage_strides[0]
            grid = (-(-height // rows), -(-width // columns))
            mask = bool_masked_pos.reshape(-1, 1, *grid).bool()
            mask = mask.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[..., :height, :width]
            # Where patches overlap, or mix before the mask token comes in, pixels of a masked one would be seen by
            # others.
            visible = pixel_values.masked_fill(mask, 0)
        outputs = self.base_model(visible, bool_masked_pos=bool_masked_pos, mask_token=self.mask_token, **kwargs)
        prediction = self.decoder(self.feature_map(outputs.last_hidden_state, height, width))
        rows, columns = self.config.stage_strides[-1]
        # (B, channels * rows * columns, h, w) to (B, channels, h * rows, w * columns)
        blocks = split_dim(prediction, 1, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)
        # Padded windows can reach beyond the image: the prediction is cut back to it.
        reconstruction = blocks.flatten(4, 5).flatten(2, 3)[..., :height, :width]
        if reconstruction.shape != pixel_values.shape:
            raise ValueError(
                f"image size {height}x{width} does not fit masked image modeling: height must be a multiple of {rows} "
                f"and width a multiple of {columns}"
            )
        loss = None
        if mask is not None:
            mask = mask.to(reconstruction.dtype)
            error = (reconstruction - pixel_values).abs() * mask
            loss = error.sum() / (mask.sum() + 1e-5) / self.config.num_channels
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VitfBackboneMixin(BackboneMixin):
    """All of `...Backbone`: feature maps of the stages that `config.out_features` names."""

    has_attentions = True

    def __init__(self, config):
        super().__init__(config)
        self.add_encoder()
        self.post_init()

    def _init_transformers_backbone(self) -> None:
        super()._init_transformers_backbone()
        self.num_features = self.config.stage_channels

    @property
    def strides(self) -> list[tuple[int, int]]:
        """(vertical, horizontal) stride in pixels of each returned feature map."""
        by_stage = dict(zip(self.stage_names, self.config.stage_strides, strict=True))
        return [by_stage[name] for name in self.out_features]

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        """The norm of a stage's tokens before they become a map: the encoder's last one, as in DINOv2."""
        return self.base_model.layernorm(hidden_states)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Padded with zeros, to the right and below,
                where H and W are no multiples of `config.size_multiple`, as ViTDet does (arXiv 2203.16527).

        Returns:
            `feature_maps`: for each name in `out_features`, (B, channels, H / stride, W / stride), rounded up where the
            image is padded.
        """
        limits = zip(pixel_values.shape[-2:], self.config.smallest_size, self.config.size_multiple, strict=True)
        missing = [max(side, smallest) + -max(side, smallest) % step - side for side, smallest, step in limits]
        if any(missing):
            pixel_values = nn.functional.pad(pixel_values, (0, missing[1], 0, missing[0]))
        height, width = pixel_values.shape[-2:]
        outputs = self.base_model(pixel_values, **kwargs)
        feature_maps = tuple(
            self.feature_map(self.normalize_stage(hidden_states, stage), height, width, stage)
            for stage, (name, hidden_states) in enumerate(zip(self.stage_names, outputs.hidden_states, strict=True))
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PyramidBackboneMixin(VitfBackboneMixin):
    """A backbone of stages of different widths: the encoder's last norm belongs only to the last of them."""

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        is_last = stage == len(self.stage_names) - 1
        return self.base_model.layernorm(hidden_states) if is_last else hidden_states


class VideoBackboneMixin(VitfBackboneMixin):
    """
    A backbone for clips, `pixel_values` (B, T, num_channels, H, W): a feature map for each group of
    `config.frame_stride` frames, (B, T / frame_stride, C, H / stride, W / stride). Flattened over the first two
    dimensions they are what a head for images takes.
    """

    def feature_map(self, hidden_states: torch.Tensor, height: int, width: int, stage: int = -1) -> torch.Tensor:
        """
        What a stage returned for frames of `height` x `width` pixels as maps (B, groups, C, rows, columns): tokens (B,
        N, C) of the clip or (B, groups, N, C) of each group, of which those of the patches come last, group by group
        and row by row.
        """
        rows, columns = self.config.feature_map_sizes(height, width)[stage]
        patches = hidden_states[..., self.base_model.num_prefix_tokens :, :]
        if hidden_states.ndim == 3:
            patches = split_dim(patches, 1, (-1, rows * columns))
        return split_dim(patches.transpose(2, 3), 3, (rows, columns)).contiguous()
