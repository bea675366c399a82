"""
Which class of one list is which class of another: the one rule by which data, models and teachers find each other's
classes.

Classes are found by their names. They are found by their numbers only where one side has no names, and a user is told.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..notices import listed

# What transformers calls the classes of a model that was given no names.
_UNNAMED = re.compile(r"LABEL_(\d+)")


@dataclass(frozen=True)
class Classes:
    """
    Classes in the order of their numbers.

    Args:
        names: The names.
        owner: Whose they are, as a message names it: `"the model runs/pets"`.
        numbered: Whether the names are only the numbers, since a column of integers gave them.
    """

    names: Sequence[str]
    owner: str
    numbered: bool = False

    @property
    def unnamed(self) -> bool:
        """Whether these are `LABEL_0`, `LABEL_1`, ... in this order, as of a model that was given no names."""
        matches = [_UNNAMED.fullmatch(name) for name in self.names]
        return bool(matches) and all(m and int(m[1]) == i for i, m in enumerate(matches))

    def __str__(self) -> str:
        return f"{self.owner} has {listed(self.names)}"


@dataclass(frozen=True)
class Match:
    """
    Args:
        indices: int64 (number of source classes,), the number that each has in the target; -1 for a class that is not
            used.
        by: `"name"` or `"number"`.
        notice: What a user should know, in one sentence; None where the names are the same in the same order.
    """

    indices: np.ndarray
    by: str
    notice: str | None


def model_classes(config, owner: str) -> Classes:
    """The classes of a model by its configuration's `id2label`."""
    return Classes([str(config.id2label[i]) for i in range(config.num_labels)], owner)


def _folded(name: str) -> str:
    return name.strip().casefold()


def _by_number(source: Classes, target: Classes, used: np.ndarray) -> Match | None:
    """The match by number, where every number exists in the target."""
    numbers = np.arange(len(source.names))
    if target.unnamed and all(re.fullmatch(r"\d+", name) for name in source.names):
        numbers = np.array([int(name) for name in source.names])  # folders "0" to "10" sort as "0", "1", "10"
    if len(set(numbers.tolist())) < len(numbers) or numbers[used].max(initial=-1) >= len(target.names):
        return None
    indices = np.full(len(numbers), -1, dtype=np.int64)
    indices[used] = numbers[used]
    pairs = listed((f"{source.names[i]!r} is {target.names[indices[i]]!r}" for i in used), most=4)
    return Match(
        indices,
        "number",
        f"classes are matched by number "
        f"({source.owner}: {len(source.names)}, {target.owner}: {len(target.names)}): {pairs}",
    )


def _by_name(source: Classes, target: Classes, used: np.ndarray) -> Match | None:
    """The match by name, where every used class has exactly one."""
    indices = np.full(len(source.names), -1, dtype=np.int64)
    if list(source.names) == list(target.names):
        indices[used] = used
        return Match(indices, "name", None)
    exact, counts = {name: i for i, name in enumerate(target.names)}, Counter(target.names)
    folded, folded_counts = (
        {_folded(name): i for i, name in enumerate(target.names)},
        Counter(map(_folded, target.names)),
    )
    changed = []
    for i in used:
        name = source.names[i]
        if counts[name] == 1:
            indices[i] = exact[name]
        elif name not in exact and folded_counts[_folded(name)] == 1:
            indices[i] = folded[_folded(name)]
            changed.append(i)
        else:
            return None
    if len(set(indices[used].tolist())) < len(used):
        return None
    pairs = [i for i in used if indices[i] != i]
    said = []
    if changed:
        names = listed((f"{source.names[i]!r} is {target.names[indices[i]]!r}" for i in changed), most=4)
        said.append(f"classes are matched by name without regard to case and surrounding space: {names}")
    if pairs:
        numbers = listed((f"{source.names[i]!r} from {i} to {indices[i]}" for i in pairs), most=4)
        said.append(f"classes are matched by name; numbers change: {numbers}")
    return Match(indices, "name", "; ".join(said) or None)


def find_match(
    source: Classes, target: Classes, used: Iterable[int] | None = None, by_number: bool = False
) -> Match | None:
    """As `match_classes`, or None where the classes cannot be matched."""
    used = np.unique(np.fromiter(used, np.int64)) if used is not None else np.arange(len(source.names))
    if by_number:
        return _by_number(source, target, used)
    match = _by_name(source, target, used)
    counts = source.numbered and not any(name.strip().isdigit() for name in target.names)  # those are other numbers
    if match is None and (counts or source.unnamed or target.unnamed):
        match = _by_number(source, target, used)
    return match


def match_classes(
    source: Classes, target: Classes, remedy: str, used: Iterable[int] | None = None, by_number: bool = False
) -> Match:
    """
    The number in `target` of each class of `source`.

    A name matches the same name, or else the only one that differs in nothing but case and surrounding space. By number
    match only classes without names: `LABEL_0`, `LABEL_1`, ... of a model, and a column of integers.

    Args:
        source, target: The classes.
        remedy: What a user can do where they cannot be matched, as the end of the error's sentence.
        used: The source classes that occur; all by default. Others need no match.
        by_number: Match by number whatever the names are.

    Raises:
        UserError: with both lists, where a class that is used has no match.
    """
    match = find_match(source, target, used, by_number)
    if match is not None:
        return match
    known = {_folded(name) for name in target.names}
    missing = [name for name in source.names if _folded(name) not in known]
    what = f" ({listed(missing)} cannot be found)" if missing else " (names that differ only in case or space)"
    raise UserError(f"classes do not match{what}: {source}; {target}; {remedy}")
