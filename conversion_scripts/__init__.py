"""
One ``convert_<architecture>.py`` for each architecture: where its weights come from, and how their names map. What
several name alike is in ``flax_names.py``, ``timm_names.py`` and ``transformers_names.py``.
"""
