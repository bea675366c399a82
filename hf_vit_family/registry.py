"""The table of architectures. Everything else, from the Auto classes to the tests, reads it."""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    BaseImageProcessor,
    BaseVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_torchvision_available

from .modeling.configuration_vitf import VitfConfig, unknown_name_message
from .modeling.image_processing_pil_vitf import VitfImageProcessorPil
from .modeling.image_processing_vitf import VitfImageProcessor
from .modeling.video_processing_vitf import VitfVideoProcessor

# Suffix of a model class, and the Auto class that it is registered with.
AUTO_CLASSES = {
    "Model": AutoModel,
    "ForImageClassification": AutoModelForImageClassification,
    "ForVideoClassification": AutoModelForVideoClassification,
    "ForMaskedImageModeling": AutoModelForMaskedImageModeling,
    "ForPreTraining": AutoModelForPreTraining,
    "Backbone": AutoBackbone,
}
IMAGE_HEADS = ("Model", "ForImageClassification", "ForMaskedImageModeling", "Backbone")
VIDEO_HEADS = ("Model", "ForVideoClassification", "Backbone")
# The processors of every architecture that takes images, and of every one that takes clips, by backend.
IMAGE_PROCESSORS = {"torchvision": VitfImageProcessor, "pil": VitfImageProcessorPil}
VIDEO_PROCESSORS = {"torchvision": VitfVideoProcessor}


@dataclass(frozen=True, eq=False)
class Modality:
    """
    What a model takes: images, or clips of videos. `modality_of` tells which; everything that differs by it is asked of
    here, or of a table with these objects as keys.

    Args:
        name: What people call its files.
        auto_processor: The Auto class of its processors.
        file: What a processor is saved as.
        processors: Backend to the processor of the family.
        auto_classifier: The Auto class of its classifiers.
    """

    name: str
    auto_processor: type[Any]
    file: str
    processors: dict[str, type[Any]]
    auto_classifier: type[Any]


IMAGES = Modality(
    "images", AutoImageProcessor, "preprocessor_config.json", IMAGE_PROCESSORS, AutoModelForImageClassification
)
CLIPS = Modality(
    "videos", AutoVideoProcessor, "video_preprocessor_config.json", VIDEO_PROCESSORS, AutoModelForVideoClassification
)


def modality_of(subject: PreTrainedConfig | BaseImageProcessor | BaseVideoProcessor) -> Modality:
    """
    What a model of this configuration, or a processor, takes. Both may be of transformers, or code of a checkpoint.
    """
    if not isinstance(subject, PreTrainedConfig):
        return CLIPS if isinstance(subject, BaseVideoProcessor) else IMAGES
    if hasattr(subject, "input_shape"):
        return CLIPS if len(subject.input_shape) == 4 else IMAGES
    named = CLIPS.auto_classifier.__name__ in getattr(subject, "auto_map", {})
    return CLIPS if named or type(subject) in CLIPS.auto_classifier._model_mapping else IMAGES


@dataclass(frozen=True)
class Architecture:
    """
    One architecture. All names follow from `name`: modules `configuration_<name>`, `modeling_<name>` and
    `convert_<name>`, classes `Vitf<Name>...`, `model_type = "vitf_<name>"`.

    Args:
        name: Lower case, underscores between words.
        paper: Title and arXiv number.
        difference: One sentence: what differs from ViT.
        heads: Suffixes of the model classes, keys of `AUTO_CLASSES`.
    """

    name: str
    paper: str
    difference: str
    heads: tuple[str, ...] = field(default=IMAGE_HEADS)

    @property
    def prefix(self) -> str:
        """The beginning of every class name: `"VitfVit"`, `"VitfT2tVit"`."""
        return "Vitf" + "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def model_type(self) -> str:
        return f"vitf_{self.name}"

    @property
    def config_class(self) -> type[VitfConfig]:
        module = importlib.import_module(f"{__package__}.modeling.configuration_{self.name}")
        return getattr(module, f"{self.prefix}Config")

    def model_class(self, head: str) -> type[PreTrainedModel]:
        """The class for a head, a key of `AUTO_CLASSES`."""
        module = importlib.import_module(f"{__package__}.modeling.modeling_{self.name}")
        return getattr(module, f"{self.prefix}{head}")

    @property
    def conversion(self) -> ModuleType:
        """The conversion script: SOURCE, LAYOUTS, and how names map."""
        return importlib.import_module(f"{__package__}.conversion_scripts.convert_{self.name}")


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "vit",
            "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (arXiv 2010.11929)",
            "The plain vision transformer: patches as tokens in a pre-norm encoder.",
            (*IMAGE_HEADS, "ForPreTraining"),
        ),
        Architecture(
            "deit",
            "Training data-efficient image transformers & distillation through attention (arXiv 2012.12877)",
            "A distillation token learns from a teacher next to the class token.",
        ),
        Architecture(
            "cct",
            "Escaping the Big Data Paradigm with Compact Transformers (arXiv 2104.05704)",
            "A convolutional tokenizer, and learned pooling of the sequence in place of a class token.",
        ),
        Architecture(
            "rvt",
            "vit-pytorch's Rotary Vision Transformer, after RoFormer (arXiv 2104.09864)",
            "Axial rotary positions, queries from a convolution over the patches, a gated feed-forward layer.",
        ),
        Architecture(
            "pit",
            "Rethinking Spatial Dimensions of Vision Transformers (arXiv 2103.16302)",
            "Stages, between which a depth-wise convolution pools the map of patch tokens.",
        ),
        Architecture(
            "convit",
            "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases (arXiv 2103.10697)",
            "First layers whose heads weigh content against relative position, and start out as a convolution.",
        ),
        Architecture(
            "cait",
            "Going deeper with Image Transformers (arXiv 2103.17239)",
            "Layer scale, heads that talk to each other, and a class token that only the last layers see.",
        ),
        Architecture(
            "t2t_vit",
            "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet (arXiv 2101.11986)",
            "Tokens are made in three steps: overlapping windows are unfolded, and attention mixes them in between.",
        ),
        Architecture(
            "deepvit",
            "DeepViT: Towards Deeper Vision Transformer (arXiv 2103.11886)",
            "Re-attention: the heads' maps are mixed after the softmax and normalised over the batch.",
        ),
        Architecture(
            "localvit",
            "LocalViT: Bringing Locality to Vision Transformers (arXiv 2104.05707)",
            "Feed-forward layers with a depth-wise convolution over the map of patches.",
        ),
        Architecture(
            "crossvit",
            "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification (arXiv 2103.14899)",
            "Two branches with small and large patches; the class token of each attends to the patches of the other.",
        ),
        Architecture(
            "timesformer",
            "Is Space-Time Attention All You Need for Video Understanding? (arXiv 2102.05095)",
            "Video: the patches of all frames are tokens; layers attend over time, then over space.",
            VIDEO_HEADS,
        ),
        Architecture(
            "vivit",
            "ViViT: A Video Vision Transformer (arXiv 2103.15691)",
            "Video: tubelets as tokens, and four ways to factorise attention over space and time.",
            VIDEO_HEADS,
        ),
        Architecture(
            "xvit",
            "Space-time Mixing Attention for Video Transformer (arXiv 2106.05968)",
            "Video: ViT on each frame, with keys and values that share some channels with the neighbouring frames.",
            VIDEO_HEADS,
        ),
        Architecture(
            "levit",
            "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference (arXiv 2104.01136)",
            "A convolutional stem, attention that shrinks the map between stages, batch norms that inference folds "
            "away.",
        ),
        Architecture(
            "cvt",
            "CvT: Introducing Convolutions to Vision Transformers (arXiv 2103.15808)",
            "Stages with convolutional token embeddings, and convolutions before queries, keys and values; no "
            "positions.",
        ),
        Architecture(
            "pvt",
            "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions (arXiv "
            "2102.12122)",
            "A pyramid of four stages, with attention to a map that a convolution made smaller.",
        ),
        Architecture(
            "localvit_pvt",
            "LocalViT: Bringing Locality to Vision Transformers (arXiv 2104.05707)",
            "PVT with a depth-wise convolution over the map in its feed-forward layers.",
        ),
        Architecture(
            "localvit_tnt",
            "LocalViT: Bringing Locality to Vision Transformers (arXiv 2104.05707)",
            "TNT, a transformer within each patch and one among the patches, with a depth-wise convolution over the "
            "map of patches.",
        ),
        Architecture(
            "nest",
            "Nested Hierarchical Transformer: Towards Accurate, Data-Efficient and Interpretable Visual Understanding "
            "(arXiv 2105.12723)",
            "Stages of attention within blocks of one size; a convolution and a max-pool make one block of four.",
        ),
        Architecture(
            "swin",
            "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (arXiv 2103.14030)",
            "A pyramid with attention within windows, which every second layer shifts, and a bias by relative "
            "position.",
        ),
        Architecture(
            "localvit_swin",
            "LocalViT: Bringing Locality to Vision Transformers (arXiv 2104.05707)",
            "Swin with a depth-wise convolution over the map in its feed-forward layers, across the borders of "
            "windows.",
        ),
        Architecture(
            "swinv2",
            "Swin Transformer V2: Scaling Up Capacity and Resolution (arXiv 2111.09883)",
            "Swin with norms after each branch, cosine attention, and a bias made from the logarithm of the distance.",
        ),
        Architecture(
            "pvt_v2",
            "PVT v2: Improved Baselines with Pyramid Vision Transformer (arXiv 2106.13797)",
            "PVT with overlapping patches, and a depth-wise convolution in feed-forward layers in place of positions.",
        ),
        Architecture(
            "twins",
            "Twins: Revisiting the Design of Spatial Attention in Vision Transformers (arXiv 2104.13840)",
            "Attention within windows and to a smaller map in turn; a depth-wise convolution generates the positions.",
        ),
        Architecture(
            "regionvit",
            "RegionViT: Regional-to-Local Attention for Vision Transformers (arXiv 2106.02689)",
            "Windows of local tokens, each with a regional token; the regional ones attend to each other in every "
            "layer.",
        ),
        Architecture(
            "coatnet",
            "CoAtNet: Marrying Convolution and Attention for All Data Sizes (arXiv 2106.04803)",
            "Stages of inverted bottlenecks, then stages of attention on the whole map with a bias by relative "
            "position.",
        ),
        Architecture(
            "mvit",
            "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection (arXiv 2112.01526)",
            "Queries, keys and values are pooled over the map, which gets smaller and wider from stage to stage.",
        ),
        Architecture(
            "mvit_video",
            "Multiscale Vision Transformers (arXiv 2104.11227), and MViTv2 (arXiv 2112.01526)",
            "Video: MViT on maps with a time axis.",
            VIDEO_HEADS,
        ),
    )
}


def get_architecture(name: str) -> Architecture:
    """The architecture of that name or `model_type`; a ValueError names the nearest valid one."""
    key = name.removeprefix("vitf_")
    if key not in ARCHITECTURES:
        raise ValueError(unknown_name_message("architecture", name, ARCHITECTURES))
    return ARCHITECTURES[key]


def register() -> None:
    """Registers every architecture with transformers' Auto classes. Safe to call again."""
    for architecture in ARCHITECTURES.values():
        config_class = architecture.config_class
        AutoConfig.register(architecture.model_type, config_class, exist_ok=True)
        if "ForImageClassification" in architecture.heads:
            AutoImageProcessor.register(config_class, image_processor_classes=IMAGE_PROCESSORS, exist_ok=True)
        # Without torchvision images still have Pillow; clips have nothing, and the class raises.
        if "ForVideoClassification" in architecture.heads and is_torchvision_available():
            AutoVideoProcessor.register(config_class, video_processor_classes=VIDEO_PROCESSORS, exist_ok=True)
        for head in architecture.heads:
            AUTO_CLASSES[head].register(config_class, architecture.model_class(head), exist_ok=True)
