"""
Reads what flax writes: msgpack with its extension types for arrays (google/flax@00a973a flax/serialization.py). No code
can be in it.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Extension types of flax: an array, and a NumPy scalar, are both [shape, name of the dtype, bytes].
_ARRAYS = (1, 3)
# First byte to what follows it. Sizes and numbers are big-endian, by struct's letters.
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: "f",
    0xCB: "d",
    0xCC: "B",
    0xCD: "H",
    0xCE: "I",
    0xCF: "Q",
    0xD0: "b",
    0xD1: "h",
    0xD2: "i",
    0xD3: "q",
}
_BYTES = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_STRINGS = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_EXTENSIONS = {0xC7: "B", 0xC8: "H", 0xC9: "I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LISTS = {0xDC: "H", 0xDD: "I"}
_MAPS = {0xDE: "H", 0xDF: "I"}


class _Reader:
    """A cursor over msgpack. Raises ValueError for what is damaged or no msgpack."""

    def __init__(self, content: memoryview):
        self.content = content
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.content):
            raise ValueError("it ends too early, or is no msgpack")
        taken, self.position = self.content[self.position : end], end
        return taken

    def number(self, letter: str) -> int | float:
        return struct.unpack(">" + letter, self.take(struct.calcsize(letter)))[0]

    def text(self, size: int) -> str:
        return str(self.take(size), "utf-8")

    def items(self, count: int) -> list[Any]:
        return [self.value() for _ in range(count)]

    def mapping(self, count: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(count)}

    def extension(self, size: int) -> Any:
        kind, content = self.number("b"), self.take(size)
        if kind not in _ARRAYS:
            raise ValueError(f"extension type {kind} is no array of flax")
        return _array(*_Reader(content).value())

    def value(self) -> Any:
        first = self.number("B")
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        short: list[tuple[int, int, Callable[[int], Any]]] = [
            (0x80, 0x0F, self.mapping),
            (0x90, 0x0F, self.items),
            (0xA0, 0x1F, self.text),
        ]
        for start, mask, read in short:
            if start <= first <= start + mask:
                return read(first & mask)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first in _FIXED_EXTENSIONS:
            return self.extension(_FIXED_EXTENSIONS[first])
        sized = [
            (_BYTES, self.take),
            (_STRINGS, self.text),
            (_EXTENSIONS, self.extension),
            (_LISTS, self.items),
            (_MAPS, self.mapping),
        ]
        for letters, read in sized:
            if first in letters:
                return read(int(self.number(letters[first])))
        raise ValueError(f"byte {first:#x} is no msgpack")


def _array(shape: list[int], dtype: str, content: memoryview) -> torch.Tensor:
    if dtype == "bfloat16":  # NumPy has none of its own
        bits = np.frombuffer(content, np.uint16).reshape(shape).copy()
        return torch.from_numpy(bits).view(torch.bfloat16)
    return torch.from_numpy(np.frombuffer(content, np.dtype(dtype)).reshape(shape).copy())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, name + "/") if isinstance(value, dict) else {name: value})
    return flat


def load_flax(path: Path) -> dict[str, Any]:
    """
    What a flax checkpoint holds, the names of its nested dictionaries joined by "/": arrays as tensors, and numbers and
    texts.

    Raises:
        ValueError: if the file is damaged or of another kind.
    """
    reader = _Reader(memoryview(path.read_bytes()))
    try:
        tree = reader.value()
        flat = _flatten(tree) if isinstance(tree, dict) else {}
    except (
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:  # such as a list for a key, or an array of 10^30 numbers
        raise ValueError(f"it is damaged ({(str(error) or repr(error)).splitlines()[0]})") from error
    if not isinstance(tree, dict) or reader.position < len(reader.content):
        raise ValueError("it holds no dictionary, or more than one")
    return flat
