"""Every vision transformer of the family as a first-class Hugging Face model.

Importing this package registers every architecture with transformers' Auto classes.
"""

from .registry import ARCHITECTURES, get_architecture, register
from .variants import create_config, create_model, create_processor, list_variants

__version__ = "0.1.0"
__all__ = [
    "ARCHITECTURES",
    "create_config",
    "create_model",
    "create_processor",
    "get_architecture",
    "list_variants",
    "register",
]

register()
