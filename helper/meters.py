"""Running figures of an epoch, kept on the device and read seldom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .distributed import share, total
from .errors import RunError


class TrainMeter:
    """Loss terms and accuracy of a training epoch. Of several processes, each has those of the whole batches.

    Every step costs a few small device operations; nothing waits for the device until `read`.

    Args:
        names: the terms' names, in the order in which `update` gets them.
        steps: number of steps in the epoch.
        device: where to keep the figures.
    """

    def __init__(self, names: Sequence[str], steps: int, device: torch.device):
        self.names = list(names)
        self.values = torch.zeros(steps, len(self.names), device=device)
        self.sizes: list[int] = []
        self.correct: Tensor | None = None
        self.checked = 0

    def update(self, logits: Tensor | None, target: Tensor, values: Sequence[Tensor]) -> None:
        """Take in a step: logits (B, C), None where the student did not run, labels (B,), one scalar per name."""
        self.values[len(self.sizes)] = torch.stack([value.detach() for value in values])
        self.sizes.append(len(target))
        if logits is not None:
            correct = (logits.detach().argmax(1) == target).sum()
            self.correct = correct if self.correct is None else self.correct + correct

    def read(self, epoch: int) -> dict[str, float]:
        """Means over the samples so far, by name, and `train_acc` in percent where the student ran.

        Args:
            epoch: for the message.

        Raises:
            RunError: a value of a step since the last read is not finite; names the term, the epoch and the step.
        """
        done = len(self.sizes)
        values = self.values[:done].cpu()
        bad = ~values[self.checked :].isfinite()
        if bad.any():
            step, term = (int(n) for n in bad.nonzero()[0])
            raise RunError(
                f"the term '{self.names[term]}' is {values[self.checked + step, term].item()} in epoch {epoch}, step "
                f"{self.checked + step + 1}; the last checkpoints are kept: lower the learning rate or its weight"
            )
        self.checked = done
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        means = (sizes @ values.double() / sizes.sum()).tolist()
        accuracy = {} if self.correct is None else {"train_acc": 100 * self.correct.item() / sizes.sum().item()}
        return {**dict(zip(self.names, means, strict=True)), **accuracy}


class TestMeter:
    """Loss and top-1 and top-5 accuracy over a test set, of which every process may have a part.

    Args:
        device: where to keep the figures.
    """

    __test__ = False  # not a test class, whatever its name makes pytest think

    def __init__(self, device: torch.device):
        self.totals = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self.samples = 0
        self.further: dict[str, Tensor] = {}  # sum and number of what is not NaN

    def update(self, logits: Tensor, target: Tensor, further: Mapping[str, Tensor] | None = None) -> None:
        """Take in a batch of float32 logits (B, C), labels (B,) and further figures (B,), NaN where there is none."""
        for name, values in (further or {}).items():
            found = torch.stack([values.nansum(), (~values.isnan()).sum()]).to(self.totals)
            self.further[name] = self.further.get(name, 0) + found
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        self.totals += torch.stack([loss, top[:, 0].sum(), top.any(1).sum()]).to(self.totals)
        self.samples += len(target)

    def read(self) -> dict[str, float]:
        """`test_loss`, `test_acc` and `test_acc_top5` in percent, and the means of the further figures.

        Raises:
            RunError: another process is gone.
        """
        # a process with no part of the test set does not know the names
        names = share(list(self.further))
        sums = [self.further.get(name, torch.zeros_like(self.totals[:2])) for name in names]
        totals, samples, *sums = total(torch.cat([self.totals, self.totals.new_tensor([self.samples]), *sums])).split(
            [3, 1, *[2] * len(names)]
        )
        loss, top1, top5 = (totals / samples).tolist()
        means = {name: (part[0] / part[1]).item() for name, part in zip(names, sums, strict=True)}
        known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        return {"test_acc": 100 * top1, "test_acc_top5": 100 * top5, "test_loss": loss, **known}
