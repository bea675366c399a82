"""Declarative rules from the keys of one checkpoint layout to those of another, which run both ways.

`make_plan` decides by names which rule turns which keys into which; `run_plan` moves the tensors.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConversionError
from ..modeling.configuration_vitf import unknown_name_message

# ---------------------------------------------------------------------------------------------------------------------
# Patterns of keys


class Pattern:
    """
    A key with places for what varies: `{i}` is a number, `{i+1}` the number plus one (for files that count from one),
    and `*` one name between separators, such as `weight` or `bias`.
    """

    _PLACE = re.compile(r"\{(\w+)([+-]\d+)?\}|(\*)")

    def __init__(self, text: str):
        self.text = text
        self.places = [(m[1] or "*", int(m[2] or 0)) for m in self._PLACE.finditer(text)]
        literals = self._PLACE.sub("\0", text).split("\0")
        groups = [r"([^./]+)" if name == "*" else r"(0|[1-9]\d*)" for name, _ in self.places]
        parts = [re.escape(literals[0])]
        for group, literal in zip(groups, literals[1:], strict=True):
            parts += [group, re.escape(literal)]
        self.regex = re.compile("".join(parts))

    def match(self, key: str) -> dict[str, int | str] | None:
        """Returns the values of the places in `key`, or `None` if it does not fit."""
        found = self.regex.fullmatch(key)
        if found is None:
            return None
        values = {}
        for (name, offset), text in zip(self.places, found.groups(), strict=True):
            value = text if name == "*" else int(text) - offset
            if values.setdefault(name, value) != value or (name != "*" and value < 0):
                return None
        return values

    def format(self, values: Mapping[str, int | str]) -> str:
        """The key with `values` in its places."""
        offsets = iter(self.places)

        def fill(_):
            name, offset = next(offsets)
            return values[name] if name == "*" else str(values[name] + offset)

        return self._PLACE.sub(fill, self.text)


@functools.cache
def pattern(text: str) -> Pattern:
    """The pattern written so; made once."""
    return Pattern(text)


def find_indices(text: str, keys: Iterable[str]) -> list[dict[str, int | str]]:
    """Finds the values of the places in the pattern `text`, for each of `keys` that fits it."""
    return [values for key in keys if (values := pattern(text).match(key)) is not None]


# ---------------------------------------------------------------------------------------------------------------------
# Operations: each takes and returns a list of tensors, and names its inverse. A ValueError says what does not fit.


@dataclass(frozen=True)
class Permute:
    """Reorders the dimensions of each tensor, as `torch.Tensor.permute`. `Permute(1, 0)` turns a flax kernel around."""

    dims: tuple[int, ...]

    def __init__(self, *dims: int):
        object.__setattr__(self, "dims", dims)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            if tensor.ndim != len(self.dims):
                raise ValueError(f"expected {len(self.dims)} dimensions, got shape {tuple(tensor.shape)}")
        return [tensor.permute(self.dims) for tensor in tensors]

    @property
    def inverse(self) -> "Permute":
        return Permute(*(self.dims.index(d) for d in range(len(self.dims))))


@dataclass(frozen=True)
class Reshape:
    """Views each tensor of shape `before` as shape `after`."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            if tuple(tensor.shape) != self.before:
                raise ValueError(f"expected shape {self.before}, got {tuple(tensor.shape)}")
        return [tensor.reshape(self.after) for tensor in tensors]

    @property
    def inverse(self) -> "Reshape":
        return Reshape(self.after, self.before)


@dataclass(frozen=True)
class Concatenate:
    """Joins tensors along `dim`: `parts` is their number when they are equal, or their sizes."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        sizes = [tensor.shape[self.dim] for tensor in tensors]
        expected = [sizes[0]] * self.parts if isinstance(self.parts, int) else list(self.parts)
        if sizes != expected:
            raise ValueError(f"expected sizes {expected} along dimension {self.dim}, got {sizes}")
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise ValueError(f"dtypes differ: {[tensor.dtype for tensor in tensors]}")
        rests = {tuple(s for d, s in enumerate(tensor.shape) if d != self.dim) for tensor in tensors}
        if len(rests) > 1:
            raise ValueError(f"shapes do not fit together: {[tuple(tensor.shape) for tensor in tensors]}")
        return [torch.cat(tensors, dim=self.dim)]

    @property
    def inverse(self) -> "Split":
        return Split(self.parts, self.dim)


@dataclass(frozen=True)
class Split:
    """Cuts one tensor along `dim`: `parts` is the number of equal pieces, or their sizes."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        size = tensor.shape[self.dim]
        sizes = [size // self.parts] * self.parts if isinstance(self.parts, int) else list(self.parts)
        if sum(sizes) != size:
            raise ValueError(f"size {size} of dimension {self.dim} does not split into {self.parts}")
        return list(tensor.split(sizes, dim=self.dim))

    @property
    def inverse(self) -> Concatenate:
        return Concatenate(self.parts, self.dim)


@dataclass(frozen=True)
class InsertZeros:
    """Puts zeros like the first tensor at `position`: a fused bias whose key part the original leaves out."""

    position: int

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        return [*tensors[: self.position], torch.zeros_like(tensors[0]), *tensors[self.position :]]

    @property
    def inverse(self) -> "RemoveZeros":
        return RemoveZeros(self.position)


@dataclass(frozen=True)
class RemoveZeros:
    """Takes the tensor at `position` out, which must be zero."""

    position: int

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        if tensors[self.position].count_nonzero():
            raise ValueError(f"part {self.position} is not zero, and this layout has no place for it")
        return [tensor for i, tensor in enumerate(tensors) if i != self.position]

    @property
    def inverse(self) -> InsertZeros:
        return InsertZeros(self.position)


@dataclass(frozen=True)
class Each:
    """Applies to each tensor an operation of its own, in order; `None` leaves a tensor as it is."""

    operations: tuple["Permute | Reshape | None", ...]

    def __init__(self, *operations: "Permute | Reshape | None"):
        object.__setattr__(self, "operations", operations)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.operations, tensors, strict=True)
        return [tensor if operation is None else operation([tensor])[0] for operation, tensor in pairs]

    @property
    def inverse(self) -> "Each":
        return Each(*(operation and operation.inverse for operation in self.operations))


@dataclass(frozen=True)
class Unify:
    """Makes one of `copies` tensors that must be equal: a module that a file holds under several names."""

    copies: int

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        if not all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
            raise ValueError("these are one tensor in the original, but differ")
        return tensors[:1]

    @property
    def inverse(self) -> "Repeat":
        return Repeat(self.copies)


@dataclass(frozen=True)
class Repeat:
    """Gives the one tensor `copies` times."""

    copies: int

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        return [tensor] * self.copies

    @property
    def inverse(self) -> Unify:
        return Unify(self.copies)


@dataclass(frozen=True)
class Squeeze:
    """Drops the last `count` dimensions, all of size 1: a convolution of one cell as a linear layer."""

    count: int = 2

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            if tensor.shape[-self.count :] != (1,) * self.count:
                raise ValueError(f"expected {self.count} last dimensions of size 1, got shape {tuple(tensor.shape)}")
        return [tensor.flatten(-self.count - 1) for tensor in tensors]

    @property
    def inverse(self) -> "Unsqueeze":
        return Unsqueeze(self.count)


@dataclass(frozen=True)
class Unsqueeze:
    """Appends `count` dimensions of size 1."""

    count: int = 2

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor[(..., *(None,) * self.count)] for tensor in tensors]

    @property
    def inverse(self) -> Squeeze:
        return Squeeze(self.count)


Operation = (
    Permute | Reshape | Concatenate | Split | InsertZeros | RemoveZeros | Each | Unify | Repeat | Squeeze | Unsqueeze
)

# ---------------------------------------------------------------------------------------------------------------------
# Rules


class Rule:
    """
    Source keys become target keys: `Rule("norm.*", "layernorm.*")`, or with operations, applied in order,
    `Rule(("q.weight", "k.weight", "v.weight"), "qkv.weight", Concatenate(3))`.

    Args:
        source, target (`str` or tuple of `str`): [`Pattern`]s with the same places. Targets are the parameter names of
            the base model, without `base_model_prefix`, and those of its heads.
        operations: Turn the list of source tensors into the list of target tensors.
    """

    def __init__(self, source: str | tuple[str, ...], target: str | tuple[str, ...], *operations: Operation):
        self.sources = (source,) if isinstance(source, str) else source
        self.targets = (target,) if isinstance(target, str) else target
        self.operations = operations

    @property
    def inverse(self) -> "Rule":
        return Rule(self.targets, self.sources, *(operation.inverse for operation in reversed(self.operations)))

    def run(self, values: Mapping[str, int | str], tensors: list[Tensor]) -> list[Tensor]:
        for operation in self.operations:
            tensors = operation(tensors)
        return tensors

    def __repr__(self) -> str:
        return f"{' + '.join(self.sources) or 'nothing'} -> {' + '.join(self.targets) or 'nothing'}"


class Derived(Rule):
    """
    A source tensor that follows from the configuration (an index table, a mask): it is checked, not stored, and made
    anew when writing back.

    Args:
        source (`str`): Pattern of the key.
        make: Called with the values of the places as keyword arguments; returns the tensor, or `None` where there is
        none. like (`str`): A target pattern with the same places, which tells how often the key occurs.
    """

    def __init__(self, source: str, make: Callable[..., Tensor | None], like: str):
        super().__init__(source, ())
        self.make, self.like = make, like

    @property
    def inverse(self) -> "Constant":
        return Constant(self.sources[0], self.make, self.like)

    @staticmethod
    def _equal(tensor: Tensor, made: Tensor) -> bool:
        # Logarithms and sines of another machine's library may be rounded otherwise.
        if tensor.is_floating_point():
            return tensor.shape == made.shape and torch.allclose(tensor, made, rtol=1e-6, atol=1e-7)
        return torch.equal(tensor, made)

    def run(self, values: Mapping[str, int | str], tensors: list[Tensor]) -> list[Tensor]:
        (tensor,), made = tensors, self.make(**values)
        if made is None:
            raise ValueError("this layer has no such tensor")
        if tensor.is_floating_point() != made.is_floating_point() or not self._equal(tensor, made.to(tensor.dtype)):
            raise ValueError("it differs from what the configuration gives")
        return []


class Constant(Rule):
    """
    A target tensor that the source lacks because its value is known; checked and left out when writing back.

    Args:
        target (`str`): Pattern of the key.
        make: As in [`Derived`].
        like (`str`): A source pattern with the same places, which tells how often the key occurs.
    """

    def __init__(self, target: str, make: Callable[..., Tensor | None], like: str):
        super().__init__((), target)
        self.make, self.like = make, like

    @property
    def inverse(self) -> Derived:
        return Derived(self.targets[0], self.make, self.like)

    def run(self, values: Mapping[str, int | str], tensors: list[Tensor]) -> list[Tensor]:
        return [self.make(**values)]


def first_three(keys: Sequence[str]) -> str:
    """The beginning of a sentence about keys: `"key 'a' is"`, `"keys 'a', 'b', 'c' and 5 others are"`."""
    if len(keys) == 1:
        return f"key {keys[0]!r} is"
    rest = len(keys) - 3
    tail = f" and {rest} other{'s' * (rest > 1)}" if rest > 0 else ""
    return f"keys {', '.join(map(repr, keys[:3]))}{tail} are"


@dataclass(frozen=True)
class Step:
    """One use of a rule: these source keys become these target keys."""

    rule: Rule
    values: dict[str, int | str]
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def make_plan(keys: Iterable[str], rules: Sequence[Rule]) -> list[Step]:
    """
    Which rule turns which keys into which.

    Raises:
        ConversionError: for a key that no rule or two rules match, a rule that finds a part of its keys only, or two
            keys that become the same one.
    """
    keys = list(keys)
    steps: dict[tuple, Step] = {}
    unmatched = []
    for key in keys:
        matches = []
        for number, rule in enumerate(rules):
            for source in rule.sources:
                if (values := pattern(source).match(key)) is not None:
                    matches.append((number, values))
        if len(matches) != 1:
            if matches:
                raise ConversionError(
                    f"key {key!r} is matched by {[rules[n] for n, _ in matches]}, not by one rule", key
                )
            unmatched.append(key)
            continue
        ((number, values),) = matches
        _add_step(steps, number, rules[number], values)
    if len(unmatched) == 1:
        expected = [s for rule in rules for s in rule.sources]
        raise ConversionError(
            f"{unknown_name_message('key', unmatched[0], expected)} (no rule matches it)", unmatched[0]
        )
    if unmatched:
        raise ConversionError(f"{first_three(unmatched)} matched by no rule", unmatched[0])
    for number, rule in enumerate(rules):
        if isinstance(rule, Constant):
            for values in find_indices(rule.like, keys):
                if rule.make(**values) is not None:
                    _add_step(steps, number, rule, values)
    present, written = set(keys), {}
    needed = {
        source: [key for key in step.sources if key in present] or list(step.targets)
        for step in steps.values()
        for source in step.sources
        if source not in present
    }
    if needed:
        missing = list(needed)
        others = dict.fromkeys(key for source in missing[:3] for key in needed[source])
        raise ConversionError(f"{first_three(missing)} missing, which {', '.join(map(repr, others))} need", missing[0])
    for step in steps.values():
        for target in step.targets:
            if target in written:
                raise ConversionError(f"{written[target].sources} and {step.sources} both become {target!r}", target)
            written[target] = step
    return list(steps.values())


def _add_step(steps: dict, number: int, rule: Rule, values: dict[str, int | str]) -> None:
    steps.setdefault(
        (number, *sorted(values.items())),
        Step(
            rule,
            values,
            tuple(pattern(source).format(values) for source in rule.sources),
            tuple(pattern(target).format(values) for target in rule.targets),
        ),
    )


def run_plan(plan: Iterable[Step], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    The target tensors, contiguous and in memory of their own. Raises ConversionError where an operation does not fit.
    """
    result = {}
    for step in plan:
        try:
            tensors = step.rule.run(step.values, [state_dict[key] for key in step.sources])
        except ValueError as error:
            keys = ", ".join(repr(key) for key in step.sources)
            raise ConversionError(f"key {keys}: {error}", step.sources[0]) from error
        for target, tensor in zip(step.targets, tensors, strict=True):
            result[target] = tensor.clone(memory_format=torch.contiguous_format)
    return result
