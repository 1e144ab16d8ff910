"""Networks of other packages with the interface of this one: timm's, torchvision's, and anyone's own."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork
from .transformer import IMAGENET_MEAN, IMAGENET_STD

PROBE_SIDES = (64, 32, 224)  # of the images with which a network is looked at, where it takes any
PUBLISHED = "IMAGENET1K_V1"  # torchvision's weights that the field's tables start from
PREFIXES = ("timm:", "torchvision:")


class UnknownNetwork(ValueError):
    """A name that its package does not have.

    Args:
        name: as given.
        known: the names that there are, in the same form.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown model {name}")
        self.name, self.known = name, list(known)


class Tap:
    """A hook that keeps the output of a module.

    Args:
        name: of the module.
        kept: where to keep it.
    """

    def __init__(self, name: str, kept: dict[str, Tensor]) -> None:
        self.name, self.kept = name, kept

    def __call__(self, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        """After the module has run."""
        self.kept[self.name] = output


class InputTap(Tap):
    """A hook that keeps the input of a module."""

    def __call__(self, _module: nn.Module, inputs: tuple) -> None:
        """Before the module runs."""
        self.kept[self.name] = inputs[0]


def output_map(x: Any) -> Tensor | None:
    """What a module gave, as a map (B, C, H, W); None if it is none.

    Maps may have their channels last, (B, H, W, C) with H = W. Tokens (B, N, C) are the map of the last n² of them,
    with n as large as possible and up to two tokens before.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if x.dim() == 4:
        return x.permute(0, 3, 1, 2) if x.shape[1] == x.shape[2] != x.shape[3] else x
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        extra = x.shape[1] - side**2
        return x[:, extra:].transpose(1, 2).unflatten(2, (side, side)) if extra <= 2 and side > 1 else None
    return None


def _last_linear(network: nn.Module) -> str | None:
    return next((name for name, m in reversed(list(network.named_modules())) if isinstance(m, nn.Linear)), None)


def _reachable(module: nn.Module, prefix: str = "") -> list[str]:
    """Names of the modules inside, those of containers in place of the containers."""
    names = []
    for name, child in module.named_children():
        inside = isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child)
        names += _reachable(child, f"{prefix}{name}.") if inside else [prefix + name]
    return names


class TappedNetwork(FeatureNetwork):
    """A network of any package; features are the outputs of named modules and the input of its last linear layer.

    The features are [stem, stage 1, ..., stage K, vector]. Where modules are named, these are the stages, and the first
    of them stands for the stem, too. Where not, the last map at each resolution is taken of the modules that the
    network and its containers hold; the first counts as the stem. `preact` changes nothing.

    Args:
        network: takes images (B, 3, H, W), gives logits (B, C) or something with such `logits`.
        taps: names of the modules, as `named_modules` has them.
        input_size, mean, std: see `FeatureNetwork`.

    Raises:
        ValueError: a tap is no module of the network.
    """

    pools_a_map = False

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str] = (),
        input_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.input_size, self.mean, self.std = network, input_size, mean, std
        self.kept: dict[str, Any] = {}
        self.classifier_name = _last_linear(network)
        if self.classifier_name:
            self.get_classifier().register_forward_pre_hook(InputTap("", self.kept))
        modules = dict(network.named_modules())
        for tap in taps:
            if tap not in modules:
                raise UnknownNetwork(f"module {tap}", [name for name in modules if name])
        self.taps = [*taps[:1], *taps] if taps else self._default_taps()
        for name in dict.fromkeys(self.taps):
            modules[name].register_forward_hook(Tap(name, self.kept))

    @torch.no_grad()
    def _default_taps(self) -> list[str]:
        """The last module at each resolution, in the order in which they run."""
        kept: dict[str, Any] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(Tap(name, kept)) for name in _reachable(self.network)
        ]
        training = self.network.training
        self.network.eval()
        self._look()
        self.network.train(training)
        self.kept.clear()
        for hook in hooks:
            hook.remove()
        last: dict[int, str] = {}
        for name, output in kept.items():
            if isinstance(output, Tensor) and output.dim() == 4:
                side = output_map(output).shape[2]
                if 1 < side <= min(last, default=side):  # neither pooled to a vector nor enlarged
                    last[side] = name
        return list(last.values()) if len(last) > 1 else []

    def _look(self) -> None:
        """Run the network on an image of its size, or of the first size that it takes."""
        sides = [self.input_size] if self.input_size else PROBE_SIDES
        for side in sides:
            try:
                self.network(torch.zeros(1, 3, side, side))
                return
            except Exception:
                if side == sides[-1]:
                    raise

    @property
    def deployed(self) -> nn.Module:
        """The package's network, whose names its weights have in files."""
        return self.network

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """As `FeatureNetwork.forward`; the list of features is shorter where the network has no such maps."""
        output = self.network(x)
        logits = getattr(output, "logits", output)
        kept = dict(self.kept)
        self.kept.clear()
        if not is_feat:
            return logits
        maps = [output_map(kept[name]) for name in self.taps]
        vector = kept.get("")
        if vector is None or vector.dim() != 2:
            vector = F.adaptive_avg_pool2d(maps[-1], 1).flatten(1) if maps and maps[-1] is not None else None
        return [feature for feature in (*maps, vector) if feature is not None], logits

    def get_classifier(self) -> nn.Linear:
        """The last linear layer.

        Raises:
            NotImplementedError: there is none.
        """
        if not self.classifier_name:
            raise NotImplementedError(f"{type(self.network).__name__} has no linear layer")
        return self.network.get_submodule(self.classifier_name)

    def get_feat_modules(self) -> nn.ModuleList:
        """The whole network: what computes the features cannot be told from the rest."""
        return nn.ModuleList([self.network])


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(f"timm is not installed ({error}): pip install timm") from None


def _timm(name: str, num_classes: int | None, size: int | None, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    timm = _import_timm()
    if "/" not in name and not timm.is_model(name):
        raise UnknownNetwork(f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    options = {} if num_classes is None else {"num_classes": num_classes}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed = bool(config and config.fixed_input_size)
    if fixed and size:
        options["img_size"] = size
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # of the hub's client, of http libraries, of the network's constructor
        raise ValueError(
            f"timm cannot make {name}{' with its weights' if pretrained else ''} ({_first_line(error)})"
            + ("; offline, name a file of its weights: --path_t FILE --model_t timm:" + name if pretrained else "")
        ) from None
    look = {key: tuple(network.pretrained_cfg.get(key) or default) for key, default in _LOOK.items()}
    return network, {**look, "input_size": size or (network.pretrained_cfg["input_size"][-1] if fixed else None)}


_LOOK = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _torchvision_name(name: str) -> tuple[str, str]:
    """A network of torchvision and the name of its weights, from NAME or NAME.WEIGHTS."""
    from torchvision import models as zoo

    network, _, weights = name.partition(".")
    known = zoo.list_models(module=zoo)
    if network not in known:
        raise UnknownNetwork(f"torchvision:{name}", [f"torchvision:{one}" for one in known])
    names = list(zoo.get_model_weights(network).__members__)
    if weights and weights not in names:
        raise UnknownNetwork(f"torchvision:{name}", [f"torchvision:{network}.{one}" for one in names])
    return network, weights or (PUBLISHED if PUBLISHED in names else names[0])


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """The published weights of a network of torchvision, downloaded where torch's hub folder does not have them.

    Args:
        name: NAME or NAME.WEIGHTS, for instance resnet50.IMAGENET1K_V2; the first weights without.

    Raises:
        ValueError: they are not there and cannot be had.
    """
    from torchvision import models as zoo

    network, weights = _torchvision_name(name)
    entry = zoo.get_model_weights(network)[weights]
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        place = f"{torch.hub.get_dir()}/checkpoints/{entry.url.rpartition('/')[2]}"
        raise ValueError(f"cannot download {entry.url} ({_first_line(error)}); put the file at {place}") from None


def _torchvision(name: str, num_classes: int, size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    from torchvision import models as zoo

    network_name, _ = _torchvision_name(name)
    network = zoo.get_model(network_name, num_classes=num_classes)
    fixed = getattr(network, "image_size", None)
    if fixed and size not in (None, fixed):
        try:
            network = zoo.get_model(network_name, num_classes=num_classes, image_size=size)
        except Exception as error:  # torch's own checks, assertions among them
            raise ValueError(f"torchvision:{name} cannot take images of side {size} ({_first_line(error)})") from None
    return network, {**_LOOK, "input_size": size or fixed}


def _own(name: str, num_classes: int, size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """What MODULE:FUNCTION returns, called with `num_classes`. The user's own code is run, as Python runs it."""
    module_name, _, function_name = name.partition(":")
    try:
        function: Callable = getattr(importlib.import_module(module_name), function_name)
        network = function(num_classes=num_classes)
    except Exception as error:  # it is foreign code
        raise ValueError(f"{name} cannot be called with num_classes={num_classes} ({_first_line(error)})") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returns a {type(network).__name__}, not a torch.nn.Module")
    look = {key: getattr(network, key, None) for key in ("mean", "std")}
    return network, {**look, "input_size": size or getattr(network, "input_size", None)}


def build_external(
    name: str, num_classes: int | None, size: int | None = None, taps: Sequence[str] = (), pretrained: bool = False
) -> FeatureNetwork:
    """A network of another package.

    Args:
        name: timm:NAME, torchvision:NAME or MODULE:FUNCTION.
        num_classes: number of logits; None for that of timm's weights.
        size: side of its images; None for its own, or any.
        taps: see `TappedNetwork`.
        pretrained: with timm's weights; not for the other packages.

    Raises:
        ValueError: the package or the network is not there, or does not give logits.
    """
    source, _, rest = name.partition(":")
    if source == "timm":
        network, facts = _timm(rest, num_classes, size, pretrained)
    elif source == "torchvision":
        network, facts = _torchvision(rest, num_classes, size)
    else:
        network, facts = _own(name, num_classes, size)
    if isinstance(network, FeatureNetwork):
        network.input_size = facts["input_size"]
        return network
    try:
        return TappedNetwork(network, taps, **facts)
    except UnknownNetwork:
        raise
    except Exception as error:  # the network's own, for images of a size that it does not take
        side = facts["input_size"] or ", ".join(map(str, PROBE_SIDES))
        raise ValueError(
            f"{name} fails on images of side {side} ({_first_line(error)}); give it a size of its own with --size_s, "
            "--size_t or, in train_teacher.py, --size"
        ) from None
