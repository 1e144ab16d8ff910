"""What the host would wait for if a device were a GPU, found without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
META = torch.device("meta")  # stands for a GPU: tensors without values, so that what asks for one fails


class _Made(TorchFunctionMode):
    """Records tensors that are made of Python's numbers on another device than the CPU: the host waits for each."""

    def __init__(self, waited: list[bool]):
        super().__init__()
        self.waited = waited

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run a function of torch, and look at it."""
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device != CPU:
            self.waited.append(False)
        return result


class _Copies(TorchDispatchMode):
    """Records copies from the CPU to another device: of each, whether the host goes on meanwhile."""

    def __init__(self):
        super().__init__()
        self.asynchronous = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run a function of ATen, and look at it."""
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device == CPU != result.device:
            self.asynchronous.append(kwargs.get("non_blocking", False))
        elif function is torch.ops.aten.copy_.default and args[1].device == CPU != args[0].device:
            self.asynchronous.append(args[2] if len(args) > 2 else False)
        return result


@contextmanager
def copies_to_meta() -> Iterator[list[bool]]:
    """A list of the copies from the CPU to another device within the block: False for each that the host waits for."""
    with _Copies() as copies, _Made(copies.asynchronous):
        yield copies.asynchronous
