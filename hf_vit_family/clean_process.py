"""
What a repository gives to someone who loads it: every class it names, on a fixed input.

`publish.verify` calls `collect` here, with the package, and runs this file as a script in a process that cannot import the
package: the results must be the same bits. It therefore imports nothing of the package.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor
from transformers.utils import logging

PACKAGES = ("hf_vit_family", "vit_family_launcher")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars, and no report of the weights that one head has and another lacks."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_head(auto_class: str, folder: str, config, trust_remote_code: bool) -> torch.nn.Module:
    """
    The model of a folder under an Auto class.

    Heads that the checkpoint has no weights for are initialised from the same seed, so that they too can be compared.
    """
    loader = getattr(transformers, auto_class)
    if auto_class == "AutoBackbone":  # its from_pretrained takes Hub ids only (transformers 5.23)
        with torch.device("meta"):
            loader = type(loader.from_config(config, trust_remote_code=trust_remote_code))
        torch.manual_seed(0)
        return loader.from_pretrained(folder)
    torch.manual_seed(0)
    return loader.from_pretrained(folder, trust_remote_code=trust_remote_code)


@torch.no_grad()
def collect(folder: str | Path, trust_remote_code: bool) -> dict[str, torch.Tensor]:
    """
    Every output of every class that a published folder names.

    Args:
        folder: A folder with an `auto_map` in its config.json and in the file of its processor.
        trust_remote_code: Whether the folder's own code may run. Registered classes are preferred to it.

    Returns:
        `"AutoModel.last_hidden_state"`, `"AutoBackbone.feature_maps.0"`, `"AutoImageProcessor.pil"` and so on. Models get
        two examples of random pixels of the configured size, in evaluation mode; processors an image or video of an odd size.
    """
    folder = str(folder)
    collected = {}
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        pixel_values = torch.rand(2, *config.input_shape, generator=torch.Generator().manual_seed(0))
        for auto_class in config.auto_map:
            if auto_class == "AutoConfig":
                continue
            model = load_head(auto_class, folder, config, trust_remote_code).eval()
            for name, value in model(pixel_values.to(model.dtype)).items():
                values = {name: value} if torch.is_tensor(value) else {f"{name}.{i}": v for i, v in enumerate(value)}
                collected |= {f"{auto_class}.{name}": value.contiguous() for name, value in values.items()}
        *frames, channels, height, width = config.input_shape
        shape = (*(2 * number for number in frames), height + 7, width + 13, channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if frames:
            processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
            collected["AutoVideoProcessor"] = processor(pixels, return_tensors="pt")["pixel_values"]
            return collected
        backends = json.loads(Path(folder, "preprocessor_config.json").read_text(encoding="utf-8"))["auto_map"]
        for backend in backends["AutoImageProcessor"]:
            processor = AutoImageProcessor.from_pretrained(folder, backend=backend, trust_remote_code=trust_remote_code)
            collected[f"AutoImageProcessor.{backend}"] = processor(pixels, return_tensors="pt")["pixel_values"]
    return collected


def main(folder: str, threads: str, result: str) -> None:
    """Collects with the folder's own code. The number of threads is part of what decides the last bits of a sum."""
    sys.modules.update(dict.fromkeys(PACKAGES))  # None: importing them fails, however they are installed
    torch.set_num_threads(int(threads))
    save_file(collect(folder, trust_remote_code=True), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
