"""What a measurement was made with."""

from importlib.metadata import version

LIBRARIES = ("hf_vit_family", "torch", "torchvision", "transformers", "accelerate", "datasets")


def library_versions() -> dict[str, str]:
    """Library to installed version, for those that a training or an evaluation depends on."""
    return {name: version(name) for name in LIBRARIES}
