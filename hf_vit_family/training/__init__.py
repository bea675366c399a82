"""Training: one loop, objectives that plug into it, recipes."""
