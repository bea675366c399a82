"""
Tensors that are computed once for an input size: those that follow from sizes only, and on request those of parameters.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

Tensors = torch.Tensor | tuple[torch.Tensor, ...]


def _can_keep() -> bool:
    """
    Whether tensors that are made now are plain ones that a later call may use: not while something traces or
    transforms.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


class TensorCache:
    """
    The tensors that were used last, up to `max_bytes` in all. Safe in threads; copies and pickles start empty.

    Args:
        max_bytes (`int`): A tensor that is larger on its own is made anew each time.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        # For each key: the state of its sources, what was made of them, its bytes, and the sources themselves.
        self.entries: OrderedDict[tuple, tuple[tuple, Tensors, int, tuple]] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self):
        return TensorCache, (self.max_bytes,)

    def get(self, key: tuple, make: Callable[[], Tensors], sources: tuple[torch.Tensor, ...] = ()) -> Tensors:
        """`make()`, a tensor or a tuple of them, or what it returned for this `key` while nobody wrote to `sources`."""
        # Comparing memory addresses is safe because the entry keeps the memory of its sources alive.
        stamp = tuple((s.data_ptr(), s._version, s.dtype, s.device) for s in sources)
        with self.lock:
            entry = self.entries.get(key)
            if entry is not None and entry[0] == stamp:
                self.entries.move_to_end(key)
                return entry[1]
        # Inference tensors could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        tensors = value if isinstance(value, tuple) else (value,)
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        if tensors[0].is_cuda:
            torch.cuda.synchronize(tensors[0].device)  # another thread may read it in another stream
        with self.lock:
            self._drop(key)
            if size <= self.max_bytes:
                self.entries[key] = (stamp, value, size, tuple(source.detach() for source in sources))
                self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self.entries)))
        return value

    def clear(self) -> None:
        """Forgets everything."""
        with self.lock:
            self.entries.clear()
            self.num_bytes = 0

    def _drop(self, key: tuple) -> None:
        if key in self.entries:
            self.num_bytes -= self.entries.pop(key)[2]


# Of all models of the process together: a table is the same for every layer and model that asks for it.
SIZE_TABLES = TensorCache(max_bytes=64 * 2**20)


def size_table(function: Callable[..., Tensors], *arguments) -> Tensors:
    """
    `function(*arguments)`, computed once. What it returns follows from its arguments only: sizes, numbers, a dtype and
    a device, never a tensor.
    """
    if not _can_keep():
        return function(*arguments)
    return SIZE_TABLES.get((function, *arguments), lambda: function(*arguments))


class Resizable(nn.Module):
    """
    Base of modules that make a tensor from their parameters for each input size, such as positions that are resized.

    It is made anew in every forward pass: nothing tells reliably whether parameters were written to (`.data`, as moving
    averages write, leaves no trace). `freeze_caches` of a model makes evaluation keep it.
    """

    kept: TensorCache | None = None

    def for_size(self, size: tuple, make: Callable[[], Tensors]) -> Tensors:
        """`make()`, a tensor or a tuple of them; where caches are frozen, what it returned for this `size` before."""
        if self.kept is None or not _can_keep():
            return make()
        if torch.is_grad_enabled():
            self.kept.clear()  # an optimiser may follow, and fused ones write without telling autograd
            return make()
        sources = (*self.parameters(), *self.buffers())
        # A replica of DataParallel has no parameters of its own, and inference tensors count no versions.
        if not sources or any(source.is_inference() for source in sources):
            return make()
        device = sources[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self.kept.get((id(self), size, precision), make, sources)

    def train(self, mode: bool = True):
        if mode:
            self.kept = None
        return super().train(mode)
