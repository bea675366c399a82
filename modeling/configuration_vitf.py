"""The base of every architecture's configuration: image geometry, variants by name, strict field names."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

from .code_files import CodeFilesMixin

logger = logging.get_logger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

# Keys that transformers itself writes into a config.json or passes to a constructor, besides its dataclass fields.
_TRANSFORMERS_KEYS = frozenset(
    {
        *("model_type", "auto_map", "quantization_config", "custom_pipelines", "_commit_hash", "name_or_path"),
        *("_name_or_path",),  # in the configuration of a model that another model contains
        *("use_cache", "distributed_config", "fusion_config"),  # Trainer writes use_cache into every config
        *("num_labels", "torch_dtype", "output_attentions", "attn_implementation", "experts_implementation"),
        *("tie_word_embeddings",),  # generic tools set it on any model's configuration
        *("out_features", "out_indices", "stage_names"),
    }
)


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """(height, width) of a size that is given as one number or as two."""
    return (size, size) if isinstance(size, int) else tuple(size)


def unknown_name_message(kind: str, name: str, valid: Iterable[str]) -> str:
    """One line that names what is wrong and the nearest valid name."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint}"


def keep_unknown_keys(owner: Any, keys: dict[str, Any], valid: Iterable[str]) -> None:
    """
    Keeps the keys of a file that an object has no field for: as attributes, which are saved again. Warns once about
    each.

    A key that would replace a method or a derived value of the object is left out.

    Args:
        owner: A configuration or a processor that was read from a file. keys (`dict[str, Any]`): The unknown keys.
        valid (`Iterable[str]`): The known ones; one that is very near is named.
    """
    for name, value in keys.items():
        if hasattr(type(owner), name):
            fate = "It is left out, for it would replace what the class has under this name."
        else:
            setattr(owner, name, value)
            fate = "It is kept, and changes nothing."
        near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        logger.warning_once(f"{type(owner).__name__}: the file has a key {name!r} that is no field.{hint} {fate}")


@strict
class VitfConfig(CodeFilesMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Base of every configuration of the family.

    Args:
        image_size (`int` or `(int, int)`, *optional*, defaults to 224):
            Height and width in pixels that positions are built for. Models take other sizes at call time.
        num_channels (`int`, *optional*, defaults to 3): Channels of the input.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout after embeddings, attention projections and feed-forward layers.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of attention probabilities.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth: probability of skipping a residual branch in the last layer, rising linearly from 0.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every LayerNorm.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of initialisation.

    A saved configuration, which has a `model_type`, is read tolerantly: an unknown key is kept with a warning, and a
    field's former name (`RENAMED`) stands for the field.

    Raises:
        ValueError: for a keyword that is no field (the nearest valid name is given) or values that do not fit.
    """

    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {}
    # Names that fields had in files of earlier versions, with those of today.
    RENAMED: ClassVar[dict[str, str]] = {}
    # Keys of a row of VARIANTS that belong to the processor, not to the configuration, with their defaults.
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        "crop_pct": 0.875,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": "bicubic",
    }
    # The decoder-style names of transformers' default plan do not exist here.
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"layers.*": "free_full_weight"}

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __init_subclass__(cls, *args, **kwargs):
        super().__init_subclass__(*args, **kwargs)
        init = cls.__init__

        @functools.wraps(init)
        def renaming_init(self, *args, **values):
            init(self, *args, **(cls._with_present_names(values) if "model_type" in values else values))

        # Before the fields are set: each class's `__post_init__` finds them under their present names.
        cls.__init__ = renaming_init

    @classmethod
    def _with_present_names(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """The keys of a saved configuration, renamed as `RENAMED` says. A present name wins over a former one."""
        renamed = {cls.RENAMED[name]: value for name, value in saved.items() if name in cls.RENAMED}
        return {**renamed, **{name: value for name, value in saved.items() if name not in cls.RENAMED}}

    def __post_init__(self, **kwargs):
        valid = {f.name for f in fields(self) if not f.name.startswith("_")}
        offered = valid | {"num_labels", "out_features", "out_indices"}
        unknown = {name: kwargs.pop(name) for name in list(kwargs) if name not in valid | _TRANSFORMERS_KEYS}
        # Only a saved configuration says what type of model it is for.
        if unknown and "model_type" not in kwargs:
            name = next(iter(unknown))
            message = unknown_name_message("field", name, offered)
            if name in self.RENAMED:
                message = f"unknown field {name!r}: it is called {self.RENAMED[name]!r} now"
            raise ValueError(f"{type(self).__name__}: {message}")
        kwargs.pop("stage_names", None)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        if unknown:  # transformers drops what belongs to a generation_config.json, and refuses to save it here
            generation = vars(GenerationConfig())
            keep_unknown_keys(self, {name: unknown[name] for name in unknown if name not in generation}, offered)
        self.stage_names = self.make_stage_names()
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        The configuration that a config.json holds; `kwargs` replace its values.

        Raises:
            ValueError: for a keyword that names a value which follows from others.
        """
        for name in kwargs:
            member = getattr(cls, name, None)
            if isinstance(member, property) and member.fset is None:
                raise ValueError(f"{cls.__name__}: {name!r} follows from other fields and cannot be set")
        return super().from_dict({"model_type": cls.model_type, **config_dict}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file):
        """The configuration that a config.json holds."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def make_stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone can return, "stem" first."""
        return ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's `pixel_values` at the configured size: (num_channels, H, W)."""
        return (self.num_channels, *pair(self.image_size))

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the feature map of each stage."""
        return [self.hidden_size] * len(self.stage_names)

    @property
    def pooler_output_size(self) -> int:
        """Channels of the base model's `pooler_output`."""
        return self.stage_channels[-1]

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        """(vertical, horizontal) stride in pixels of the feature map of each stage."""
        return [pair(self.patch_size)] * len(self.stage_names)

    @property
    def size_multiple(self) -> tuple[int, int]:
        """(vertical, horizontal): what height and width in pixels must be multiples of. Backbones pad other images."""
        return self.stage_strides[0]

    @property
    def smallest_size(self) -> tuple[int, int]:
        """(vertical, horizontal): the least height and width in pixels. Backbones pad smaller images."""
        return self.size_multiple

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(rows, columns) of the feature map of each stage, for an image of `height` x `width` pixels."""
        # Of positive numbers: TorchScript's exporter rounds negative ones towards zero.
        return [((height + rows - 1) // rows, (width + columns - 1) // columns) for rows, columns in self.stage_strides]

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "VitfConfig":
        """
        The configuration of a published variant.

        Args:
            name (`str`): A key of `VARIANTS`, for example `"deit_tiny_patch16_224"`.
            overrides: Fields that replace the variant's own.

        Raises:
            ValueError: if the variant or a field does not exist.
        """
        if name not in cls.VARIANTS:
            raise ValueError(f"{cls.__name__}: {unknown_name_message('variant', name, cls.VARIANTS)}")
        row = {key: value for key, value in cls.VARIANTS[name].items() if key not in cls.PREPROCESSING}
        if "id2label" in overrides:  # the labels say how many there are
            row.pop("num_labels", None)
        else:
            row.setdefault("num_labels", 1000)
        return cls(**{**row, **overrides})

    @classmethod
    def preprocessing(cls, name: str | None) -> dict[str, Any]:
        """
        How images are prepared for a variant, or by default: `image_size`, `crop_pct`, `image_mean`, `image_std`,
        `resample`.
        """
        if name is not None and name not in cls.VARIANTS:
            raise ValueError(f"{cls.__name__}: {unknown_name_message('variant', name, cls.VARIANTS)}")
        row = {} if name is None else cls.VARIANTS[name]
        own = {key: row[key] for key in cls.PREPROCESSING if key in row}
        return {"image_size": pair(row.get("image_size", cls.image_size)), **cls.PREPROCESSING, **own}


@strict
class VitfVideoConfig(VitfConfig):
    r"""
    Base of the configurations of architectures that take clips: `pixel_values` (B, num_frames, num_channels, H, W).

    Args:
        num_frames (`int`, *optional*, defaults to 8):
            Frames of a clip that positions are built for. Models take other numbers at call time.

    The other fields are those of [`VitfConfig`].

    A row of `VARIANTS` says how frames are prepared, and also which ones are taken: `frame_sampling`, `"uniform"`
    (evenly over the whole video), `"dense"`, `"dense_from_start"` or `"strided"` (a window) or `"segments"` (one frame
    of each of `num_frames` equal segments, TSN, arXiv 1608.00859); `sampling_rate`, in frames of which `sampling_fps`
    make a second; where half a pixel goes in a centre crop, `crop_rounding`; and how the authors test: `num_views`
    clips with `num_crops` crops of each, and over these the mean of the `view_average`, `"logits"` or `"softmax"`.
    """

    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfConfig.PREPROCESSING,
        "frame_sampling": "uniform",
        "sampling_rate": 1,
        "sampling_fps": 30,
        "crop_rounding": "up",
        "num_views": 1,
        "num_crops": 1,
        "view_average": "logits",
    }

    num_frames: int = 8

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's `pixel_values` at the configured size: (num_frames, num_channels, H, W)."""
        return (self.num_frames, *super().input_shape)

    @property
    def frame_stride(self) -> int:
        """Frames of the clip that one feature map of a backbone stands for."""
        return 1

    @classmethod
    def preprocessing(cls, name: str | None) -> dict[str, Any]:
        """
        How clips are prepared for a variant, or by default: as for images, `num_frames`, and the keys that the class
        names.
        """
        num_frames = cls.VARIANTS.get(name, {}).get("num_frames", cls.num_frames)
        return {**super().preprocessing(name), "num_frames": num_frames}


@strict
class VitfPyramidConfig(VitfConfig):
    r"""
    Base of the configurations of hierarchical architectures: stages whose maps get smaller and wider.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 4): Stride of the first stage, in pixels.
        hidden_sizes (`list[int]`): Channels of each stage.
        depths (`list[int]`): Layers of each stage.
        num_heads (`list[int]`): Attention heads of each stage.

    The other fields are those of [`VitfConfig`].
    """

    # Fields with one entry a stage; an architecture adds its own.
    PER_STAGE: ClassVar[tuple[str, ...]] = ("hidden_sizes", "depths", "num_heads")

    patch_size: int | list[int] | tuple[int, int] = 4
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_heads: list[int] | tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self, **kwargs):
        for name in self.PER_STAGE:
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_stages(self):
        lengths = {name: len(getattr(self, name)) for name in self.PER_STAGE}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"{type(self).__name__}: each field needs one entry a stage, but there are: {counts}")

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages: transformers counts hidden states by this name, and each stage gives one."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage: models that contain an encoder read the width of its output by this name."""
        return self.stage_channels[-1]

    @property
    def size_multiple(self) -> tuple[int, int]:
        return (1, 1)  # maps are padded, or cut at the border, as each original does

    @property
    def stage_channels(self) -> list[int]:
        return [self.hidden_sizes[0], *self.hidden_sizes]

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        rows, columns = pair(self.patch_size)
        return [(rows, columns), *((rows * 2**stage, columns * 2**stage) for stage in range(len(self.depths)))]


def check_divides(config: VitfConfig, divisor: str, *dividends: str) -> None:
    """Raises a ValueError that names both fields when one does not divide the others."""
    for dividend in dividends:
        values, by = pair(getattr(config, dividend)), pair(getattr(config, divisor))
        if any(value % d for value, d in zip(values, by, strict=True)):
            raise ValueError(
                f"{type(config).__name__}: {dividend}={getattr(config, dividend)} is not a multiple of "
                f"{divisor}={getattr(config, divisor)}"
            )
