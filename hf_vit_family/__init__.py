"""Every vision transformer of the family as a first-class Hugging Face model.

Importing this package registers every architecture with transformers' Auto classes.
"""

from .conversion import convert_checkpoint, export_checkpoint
from .modeling.video_processing_vitf import VitfVideoProcessor
from .registry import ARCHITECTURES, get_architecture, register
from .variants import create_config, create_model, create_processor, list_variants
from .videos import read_frames

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
    "register",
]

register()
# Published, the processor reads files as transformers does; here it seeks, and knows rotation and variable frame rates.
VitfVideoProcessor.read_frames = staticmethod(read_frames)
