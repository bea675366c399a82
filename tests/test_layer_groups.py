"""
What models declare for training: their layers in the order of computation, and the parameters without weight decay.
"""

import pytest
import timm
import torch
from architectures import DOSSIERS
from models import HEADS, TINY, classification_head, random_pixels, tiny_model
from timm.models import group_parameters
from torch import nn

from hf_vit_family import create_model
from hf_vit_family.conversion.convert import convert_checkpoint
from hf_vit_family.training.optim import layer_depths

every_case = pytest.mark.parametrize("case", TINY)

# ViViT's class tokens of time and the like belong to layers: what is said of the stem holds for what the input meets
# first.
LAST = ("layernorm.", "large_layernorm.", "classifier.", "distillation_classifier.", "decoder.", "pre_logits.")


@pytest.mark.parametrize(("case", "head"), HEADS)
def test_every_parameter_has_one_depth(case, head):
    model = tiny_model(case, head)
    members = [member for group in model.layer_groups() for member in group]
    parameters = [
        parameter
        for member in members
        for parameter in ([member] if isinstance(member, nn.Parameter) else member.parameters())
    ]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)  # none in two groups
    depths = layer_depths(model)
    assert depths.keys() == dict(model.named_parameters()).keys()
    highest = max(depths.values())
    assert set(depths.values()) == set(range(highest + 1))
    # The stem is the lowest.
    stem = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    for name, parameter in model.named_parameters():
        short = name.removeprefix(f"{model.base_model_prefix}.")
        if id(parameter) in stem or short.startswith("embeddings.") or name == "mask_token":
            assert depths[name] == 0, name
        elif short.startswith("layernorm.") and getattr(model.base_model, "temporal_encoder", None) is not None:
            assert depths[name] == model.config.num_hidden_layers, name  # layers over time follow it
        elif head == classification_head(case) and short.startswith(LAST):
            assert depths[name] == highest == len(model.layer_groups()), name
        elif ".layers." in f".{name}" and not name.startswith("decoder."):
            assert 0 < depths[name] < len(model.layer_groups()), name


@every_case
def test_depths_follow_the_order_of_computation(case):
    """A change at one depth reaches the next one, and nothing below."""
    model = tiny_model(case)
    pixel_values = random_pixels(model.config)
    depths = layer_depths(model)
    inputs: dict[str, list[torch.Tensor]] = {}

    def watch(name):
        def hook(module, args, kwargs):
            inputs.setdefault(name, []).extend(arg.clone() for arg in args if isinstance(arg, torch.Tensor))

        return hook

    depth_of = {}
    for name, module in model.named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if own and not list(module.children()):  # else it is its parts that compute
            (depth_of[name],) = {depths[key] for key in own}  # one depth for all
            module.register_forward_pre_hook(watch(name), with_kwargs=True)

    def inputs_now() -> dict[str, list[torch.Tensor]]:
        inputs.clear()
        with torch.no_grad():
            model(pixel_values)
        return dict(inputs)

    before, state = inputs_now(), {name: value.clone() for name, value in model.state_dict().items()}
    for depth in range(max(depths.values())):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if depths[name] == depth:
                    parameter.add_(torch.randn_like(parameter))
        after = inputs_now()
        model.load_state_dict(state)
        changed = {
            depth_of[name]
            for name in before
            if any(not torch.equal(*pair) for pair in zip(before[name], after[name], strict=True))
        }
        assert min(changed) >= depth
        assert depth + 1 in changed


def test_swin_tiny_has_timms_depths():
    """
    The table for Swin-T: a merging of patches goes with the layer that it feeds; timm adds the last norm to the last
    layer.
    """
    depths = layer_depths(create_model("swin_tiny_patch4_window7_224"))
    table = {
        "embeddings.": 0,
        "stages.0.layers.0.": 1,
        "stages.0.layers.1.": 2,
        "stages.1.downsample.": 3,
        "stages.1.layers.0.": 3,
        "stages.1.layers.1.": 4,
        "stages.2.downsample.": 5,
        **{f"stages.2.layers.{layer}.": 5 + layer for layer in range(6)},
        "stages.3.downsample.": 11,
        "stages.3.layers.0.": 11,
        "stages.3.layers.1.": 12,
        "layernorm.": 13,
    }
    found = {prefix: {depth for name, depth in depths.items() if name.startswith(f"swin.{prefix}")} for prefix in table}
    assert found == {prefix: {depth} for prefix, depth in table.items()}
    assert {depth for name, depth in depths.items() if name.startswith("classifier.")} == {13}
    assert sum(name.startswith(tuple(f"swin.{prefix}" for prefix in table)) for name in depths) == len(depths) - 2


# Every model of timm's in the dossiers, by architecture.
TIMM = [(name, *groups) for name, each in DOSSIERS.items() for groups in each.timm_groups]


def converted(architecture: str, peer: nn.Module, values: dict[str, float], arguments: dict):
    """
    A number for each of timm's parameters as a number for each of ours, and our model: the tensors are filled with the
    numbers and converted. Parameters that are made of tensors with different numbers are left out.
    """
    state = peer.state_dict()
    for name, value in values.items():
        state[name] = torch.full_like(state[name], value)
    model, _ = convert_checkpoint(state, architecture, arguments)
    parameters = model.named_parameters()
    return model, {name: value.min().item() for name, value in parameters if value.min() == value.max()}


@pytest.mark.parametrize(
    ("architecture", "name", "arguments", "held_together", "away"), TIMM, ids=[row[1] for row in TIMM]
)
def test_groups_are_timms(architecture, name, arguments, held_together, away):
    """
    timm's groups of parameters, in its order, except that it adds the last norm to the last layer: BEiT, which the
    rates by depth come from, gives it the head's rate (microsoft/unilm@2312c6f beit/optim_factory.py,
    get_num_layer_for_vit).
    """
    peer = timm.create_model(name, **arguments)
    groups = group_parameters(peer, peer.group_matcher(coarse=False), reverse=True)
    model, theirs = converted(architecture, peer, {key: groups[key] for key, _ in peer.named_parameters()}, arguments)
    ours = layer_depths(model)
    last = len(model.layer_groups())
    apart = [key for key in theirs if away is not None and away in key]
    inside = [key for key in theirs if ours[key] < last and key not in apart]
    assert len(theirs) > 0.9 * len(ours)
    pairs = {(ours[key], theirs[key]) for key in inside}
    # In the same order, and each group of ours within one of theirs.
    pairs_apart = {(ours[key], theirs[key]) for key in apart}
    assert len(pairs_apart) == len({theirs for _, theirs in pairs_apart})
    assert len(pairs) + len(pairs_apart) == last
    assert {depth for depth, _ in pairs | pairs_apart} == set(range(last))
    assert [theirs for _, theirs in sorted(pairs)] == sorted(theirs for _, theirs in pairs)
    assert (len(pairs) == len({theirs for _, theirs in pairs})) == (held_together is None)
    assert all(theirs[key] >= max(theirs[key] for key in inside) for key in theirs if ours[key] == last)
    # What takes no weight decay, of the parameters with two or more dimensions.
    spared = peer.no_weight_decay() if hasattr(peer, "no_weight_decay") else set()
    _, theirs = converted(architecture, peer, {key: key in spared for key, _ in peer.named_parameters()}, arguments)
    without_decay = model.parameters_without_decay()
    for key, is_spared in theirs.items():
        if model.get_parameter(key).ndim > 1:
            assert (key in without_decay) == is_spared, key
