"""Optimizers, and the backward pass that each needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .distributed import average_gradients


class DOT(torch.optim.Optimizer):
    """Distillation-Oriented Trainer: separate momentum for the task's and the distillation's gradients.

    Zhao et al., ICCV 2023, arXiv 2307.08436; follows mdistiller's optimizer:
    v_task <- (m - delta)·v_task + g_task + wd·p, v_kd <- (m + delta)·v_kd + g_kd, p <- p - lr·(v_task + v_kd).
    Both velocities start as the first gradient. A parameter that gets only one of the two gradients has momentum m, and
    weight decay with that one.

    Args:
        params: the parameters.
        lr: learning rate.
        momentum: m.
        delta: difference of the momenta, 0 <= delta <= min(m, 1 - m).
        weight_decay: wd.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, delta: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self.distillation: dict[nn.Parameter, Tensor] = {}

    def set_distillation_aside(self) -> None:
        """Take the gradients that are there for those of the distillation, and clear them."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.distillation = {p: p.grad for p in parameters}
        self.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """Update with the gradients that are there, the task's, and those set aside."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradients = {"task": parameter.grad, "distillation": self.distillation.get(parameter)}
                self._update(parameter, {name: g for name, g in gradients.items() if g is not None}, group)
        self.distillation = {}

    def _update(self, parameter: nn.Parameter, gradients: dict[str, Tensor], group: dict) -> None:
        shift = {"task": -group["delta"], "distillation": group["delta"]} if len(gradients) == 2 else {}
        decayed = "task" if "task" in gradients else "distillation"
        for name, gradient in gradients.items():
            if name == decayed:
                gradient = gradient.add(parameter, alpha=group["weight_decay"])
            velocity = self.state[parameter].get(name)
            if velocity is None:
                velocity = self.state[parameter][name] = gradient.clone()
            else:
                velocity.mul_(group["momentum"] + shift.get(name, 0.0)).add_(gradient)
        for name in gradients:
            parameter.add_(self.state[parameter][name], alpha=-group["lr"])


def decayed_and_other(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters of a module: matrices, and what has one dimension or is called bias."""
    decayed, others = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_other = parameter.dim() <= 1 or name.endswith("bias")
            (others if is_other else decayed).append(parameter)
    return decayed, others


def make_optimizer(
    name: str, module: nn.Module, lr: float, momentum: float, weight_decay: float, delta: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the main training.

    Args:
        name: `sgd` or `dot`, whose weight decay is on all parameters, as in RepDistiller, or `adamw`, whose is not on
            biases and what else has one dimension, as in tiny-transformers.
        module: what is trained.
        lr: learning rate.
        momentum: of sgd and dot.
        weight_decay: see name.
        delta: of dot.
    """
    if name == "dot":
        return DOT(module.parameters(), lr=lr, delta=delta, momentum=momentum, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), lr=lr, fused=True, momentum=momentum, weight_decay=weight_decay)
    decayed, others = decayed_and_other(module)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def backward(
    optimizer: torch.optim.Optimizer, task: Tensor | int, distillation: Tensor | int, scaler: torch.amp.GradScaler
) -> None:
    """Gradients of task + distillation over all processes, kept apart for an optimizer that treats them apart.

    Args:
        optimizer: its old gradients are cleared.
        task: weighted classification term; 0 where there is none.
        distillation: weighted sum of the other terms; 0 where there are none.
        scaler: multiplies the loss first; not for `DOT`, which takes its gradients as they are.
    """
    optimizer.zero_grad(set_to_none=True)
    if isinstance(optimizer, DOT) and isinstance(task, Tensor) and isinstance(distillation, Tensor):
        distillation.backward(retain_graph=True)
        average_gradients(optimizer)
        optimizer.set_distillation_aside()
        task.backward()
    elif isinstance(optimizer, DOT) and isinstance(distillation, Tensor):
        distillation.backward()
        average_gradients(optimizer)
        optimizer.set_distillation_aside()
        return
    else:
        scaler.scale(task + distillation).backward()
    average_gradients(optimizer)
