"""Networks that do not learn, run as fast as the precision allows: folded, in the low format, fused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from . import cpu_graph
from .precision import Precision

FOLDING_TOLERANCE = 1e-3  # relative to the largest logit; folding alone moves float32 logits by about 1e-6


class FoldError(Exception):
    """A network with no batch norm that can be folded."""


@torch.no_grad()
def _convolutions_before_norms(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions and of the batch norm that takes the output of each, found by running the network."""
    names = {module: name for name, module in network.named_modules()}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[str, str]] = []

    def after_convolution(module: nn.Conv2d, _: tuple, output: Tensor) -> None:
        outputs[id(output)] = (module, output)  # the output itself, too: its id stays taken

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((names[outputs[id(inputs[0])][0]], names[module]))

    hooks = []
    for module in names:
        # not their subclasses: some of these activate as well
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before_norm))
    network(images)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(pairs))  # once each, however often the network applies them


@torch.no_grad()
def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """A copy of a network with the given pairs of convolution and batch norm merged."""
    folded = copy.deepcopy(network)
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        parent, _, child = norm_name.rpartition(".")
        setattr(folded.get_submodule(parent), child, nn.Identity())
    return folded


@torch.no_grad()
def _folds(network: nn.Module, pairs: list[tuple[str, str]], images: Tensor, expected: Tensor) -> bool:
    """Whether the logits stay as expected when these pairs are folded."""
    try:
        found = _fold(network, pairs)(images)
    except Exception:  # whatever a network of others does that reads its own norms or computes its weights
        return False
    return ((found - expected).abs().max() / expected.abs().max()).item() <= FOLDING_TOLERANCE


@torch.no_grad()
def foldable_norms(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The convolutions and batch norms of a network that can be merged, by their names.

    A norm that follows no convolution directly stays, as do those of a convolution whose output is used elsewhere, too;
    both are found in wide ResNets.

    Args:
        network: in evaluation mode; takes images, gives logits; unchanged.
        images: (B, 3, H, W) float32, to find the pairs with and to compare the results.

    Raises:
        FoldError: there is none that leaves the logits as they are.
    """
    expected, pairs = network(images), _convolutions_before_norms(network, images)
    if pairs and _folds(network, pairs, images, expected):
        return pairs
    pairs = [pair for pair in pairs if _folds(network, [pair], images, expected)]
    if pairs and _folds(network, pairs, images, expected):
        return pairs
    raise FoldError("no batch norm could be merged with the convolution before it")


def _lower(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert convolutions and linear layers to `dtype`, but the classifier, which stays and takes float32."""
    head = network.get_classifier()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not head:
            module.to(dtype)
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return network


class Inference:
    """A network as it runs fastest where only its logits are wanted.

    Batch norms are folded, convolutions compute in the precision's format and the classifier in float32. What cannot be
    run so runs under autocast as it is; a plain precision asks for that. On a CPU, what is folded is fused, too, where
    torch can do that. The decisions are made at the first call.

    Args:
        network: takes images, gives logits; in evaluation mode. Its weights are copied at the first call.
        precision: device and number format.
        size: images of a batch, for which fused code is made, once; it fills up what is less. None: nothing is fused.
        compiled: let torch.compile fuse what is not fused yet, for batches of that size.
        quiet: do not tell that a network could not be folded.
        learns: the network is trained between calls, and `refresh` follows it: what is fused leaves weights open.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        size: int | None = None,
        compiled: bool = False,
        quiet: bool = True,
        learns: bool = False,
    ):
        self.network, self.precision, self.size, self.compiled = network, precision, size, compiled
        self.quiet, self.learns = quiet, learns
        self.module: Callable[[Tensor], Tensor] | None = None  # what runs
        self.own = network  # the same before it was fused: a copy, where it is folded or lowered
        self.sample: Tensor | None = None
        self.pairs: list[tuple[str, str]] = []
        self.lowered = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (B, C) of images (B, 3, H, W)."""
        if self.module is None:
            self._prepare(images[:8].clone())
        count = len(images)
        # cuDNN, too, looks for the best kernels of every new shape
        one_shape = self.module is not self.own or self.precision.device.type == "cuda"
        if self.size is None or not one_shape:
            return self._run(images)
        if lacking := -len(images) % self.size:
            images = torch.cat([images, images[:1].expand(lacking, -1, -1, -1)])
        # the strides are part of the shape, and concatenation does not keep them
        padded = images.contiguous(memory_format=torch.channels_last)
        return torch.cat([self._run_fused(chunk) for chunk in padded.split(self.size)])[:count]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights of a network that has learned since the last call."""
        if self.pairs and not _folds(self.network, self.pairs, self.sample, self.network(self.sample)):
            self.module = None  # what new statistics allow is found out again
        elif self.own is not self.network:
            for old, new in zip(
                self.own.state_dict().values(), self._built(self.lowered).state_dict().values(), strict=True
            ):
                old.copy_(new)

    def _run_fused(self, images: Tensor) -> Tensor:
        """Logits of images (size, 3, H, W), in memory of their own."""
        if not self.compiled:
            return self._run(images)
        torch.compiler.cudagraph_mark_step_begin()
        return self._run(images).clone()  # the next run of a CUDA graph overwrites what this one gave

    def _run(self, images: Tensor) -> Tensor:
        if self.lowered:
            return self.module(images.to(self.precision.dtype)).float()
        with self.precision.autocast():
            return self.module(images).float()

    def _built(self, lowered: bool) -> nn.Module:
        """The network, folded as decided and in the low format or not: a copy, or itself where it is neither."""
        module = self.network
        if self.pairs:
            module = _fold(module, self.pairs).requires_grad_(False).to(memory_format=torch.channels_last)
        if lowered:
            module = _lower(module if self.pairs else copy.deepcopy(module), self.precision.dtype)
        return module

    def _prepare(self, sample: Tensor) -> None:
        self.sample, self.pairs = sample, []
        if not self.precision.plain:
            try:
                self.pairs = foldable_norms(self.network, sample)
            except FoldError as error:
                if not self.quiet:
                    name = type(getattr(self.network, "deployed", self.network)).__name__
                    print(f"note: {name} runs as it is: {error}", file=sys.stderr)
        self.lowered = self._can_be_lowered()
        self.own = self._built(self.lowered)
        self.module = self._fused() or self.own
        if self.lowered:
            self.precision.spare_slow_operations(self.own)
        if self.compiled and self.module is self.own:
            # CUDA graphs: every batch has this size
            options = {"freezing": not self.learns, "triton.cudagraphs": self.precision.device.type == "cuda"}
            self.module = torch.compile(self.own, dynamic=False, options=options)

    def _fused(self) -> Callable[[Tensor], Tensor] | None:
        """The own network fused; None where that is not wanted or not possible.

        A transformer can be slower so.
        """
        low = self.precision.dtype != torch.float32
        if self.size is None or not self.pairs or self.precision.device.type != "cpu" or low != self.lowered:
            return None
        images = self.sample.repeat(-(-self.size // len(self.sample)), 1, 1, 1)[: self.size].to(self.precision.dtype)
        return cpu_graph.fuse(self.own, images, frozen=not self.learns)

    def _can_be_lowered(self) -> bool:
        """Whether the low format is wanted, and the operations agree with weights in it."""
        if self.precision.plain or self.precision.dtype == torch.float32:
            return False
        try:
            self._built(lowered=True)(self.sample.to(self.precision.dtype))
        except Exception:
            return False  # no classifier of its own, or code that does not bear the format: autocast may know how
        return True
