"""Every vision transformer of the family as a first-class Hugging Face model.

Importing this package registers every architecture with transformers' Auto classes.
"""

from .conversion.convert import convert_checkpoint, export_checkpoint
from .modeling.video_reading_vitf import read_frames
from .publishing.converted import pretrained_folder
from .registry import ARCHITECTURES, get_architecture, register
from .variants import create_config, create_model, create_processor, list_variants

__version__ = "0.1.0"
__all__ = [
    "ARCHITECTURES",
    "convert_checkpoint",
    "create_config",
    "create_model",
    "create_processor",
    "export_checkpoint",
    "get_architecture",
    "list_variants",
    "pretrained_folder",
    "read_frames",
    "register",
]

register()
