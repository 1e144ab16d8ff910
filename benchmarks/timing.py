"""What all benchmarks share: two versions of a computation timed in turn, and a line that tells the machine."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

# parameters of glibc's mallopt: memory to keep before any goes back, and the size of what is mapped by itself
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# runs of each version that a comparison takes, however long they are
FEWEST_PAIRS = 3
SMALLEST_SIDE = 256
LONGEST_PRODUCT = 2.0  # seconds that a product of two matrices may take


@dataclass(frozen=True)
class Comparison:
    """Two versions, timed in turn.

    Attributes:
        a_ms, b_ms: median time of a run of each, in milliseconds.
        ratio: median over the pairs of runs of (time of a) / (time of b); above 1, b is faster.
        low, high: 10th and 90th percentile of that ratio.
        pairs: number of pairs.
    """

    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    pairs: int


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work; on the CPU it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Callable[[], object], runs: int, device: torch.device) -> float:
    """Mean time of some runs in a row, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / runs


def interleave(
    a: Callable[[], object],
    b: Callable[[], object],
    repeats: int,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    seconds: float = float("inf"),
    block_ms: float = 5.0,
) -> Comparison:
    """Time two versions in turn, a b a b, so that what else the machine does meets both alike.

    Args:
        a, b: the versions.
        repeats: number of pairs to time.
        warmup: number of runs of both that are not timed.
        device: where the versions run.
        seconds: begin no further pair after this time, but FEWEST_PAIRS (or `repeats`, where that is less) in any case.
        block_ms: a version that is faster than this is run several times in a row, the other one as often, so that
            caches are not always as the other one left them; 0 for single runs.
    """
    device = torch.device(device)
    for _ in range(warmup):
        a(), b()
    runs = max(1, round(block_ms / min(milliseconds(run, 1, device) for run in (a, b))))
    times: list[tuple[float, float]] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(times) < repeats:
            times.append((milliseconds(a, runs, device), milliseconds(b, runs, device)))
            if len(times) >= FEWEST_PAIRS and time.perf_counter() - start > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    a_ms, b_ms = (statistics.median(side) for side in zip(*times, strict=True))
    ratios = sorted(x / y for x, y in times)
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.9))
    return Comparison(a_ms, b_ms, statistics.median(ratios), low, high, len(times))


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors have freed, where it is glibc.

    To give back what the large one of two versions has freed may take longer than the small one itself, and which of
    them meets it is chance.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        if not library.mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
            library.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that versions before 2.35 take


def machine(device: torch.device) -> str:
    """One line: processor, threads, version of torch, device, and whether there is CUDA."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA"
    return (
        f"{model}, {threads} thread{'s' * (threads != 1)}, torch {torch.__version__}, {cuda}; runs on {device} ({kind})"
    )


@contextmanager
def limited_memory(share: float = 0.5) -> Iterator[None]:
    """Inside, an allocation fails that takes more than a share of the free memory, lest the system end processes.

    Only where the system tells how much is free (Linux), and where no CUDA reserves addresses beyond it.
    """
    info = Path("/proc/meminfo")
    if resource is None or not info.exists() or torch.cuda.is_available():
        yield
        return
    free = next(int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(share * free * 1024), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Rate(NamedTuple):
    """How fast a machine multiplies matrices.

    Attributes:
        per_second: operations; an addition counts as one.
        side: of the square matrices.
    """

    per_second: float
    side: int


def gemm_rate(dtype: torch.dtype, device: torch.device, side: int = 2048, repeats: int = 5) -> Rate:
    """The rate of the fastest of a few products of two square matrices.

    In a format that the hardware has not, such a product can take minutes; the matrices are smaller then. They grow
    from small ones: what interrupts a product on a busy machine takes as long however small it is.
    """
    tried = min(side, SMALLEST_SIDE)
    while tried < side and 16 * tried**3 < LONGEST_PRODUCT * _gemm_rate(dtype, device, tried, repeats):
        tried = min(2 * tried, side)
    return Rate(_gemm_rate(dtype, device, tried, repeats), tried)


def _gemm_rate(dtype: torch.dtype, device: torch.device, side: int, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    milliseconds(lambda: a @ b, 1, device)
    return 2 * side**3 / (min(milliseconds(lambda: a @ b, 1, device) for _ in range(repeats)) / 1000)


def gemm_rates(device: torch.device, side: int = 2048) -> dict[torch.dtype, Rate]:
    """`gemm_rate` of the number formats that training uses."""
    return {dtype: gemm_rate(dtype, device, side) for dtype in (torch.float32, torch.bfloat16)}


def gemm_line(rates: dict[torch.dtype, Rate]) -> str:
    """The rates in words."""
    words = (
        f"{str(dtype).removeprefix('torch.')} {rate.per_second / 1e9:,.0f} GFLOP/s (side {rate.side})"
        for dtype, rate in rates.items()
    )
    return "matrix product: " + ", ".join(words)
