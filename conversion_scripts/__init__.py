"""One ``convert_<architecture>.py`` for each architecture: where its weights come from, and how their names map."""
