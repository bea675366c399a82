"""
What a repository gives to someone who loads it: every class it names, on a fixed input.

`publish.verify` calls `collect` here, with the package, and runs this file as a script in a process that cannot import
the
package: the results must be the same bits. It therefore imports nothing of the package.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor

PACKAGES = ("hf_vit_family", "vit_family_launcher")


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
        return loader.from_pretrained(folder, trust_remote_code=trust_remote_code)
    torch.manual_seed(0)
    return loader.from_pretrained(folder, trust_remote_code=trust_remote_code)


def write_videos(folder: str | Path) -> list[Path]:
    """Makes a video that is to be turned and one in WebM, with the encoders that PyAV has here; returns their paths."""
    encoders = {"turned.mp4": ("libx264", "mpeg4"), "plain.webm": ("libvpx-vp9", "libvpx")}
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    paths = []
    for name, codecs in encoders.items():
        codec = next((codec for codec in codecs if codec in av.codecs_available), None)
        if codec is None:
            continue
        paths.append(Path(folder, name))
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
            if name.startswith("turned"):
                stream.set_display_rotation(90)
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return paths


@torch.no_grad()
def collect(folder: str | Path, trust_remote_code: bool, videos: Sequence[str | Path] = ()) -> dict[str, torch.Tensor]:
    """
    Every output of every class that a published folder names.

    Args:
        folder: A folder with an `auto_map` in its config.json and in the file of its processor.
        trust_remote_code: Whether the folder's own code may run. Registered classes are preferred to it.
        videos: Files that a video processor also prepares.

    Returns:
        `"AutoModel.last_hidden_state"`, `"AutoBackbone.feature_maps.0"`, `"AutoImageProcessor.pil"` and so on. Models
        get two examples of random pixels of the configured size, in evaluation mode; processors an image or video of an
        odd size.
    """
    folder = str(folder)
    collected = {}
    with torch.random.fork_rng(devices=[]):
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
            for video in videos:
                pixel_values = processor(str(video), return_tensors="pt")["pixel_values"]
                collected[f"AutoVideoProcessor.{Path(video).name}"] = pixel_values
            return collected
        backends = json.loads(Path(folder, "preprocessor_config.json").read_text(encoding="utf-8"))["auto_map"]
        for backend in backends["AutoImageProcessor"]:
            processor = AutoImageProcessor.from_pretrained(folder, backend=backend, trust_remote_code=trust_remote_code)
            collected[f"AutoImageProcessor.{backend}"] = processor(pixels, return_tensors="pt")["pixel_values"]
    return collected


def main(folder: str, threads: str, result: str, *videos: str) -> None:
    """
    Collects with the folder's own code. The number of threads is part of what decides the last bits of a sum.

    That code may run because `publish.stage` has just written it: it is this package's, whatever the folder that was
    staged from brought along.
    """
    sys.modules.update(dict.fromkeys(PACKAGES))  # None: importing them fails, however they are installed
    torch.set_num_threads(int(threads))
    save_file(collect(folder, trust_remote_code=True, videos=videos), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
