"""Configurations, models and processors of every architecture, in one flat folder.

The Hub's custom-code loader copies a file and what it imports with ``from .name import ...`` from the same directory,
and nothing else. Because this folder is flat, a checkpoint is published with these files byte for byte.
"""

if __name__ == "modeling":
    # Inside the repository root this folder is importable under a second name. A second copy of every class would be
    # registered nowhere and equal to nothing, so that import is refused.
    raise ImportError("import hf_vit_family.modeling (after `pip install -e .`), not the folder `modeling` itself")
