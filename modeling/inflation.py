"""Video models that start from the weights of an image model, as their papers' do."""

import re
from dataclasses import fields
from typing import ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel


class InflationMixin:
    """
    For the models of a video architecture: `from_image_model`. The architecture says in tables how its weights begin;
    both hold regular expressions that are searched in the names of the base model's parameters.

    `inflation_sources`: what an expression finds in a name is replaced to get the name in the image model. Other
    parameters start from those of the same name. `inflation_keeps`: parameters that stay as they are initialised.
    `inflation_leaves`: searched in the names of the image model's parameters, those that may find no place.
    """

    inflation_sources: ClassVar[dict[str, str]] = {}
    inflation_keeps: ClassVar[tuple[str, ...]] = ()
    # What comes after the encoder belongs to the classes of the image model.
    inflation_leaves: ClassVar[tuple[str, ...]] = (r"^pre_logits\.",)

    def inflation_table(self) -> dict[str, str]:
        """Name of each of the base model's parameters that does not stay as it is, to that in the image model."""
        table = {}
        for name, _ in self.base_model.named_parameters():
            if not any(re.search(pattern, name) for pattern in self.inflation_keeps):
                table[name] = name
                for pattern, replacement in self.inflation_sources.items():
                    table[name] = re.sub(pattern, replacement, table[name])
        return table

    @torch.no_grad()
    def inflated(self, name: str, weight: torch.Tensor, image_model: PreTrainedModel) -> torch.Tensor:
        """
        A parameter of an image model in the shape that the video model has it; position tables are resized to its grid.

        Args:
            name (`str`): Name of the base model's parameter. weight: That of the image model.
        """
        parameter = self.base_model.get_parameter(name)
        if name.endswith("position_embeddings.weight") and weight.shape != parameter.shape:
            module = image_model.base_model.get_submodule(name.removesuffix(".weight"))
            grid = self.base_model.get_submodule(name.removesuffix(".weight")).grid
            return module(grid, like=weight)
        return weight

    @classmethod
    def from_image_model(cls, image_model: PreTrainedModel, **overrides):
        """
        A video model whose encoder starts from that of an image model; a classifier starts anew.

        Args:
            image_model: A model of this library whose layers the video architecture extends, such as ViT or a plain
                DeiT.
            overrides: Fields of the configuration. The others are those of the image model where it has them, but the
                labels.

        Raises:
            ValueError: if the image model has weights that the video model has no place for, or lacks some.
        """
        general = {field.name for field in fields(PreTrainedConfig)}
        own = {field.name for field in fields(cls.config_class)} - general
        shared = {name: getattr(image_model.config, name) for name in own if hasattr(image_model.config, name)}
        # Stochastic depth is a matter of training, not of the weights.
        shared = {
            name: value for name, value in shared.items() if not name.startswith("_") and name != "drop_path_rate"
        }
        model = cls(cls.config_class(**{**shared, **overrides}))
        image_weights = image_model.base_model.state_dict()
        sources = model.inflation_table()
        for name in sources.values():
            if name not in image_weights:
                raise ValueError(f"{type(image_model).__name__} has no {name!r}, which {cls.__name__} starts from")
        left = sorted(image_weights.keys() - set(sources.values()))
        if left := [name for name in left if not any(re.search(leave, name) for leave in model.inflation_leaves)]:
            raise ValueError(f"{cls.__name__} has no place for {left[0]!r} of {type(image_model).__name__}")
        state = {}
        for name, source in sources.items():
            weight, parameter = image_weights[source], model.base_model.get_parameter(name)
            state[name] = model.inflated(name, weight, image_model)
            if state[name].shape != parameter.shape:
                raise ValueError(
                    f"{source!r} of {type(image_model).__name__} has shape {tuple(weight.shape)}, which does not fit "
                    f"{name!r} of {cls.__name__}, {tuple(parameter.shape)}"
                )
        model.base_model.load_state_dict(state, strict=False)
        return model.to(image_model.dtype)
