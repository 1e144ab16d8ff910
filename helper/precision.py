"""Where and in which number format a run computes."""

from __future__ import annotations

import functools
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import cpu_convolution, distributed
from .errors import UserError
from .memory import recall, remember

LOW_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
X86 = ("x86_64", "amd64", "x86", "i386", "i686")
# times as fast as float32 that bfloat16 must be where it is timed: less is noise, and rounding is not for nothing
WORTH_ROUNDING = 1.5


def pick_device(name: str) -> torch.device:
    """The device of a `--device` value.

    Args:
        name: `auto` (CUDA where there is one, else the CPU) or any torch device string.

    Raises:
        UserError: torch does not know the device or cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); take cpu, cuda or auto") from None
    return device


def has_fast_bfloat16(device: torch.device, memory: Path | None = None) -> bool:
    """Whether the hardware multiplies bfloat16 so natively that it beats float32.

    CUDA devices and x86 processors (AMX, AVX512-BF16) tell; others, such as arm64, are timed once.

    Args:
        device: of the networks.
        memory: JSON file that may have what was timed on this machine, see `keep_timing`.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in X86:
        return _x86_has_bfloat16()
    known = recall(memory, _machine()) if memory else None
    return known if isinstance(known, bool) else _bfloat16_is_faster()


def keep_timing(memory: Path) -> None:
    """Let this run, when it is resumed, and others with this file take the format that was timed, if one was.

    Raises:
        RunError: it cannot be written.
    """
    if _bfloat16_is_faster.cache_info().currsize:
        remember(memory, _machine(), _bfloat16_is_faster())


def _machine() -> str:
    return f"{platform.node()} {platform.machine()}, torch {torch.__version__}"


def _x86_has_bfloat16() -> bool:
    return cpu_has_amx() or _cpu_has("_is_avx512_bf16_supported")


@functools.cache
def _bfloat16_is_faster() -> bool:
    """Whether a convolution and its gradients take this processor clearly less time in bfloat16 than in float32.

    Of several processes, all take what the main one finds.
    """
    faster = WORTH_ROUNDING * _convolution_seconds(torch.bfloat16) < _convolution_seconds(torch.float32)
    return distributed.share(faster)


@torch.enable_grad()
def _convolution_seconds(dtype: torch.dtype) -> float:
    """The best of three, after one for nothing; it draws no random numbers."""
    images, kernels = (
        torch.ones(shape, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((4, 64, 16, 16), (64, 64, 3, 3))
    )
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.nn.functional.conv2d(images, kernels, padding=1).sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def cpu_has_amx() -> bool:
    """Whether the processor multiplies matrices by AMX."""
    return _cpu_has("_is_amx_tile_supported")


def _cpu_has(check: str) -> bool:
    """Ask `torch.cpu`, which has no public names for these yet; a release without one means no."""
    return bool(getattr(torch.cpu, check, lambda: False)())


@dataclass(frozen=True)
class Precision:
    """Device and number format of the networks' forward passes; losses and master weights are always float32.

    Args:
        device: where everything lives.
        dtype: `torch.float32`, `torch.bfloat16` or `torch.float16`.
        plain: leave networks that do not learn as they are, too: no folded batch norms.
    """

    device: torch.device
    dtype: torch.dtype
    plain: bool = False

    @classmethod
    def choose(cls, name: str, device: torch.device, memory: Path | None = None) -> Precision:
        """The precision of a `--precision` value: `fp32` (plain), `bf16`, `fp16`, or `auto`, the fastest safe one.

        Args:
            name: the value.
            device: of the networks.
            memory: see `has_fast_bfloat16`.
        """
        if name == "auto":
            low = "bf16" if has_fast_bfloat16(device, memory) else "fp16" if device.type == "cuda" else ""
        else:
            low = name
        return cls(device, LOW_FORMATS.get(low, torch.float32), plain=name == "fp32")

    @property
    def name(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return next((name for name, dtype in LOW_FORMATS.items() if dtype == self.dtype), "fp32")

    @property
    def emulated(self) -> bool:
        """Whether an x86 processor, on which both low formats are then far slower than float32, has neither."""
        low = self.device.type == "cpu" and self.dtype != torch.float32
        return low and platform.machine().lower() in X86 and not _x86_has_bfloat16()

    def autocast(self, enabled: bool = True) -> AbstractContextManager:
        """Autocast to the format; `enabled=False` is the float32 island for losses inside it."""
        low = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if low else None, enabled=low and enabled)

    def spare_slow_operations(self, network: nn.Module) -> None:
        """Let the operations of a network that the low format would slow down take another form; see `adapt`.

        Only on x86 processors that multiply bfloat16 natively: on what is slow elsewhere nothing is known.
        """
        if self.device.type == "cpu" and self.dtype != torch.float32 and _x86_has_bfloat16():
            cpu_convolution.adapt(network, cpu_has_amx())

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps the gradients of float16 above its smallest number; without effect in the other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
