"""Several processes that train one network together, as torchrun starts them: what they exchange, and when.

Every process draws the same order and views of the images and takes its share of each batch. It runs the networks on
that share; their outputs are then gathered, with gradient, so that every process computes the method's loss of the
whole batch. A loss that couples the samples of a batch, a memory, a learned temperature and an adapter's batch norm are
thus what they are in one process, and the same everywhere, without code of their own.

The factors: process r has dL/dz of all outputs z but only its own share of them to go on with, and the gradients of all
processes are averaged. `gather` therefore multiplies the gradient of its own share by the number of processes, which
makes the student's average the sum over shares; adapters get the whole batch's gradient everywhere, of which the
average is the same.

All functions are of no effect with one process.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# before there are connections: they would become defaults of this module's functions and outlive the run, and a thread
# of theirs can abort a process that ends. Optimizers import it.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from .errors import RunError, UserError, resume_hint, set_voice

T = TypeVar("T")
# A process that dies is noticed at once, by its closed connections; this is for a machine that vanishes.
PATIENCE = timedelta(minutes=5)
POLL = 0.05  # seconds
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_kept: dict[str, Any] = {"uses": 0}


def size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes, prints and decides."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if size() > 1 else 0


def together(main: Callable[[], None]) -> Callable[[], None]:
    """An entry script's `main` as one of the processes that torchrun has started, if it has."""

    def run() -> None:
        """Join the others, run, and leave."""
        start()
        failed = True
        try:
            main()
            failed = False
        finally:
            # nccl would wait for what a process that has failed no longer answers
            if size() > 1 and not (failed and dist.get_backend() != "gloo"):
                dist.destroy_process_group()

    return run


def start() -> None:
    """Join the other processes, if there are any; all but the main one are silent from here on.

    The connections are gloo's for tensors on the CPU and nccl's for those on CUDA devices.

    Raises:
        RunError: they cannot be reached.
    """
    if not all(name in os.environ for name in _VARIABLES) or int(os.environ["WORLD_SIZE"]) < 2:
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _exchange():
        store, number, count = next(rendezvous("env://", timeout=PATIENCE))
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=number, world_size=count, timeout=PATIENCE)
    _kept["store"] = store
    set_voice(_is_first_to_speak, sys.stderr)
    if number:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def _is_first_to_speak() -> bool:
    """Whether no other process has told yet how the run ended."""
    try:
        return _kept["store"].add("spoken", 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


@contextmanager
def _exchange() -> Iterator[None]:
    """Turn what gloo and nccl raise when a process is gone into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # without the place in gloo's source and its advice
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise RunError(
            f"another process of this run has ended or cannot be reached ({reason}); the last checkpoints are kept"
            + resume_hint()
        ) from None


def own_device(name: str) -> str:
    """The device of a `--device` value for this process: with several, each has a GPU of its own.

    Raises:
        UserError: the value names one GPU for all, or there are fewer GPUs than processes on this machine.
    """
    if size() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UserError(
            f"--device {name} is one device, but each of {size()} processes needs its own; take cuda or cpu"
        )
    number, gpus = local_rank(), torch.cuda.device_count()
    if number >= gpus:
        raise UserError(f"{socket.gethostname()} has {gpus} GPUs, too few for its processes: lower --nproc_per_node")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient of the own ones, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows (n, ...) of this process, of which the first sizes[rank] count, to (sum of sizes, ...)."""
        ctx.sizes, ctx.rows = sizes, len(rows)
        own, widest = sizes[rank()], max(sizes)
        last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        rows = rows.movedim(1, -1) if last else rows
        padded = rows.new_zeros(widest, *rows.shape[1:])
        padded[:own] = rows[:own]
        gathered = padded.new_empty(len(sizes) * widest, *rows.shape[1:])
        with _exchange():
            dist.all_gather(list(gathered.split(widest)), padded)
        if min(sizes) < widest:
            gathered = torch.cat([part[:n] for part, n in zip(gathered.split(widest), sizes, strict=True)])
        return gathered.movedim(-1, 1) if last else gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The slice of the own rows; 0 for a row that does not count."""
        own, first = ctx.sizes[rank()], sum(ctx.sizes[: rank()])
        mine = grad[first : first + own] * len(ctx.sizes)
        return torch.cat([mine, mine.new_zeros(ctx.rows - own, *mine.shape[1:])]) if ctx.rows > own else mine, None


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes in their order, with the gradient that the docstring of this module derives.

    Args:
        rows: (n, ...) of this process, of which the first sizes[rank] count.
        sizes: rows that count on each process.

    Returns:
        (sum of sizes, ...).

    Raises:
        RunError: a process is gone.
    """
    return _Gather.apply(rows, sizes)


class _Total(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """The sum, in a new tensor."""
        total = value.clone(memory_format=torch.contiguous_format)
        with _exchange():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum of the gradients."""
        return _Total.apply(grad)


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, with gradient.

    Raises:
        RunError: a process is gone.
    """
    return _Total.apply(value) if size() > 1 else value


def _exchange_flat(tensors: Iterable[Tensor], change: Callable[[Tensor], Any]) -> None:
    """Let `change` work on all tensors at once, in place, through a flat copy of those of each type."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with _exchange():
            change(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _average(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat.div_(size())


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of what an optimizer trains by their means over all processes.

    One exchange after the backward pass, and not DistributedDataParallel, which exchanges during it: that would have to
    be told about terms of weight zero (parameters without gradient), pre-training stages (other parameters) and DOT
    (two backward passes through one forward pass), and would save little beside the gathered outputs. Called before the
    scaler of float16 looks for overflows, so that all processes skip the same steps.

    Raises:
        RunError: a process is gone.
    """
    if size() > 1:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        _exchange_flat((p.grad for p in parameters if p.grad is not None), _average)


def average_buffers(network: nn.Module) -> None:
    """Replace the running statistics of a network's batch norms by their means over all processes.

    Raises:
        RunError: a process is gone.
    """
    if size() > 1:
        _exchange_flat((buffer for buffer in network.buffers() if buffer.is_floating_point()), _average)


def copy_from_main(module: nn.Module) -> None:
    """Give all processes the main one's parameters and buffers.

    Raises:
        RunError: a process is gone.
    """
    if size() > 1:
        _exchange_flat([*module.parameters(), *module.buffers()], lambda flat: dist.broadcast(flat, src=0))


def share(value: T) -> T:
    """The main process's value, on all of them.

    Args:
        value: plain data and tensors; what the other processes give does not matter.

    Raises:
        RunError: a process is gone.
    """
    if size() == 1:
        return value
    buffer = io.BytesIO()
    torch.save(value if is_main() else None, buffer)
    content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    length = torch.tensor(len(content))
    with _exchange():
        dist.broadcast(length, src=0)
        content = content if is_main() else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, src=0)
    return value if is_main() else torch.load(io.BytesIO(content.numpy()), map_location="cpu", weights_only=True)


def refuse_differences(facts: Mapping[str, Any]) -> None:
    """Check that all processes were started alike.

    Args:
        facts: plain data that must be the same everywhere.

    Raises:
        UserError: the first fact that differs from the main process's.
    """
    first = share(dict(facts))
    for name, value in facts.items():
        if value != first.get(name):
            raise UserError(
                f"process {rank()} on {socket.gethostname()} has {name} = {value}, process 0 has {first.get(name)}: "
                "start the same command, with the same files, on all machines"
            )


def _wait(key: str, count: int) -> None:
    """Wait without limit, and without holding back signals, until a counter of the store has a value."""
    with _exchange():
        while _kept["store"].add(key, 0) < count:
            time.sleep(POLL)


@contextmanager
def first_of_each_machine() -> Iterator[None]:
    """Let the first process of each machine go through the block before the others: a download, a file to build."""
    if size() == 1:
        yield
        return
    _kept["uses"] += 1
    key = f"first/{os.environ.get('GROUP_RANK', 0)}/{_kept['uses']}"
    if local_rank():
        _wait(key, 1)
    yield
    if not local_rank():
        with _exchange():
            _kept["store"].add(key, 1)


def meet() -> None:
    """Wait until all processes are here, however long that takes.

    Raises:
        RunError: the process that keeps count is gone.
    """
    if size() == 1:
        return
    _kept["uses"] += 1
    key = f"meet/{_kept['uses']}"
    with _exchange():
        _kept["store"].add(key, 1)
    _wait(key, size())
