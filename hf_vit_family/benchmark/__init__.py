"""Measures how fast a model is, compared with the same model of other libraries."""
