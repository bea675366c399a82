"""Measures how good a classifier is."""
