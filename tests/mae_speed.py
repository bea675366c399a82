"""
Measures what MAE saves by reading visible patches only.

    python tests/mae_speed.py                # ViT-S/16 at 224 pixels, batch 8, one thread; some minutes

Times a forward and backward pass of the encoder with 75% of the patches hidden, of the whole model with its decoder,
and of the encoder that reads all patches, in turn, and prints the medians of the ratios of each round. The times are
those of the processor, so that other work on the machine counts little.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from hf_vit_family import create_model


def processor_seconds(step: Callable[[], torch.Tensor]) -> float:
    """Runs a forward pass to a scalar, and its backward pass."""
    start = time.process_time()
    step().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="vit_small_patch16_224", help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="after one to warm up (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(options.variant, "ForPreTraining").train()
    pixel_values = torch.randn(options.batch_size, *model.config.input_shape)
    rows, columns = model.config.feature_map_sizes(*pixel_values.shape[-2:])[-1]
    order = torch.rand(options.batch_size, rows * columns).argsort(dim=1)
    visible = order[:, : model.num_visible(rows * columns)]
    steps = {
        "all patches": lambda: model.base_model(pixel_values).last_hidden_state.square().mean(),
        "encoder of MAE": lambda: model.base_model(pixel_values, visible=visible).last_hidden_state.square().mean(),
        "MAE with its decoder": lambda: model(pixel_values).loss,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(options.rounds + 1), unit="round"):
        for name, step in steps.items():
            model.zero_grad()
            taken = processor_seconds(step)
            if number:
                seconds[name].append(taken)
    for name, taken in seconds.items():
        ratios = [each / whole for each, whole in zip(taken, seconds["all patches"], strict=True)]
        print(
            f"{name}: {1000 * statistics.median(taken):.0f} ms, {statistics.median(ratios):.3f} of all patches "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
