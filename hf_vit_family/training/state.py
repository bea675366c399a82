"""
What a checkpoint holds of a run, as tensors by name and plain values: weights and the state of the optimiser.

Names are those of the objective's parameters whatever wraps it: a checkpoint does not depend on how processes share the
work, nor on the order of the optimiser's parameter groups.
"""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from ..errors import UserError
from .objectives.objective import Frozen

State = dict[str, torch.Tensor]
# Of FSDP's shards: the whole on the main process, and nothing on the others.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _plain(tensors: dict[str, torch.Tensor]) -> State:
    """Copies that safetensors can write: contiguous, no two with the same memory, and none in an accelerator's."""
    return {
        name: torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor.detach())
        for name, tensor in tensors.items()
    }


def without_frozen(objective: nn.Module, state: State) -> State:
    """A state without what belongs to an objective's frozen modules, which come from files of their own."""
    frozen = tuple(name + "." for name, module in objective.named_modules() if isinstance(module, Frozen))
    return {name: tensor for name, tensor in state.items() if not name.startswith(frozen)}


def weights_state(accelerator: Accelerator, objective: nn.Module) -> State:
    """The weights of an objective without its frozen modules. Every process calls it."""
    inner = accelerator.unwrap_model(objective)
    if accelerator.distributed_type == DistributedType.FSDP:
        return _plain(without_frozen(inner, get_model_state_dict(objective, options=_WHOLE)))
    return _plain(without_frozen(inner, inner.state_dict()))


def check_same_names(state: State, expected: State) -> None:
    """UserError, for another architecture, unless two states have the same names, with the same shapes and dtypes."""

    def kind(tensors: State, name: str) -> tuple | None:
        return (tensors[name].shape, tensors[name].dtype) if name in tensors else None

    wrong = sorted(name for name in {**state, **expected} if kind(state, name) != kind(expected, name))
    if wrong:
        raise UserError(f"the checkpoint is of another architecture: {wrong[0]!r} differs, and {len(wrong) - 1} more")


def load_weights(accelerator: Accelerator, objective: nn.Module, state: State) -> None:
    """
    Puts back what `weights_state` gave. Every process calls it.

    Raises:
        UserError: for the weights of another architecture.
    """
    inner = accelerator.unwrap_model(objective)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    # Shards say what shape the whole has.
    expected = get_model_state_dict(objective) if sharded else inner.state_dict()
    check_same_names(state, without_frozen(inner, expected))
    if sharded:
        set_model_state_dict(objective, state, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        inner.load_state_dict(state, strict=False)


def _parameters(accelerator: Accelerator, objective: nn.Module, optimizer: AcceleratedOptimizer) -> list[tuple]:
    """(name, parameter) in the order in which the optimiser counts its parameters."""
    names = {id(p): name for name, p in accelerator.unwrap_model(objective).named_parameters()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def optimizer_state(
    accelerator: Accelerator, objective: nn.Module, optimizer: AcceleratedOptimizer
) -> tuple[State, dict[str, Any]]:
    """
    What an optimiser remembers, by `<name of the parameter>.<what>`: tensors, and plain numbers. Its hyper-parameters
    are not part of it: they follow from the options of the run. Every process calls it.

    Raises:
        UserError: if it remembers anything else.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        states = get_optimizer_state_dict(objective, optimizer.optimizer, options=_WHOLE)["state"]
    else:
        names = [name for name, _ in _parameters(accelerator, objective, optimizer)]
        states = {names[index]: state for index, state in optimizer.state_dict()["state"].items()}
    tensors, values = {}, {}
    for name, state in states.items():
        for key, value in state.items():
            if torch.is_tensor(value):
                tensors[f"{name}.{key}"] = value
            elif value is None or isinstance(value, (bool, int, float)):
                values[f"{name}.{key}"] = value
            else:
                raise UserError(
                    f"optimizer {type(optimizer.optimizer).__name__} remembers a {type(value).__name__} ({key!r}), "
                    f"which a checkpoint cannot hold: choose another"
                )
    return _plain(tensors), values


def load_optimizer(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: AcceleratedOptimizer,
    tensors: State,
    values: dict[str, Any],
) -> None:
    """
    Puts back what `optimizer_state` gave. Every process calls it.

    Raises:
        UserError: for that of other parameters or of another optimiser, or for a number that is not finite.
    """
    if (name := first_not_finite(tensors.items())) is not None:
        raise UserError(f"the checkpoint's optimizer holds {name}, which is not finite")
    states: dict[str, dict[str, Any]] = {}
    for full_name, value in {**tensors, **values}.items():
        name, _, key = full_name.rpartition(".")
        states.setdefault(name, {})[key] = value
    if accelerator.distributed_type == DistributedType.FSDP:
        # Names instead of numbers; the other entries are those of this run.
        groups = get_optimizer_state_dict(objective, optimizer.optimizer)["param_groups"]
        set_optimizer_state_dict(
            objective,
            optimizer.optimizer,
            {"state": states, "param_groups": groups},
            options=StateDictOptions(full_state_dict=True),
        )
        return
    parameters = _parameters(accelerator, objective, optimizer)
    if unknown := states.keys() - {name for name, _ in parameters}:
        raise UserError(f"the checkpoint's optimizer knows {min(unknown)!r}, which this run does not train")
    for (name, _), expected in zip(parameters, _fresh_states(optimizer.optimizer), strict=True):
        given = states.get(name, expected)  # a parameter without a gradient has no state
        for key in sorted(given.keys() | expected.keys()):
            found, right = (_kind(state[key]) if key in state else "missing" for state in (given, expected))
            if found != right:
                raise UserError(f"the checkpoint's optimizer holds {name}.{key} as {found}; it should be {right}")
    numbered = {
        index: {key: _laid_out_as(parameter, value) for key, value in states[name].items()}
        for index, (name, parameter) in enumerate(parameters)
        if name in states
    }
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _kind(value: Any) -> str:
    """Describes a value of an optimiser's state in words."""
    if torch.is_tensor(value):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "nothing" if value is None else "a number"


def _fresh_states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Finds what such an optimiser remembers of each parameter after a step; its tensors may be of no device."""

    def step_on(device: str) -> list[dict[str, Any]]:
        groups = []
        for group in optimizer.param_groups:
            twins = [torch.zeros_like(parameter, device=device) for parameter in group["params"]]
            for twin in twins:
                twin.grad = torch.zeros_like(twin)
            groups.append({**group, "params": twins})
        fresh = type(optimizer)(groups)
        fresh.step()
        return [fresh.state[twin] for group in groups for twin in group["params"]]

    try:
        return step_on("meta")
    except (NotImplementedError, RuntimeError):  # one that looks at numbers
        return step_on("cpu")


def _laid_out_as(parameter: nn.Parameter, value: Any) -> Any:
    """
    A tensor of a parameter's shape with its strides: updates of many tensors at once are fast where these are equal.
    """
    if not torch.is_tensor(value) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with an infinity or a NaN. The host waits for the device once."""
    named = [(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors]
    named = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return None
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named])
    return None if bool(finite.all()) else named[int(finite.int().argmin())][0]
