"""Labelled images and videos: where they lie, how they are read, and how they are varied for training."""
