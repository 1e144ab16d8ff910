"""Every loss once more, computed the way the official implementations do it: what the losses here are timed against.

Each function names the code whose way it follows: the same operations, vectorised or looped as there. Two things are
left to the caller, so that both versions share them: adapters (the functions get what comes out of them, or the layers
themselves) and CRD's indices, which the official loader draws as well.

Shapes: logits (B, C), labels (B,), maps (B, C_i, H_i, W_i), pooled vectors (B, D). Every function returns a scalar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pool_larger(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """RepDistiller's way of bringing two maps to one size, by their heights."""
    s_height, t_height = f_s.shape[2], f_t.shape[2]
    if s_height > t_height:
        f_s = F.adaptive_avg_pool2d(f_s, (t_height, t_height))
    elif s_height < t_height:
        f_t = F.adaptive_avg_pool2d(f_t, (s_height, s_height))
    return f_s, f_t


def kd(z_s: Tensor, z_t: Tensor, alpha: float, T: float) -> Tensor:
    """RepDistiller's `DistillKL`: logits (B, C)."""
    log_s = F.log_softmax(z_s / T, dim=1)
    p_t = F.softmax(z_t / T, dim=1)
    return alpha * F.kl_div(log_s, p_t, reduction="sum") * T**2 / z_s.shape[0]


def ldrld(
    z_s: Tensor, z_t: Tensor, target: Tensor, k: int, T: float, alpha: float, beta: float, ce_weight: float
) -> Tensor:
    """LDRLD's repository: logits (B, C), labels (B,); softmaxes over all classes, masked, for each subset of the top k.

    The mask is subtracted as in DKD's code, from which it descends.
    """
    B = z_s.shape[0]
    top = torch.topk(z_s, k, dim=1).indices

    def masked_kl(mask: Tensor) -> Tensor:
        log_s = F.log_softmax(z_s / T - 1000.0 * mask, dim=1)
        p_t = F.softmax(z_t / T - 1000.0 * mask, dim=1)
        return F.kl_div(log_s, p_t, reduction="sum") * T**2 / B

    def outside(classes: Tensor) -> Tensor:
        return torch.ones_like(z_s).scatter_(1, classes, 0.0)

    local, weight = 0.0, 1.0
    pairs = list(combinations(range(k), 2))
    for i, j in pairs:
        weight = 2.0 * math.exp(-0.05 * (i + j + 2)) / (1.5 + (j - i))
        local = local + weight * masked_kl(outside(top[:, i : j + 1 : j - i]))
    full_weight = weight if k == 2 else 1.0
    local = (local + full_weight * masked_kl(outside(top))) / (len(pairs) + 1)
    rest = masked_kl(torch.zeros_like(z_s).scatter_(1, top, 1.0))
    return ce_weight * F.cross_entropy(z_s, target) + alpha * local + beta * rest


def dkd(z_s: Tensor, z_t: Tensor, target: Tensor, alpha: float, beta: float, T: float) -> Tensor:
    """DKD in mdistiller, `dkd_loss`: logits (B, C), labels (B,)."""
    label = target.reshape(-1).unsqueeze(1)
    own = torch.zeros_like(z_s).scatter_(1, label, 1).bool()
    other = torch.ones_like(z_s).scatter_(1, label, 0).bool()

    def two_points(p: Tensor) -> Tensor:
        return torch.cat([(p * own).sum(dim=1, keepdim=True), (p * other).sum(1, keepdim=True)], dim=1)

    p_s, p_t = (two_points(F.softmax(z / T, dim=1)) for z in (z_s, z_t))
    tckd = F.kl_div(torch.log(p_s), p_t, reduction="sum") * T**2 / target.shape[0]
    rest_t = F.softmax(z_t / T - 1000.0 * own, dim=1)
    rest_s = F.log_softmax(z_s / T - 1000.0 * own, dim=1)
    nckd = F.kl_div(rest_s, rest_t, reduction="sum") * T**2 / target.shape[0]
    return alpha * tckd + beta * nckd


def dist(z_s: Tensor, z_t: Tensor, beta: float, gamma: float, tau: float) -> Tensor:
    """DIST in image_classification_sota: logits (B, C)."""

    def relation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1).unsqueeze(1), b - b.mean(1).unsqueeze(1)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    y_s, y_t = (z_s / tau).softmax(dim=1), (z_t / tau).softmax(dim=1)
    inter = tau**2 * relation(y_s, y_t)
    intra = tau**2 * relation(y_s.transpose(0, 1), y_t.transpose(0, 1))
    return beta * inter + gamma * intra


def wsld(z_s: Tensor, z_t: Tensor, target: Tensor, alpha: float, T: float) -> Tensor:
    """WSLD's repository, without its cross-entropy: logits (B, C), labels (B,)."""
    log_s = F.log_softmax(z_s / T, dim=1)
    p_t = F.softmax(z_t / T, dim=1)
    soft = -torch.sum(p_t * log_s, 1, keepdim=True)
    hard_s, hard_t = F.log_softmax(z_s.detach(), dim=1), F.log_softmax(z_t.detach(), dim=1)
    one_hot = F.one_hot(target, num_classes=z_s.shape[1]).float()
    ce_s, ce_t = (-torch.sum(one_hot * hard, 1, keepdim=True) for hard in (hard_s, hard_t))
    ratio = torch.max(ce_s / (ce_t + 1e-7), torch.zeros(1, device=z_s.device))
    return alpha * T**2 * torch.mean((1 - torch.exp(-ratio)) * soft)


def wkd_logit(
    z_s: Tensor,
    z_t: Tensor,
    target: Tensor,
    cost: Tensor,
    alpha: float,
    beta: float,
    T: float,
    reg: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """WKD's repository: logits (B, C), labels (B,), and costs (C, C), which each sample copies without its label."""
    B, C = z_s.shape
    label = target.view(B, 1)
    own_s = torch.gather(F.log_softmax(z_s, dim=1), 1, label)
    own_t = torch.gather(F.softmax(z_t, dim=1), 1, label)
    target_term = -(own_t * own_s).mean()

    mask = torch.ones_like(z_s).scatter_(1, label, 0).bool()
    p_s, p_t = (F.softmax(z[mask].reshape(B, -1) / T, dim=-1).unsqueeze(-1) for z in (z_s, z_t))
    both = mask.unsqueeze(1) * mask.unsqueeze(2)
    costs = cost.repeat(B, 1, 1)[both].reshape(B, C - 1, C - 1)

    kernel = torch.exp(-costs / reg)
    transposed = kernel.transpose(2, 1)
    u = torch.ones_like(p_s) / (C - 1)
    for _ in range(iterations):
        v = p_t / (torch.bmm(transposed, u) + 1e-8)
        u = p_s / (torch.bmm(kernel, v) + 1e-8)
    flow = u.reshape(B, -1, 1) * (kernel * v.reshape(B, 1, -1))
    return alpha * target_term + beta * (flow * costs).sum(-1).sum(-1).mean()


def ekd(z_s: Tensor, z_t: Tensor, log_prior: float, alpha: float, beta: float) -> Tensor:
    """EKD's cleaned release, first and second order without its cross-entropy: logits (B, C)."""
    prior = math.exp(log_prior)
    a_s, a_t = torch.exp(z_s) + prior, torch.exp(z_t) + prior
    p_s, p_t = a_s / a_s.sum(1, keepdim=True), a_t / a_t.sum(1, keepdim=True)
    first = (p_t * torch.log(p_t / p_s)).sum(1).mean()
    a_s, a_t = torch.log1p(torch.exp(z_s)) + prior, torch.log1p(torch.exp(z_t)) + prior
    s_s, s_t = a_s.sum(1, keepdim=True), a_t.sum(1, keepdim=True)
    totals = (torch.lgamma(s_t) - torch.lgamma(s_s)).squeeze(1)
    parts = torch.lgamma(a_t) - torch.lgamma(a_s)
    moments = (a_t - a_s) * (torch.digamma(a_t) - torch.digamma(s_t))
    return alpha * first + beta * (totals - parts.sum(1) + moments.sum(1)).mean()


def mlkd(weak_s: Tensor, weak_t: Tensor, strong_s: Tensor, strong_t: Tensor, T: float) -> Tensor:
    """MLKD's `KD_ours`, without its cross-entropy: logits (B, C) of a weak and a strong view of the images.

    The official code also computes the correlations of the strong views and adds them to nothing; here they are left
    out.
    """
    B, C = weak_s.shape
    p = F.softmax(weak_t.detach(), dim=1)
    confidence, mass = p.max(dim=1).values.cpu().numpy(), p.sum(dim=0).cpu().numpy()
    samples, classes = (
        torch.from_numpy(x <= np.percentile(x, 50)).to(weak_s.device) for x in (confidence.flatten(), mass.flatten())
    )

    def kl(s: Tensor, t: Tensor, tau: float) -> Tensor:
        log_s, p_t = F.log_softmax(s / tau, dim=1), F.softmax(t / tau, dim=1)
        return F.kl_div(log_s, p_t, reduction="none").sum(1).mean() * tau**2

    def class_level(s: Tensor, t: Tensor, tau: float) -> Tensor:
        p_s, p_t = F.softmax(s / tau, dim=1), F.softmax(t / tau, dim=1)
        return ((torch.mm(p_t.transpose(1, 0), p_t) - torch.mm(p_s.transpose(1, 0), p_s)) ** 2).sum() / C

    def batch_level(s: Tensor, t: Tensor, tau: float) -> Tensor:
        p_s, p_t = F.softmax(s / tau, dim=1), F.softmax(t / tau, dim=1)
        return ((torch.mm(p_t, p_t.transpose(1, 0)) - torch.mm(p_s, p_s.transpose(1, 0))) ** 2).sum() / B

    total = 0.0
    for i, tau in enumerate((T, 3.0, 5.0, 2.0, 6.0)):
        total = total + (kl(weak_s, weak_t, tau) * samples).mean()
        total = total + (kl(strong_s, strong_t, tau) if i < 3 else kl(weak_s, weak_t, tau))
        total = total + (class_level(weak_s, weak_t, tau) * classes).mean()
        total = total + (batch_level(weak_s, weak_t, tau) * samples).mean()
    return total


def hint(f_s: Tensor, f_t: Tensor) -> Tensor:
    """RepDistiller's `HintLoss`: a regressed map and the teacher's, (B, C, H, W)."""
    return nn.MSELoss()(f_s, f_t)


def attention(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """RepDistiller's `Attention`, p = 2: maps of the stages (B, C_i, H_i, W_i)."""

    def at(f: Tensor) -> Tensor:
        return F.normalize(f.pow(2).mean(1).view(f.size(0), -1))

    losses = []
    for pair in zip(g_s, g_t, strict=False):
        f_s, f_t = pool_larger(*pair)
        losses.append((at(f_s) - at(f_t)).pow(2).mean())
    return sum(losses)


def lg(projections: Sequence[nn.Module], g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """tiny-transformers' linear locality guidance: maps of blocks (B, C_i, h, w) behind convolutions, and of stages."""
    losses = []
    for project, *pair in zip(projections, g_s, g_t, strict=True):
        f_s, f_t = pool_larger(project(pair[0]), pair[1])
        losses.append((f_s - f_t).pow(2).mean())
    return sum(losses)


def similarity(f_s: Tensor, f_t: Tensor) -> Tensor:
    """RepDistiller's `Similarity`: last maps (B, C, H, W)."""
    B = f_s.shape[0]
    f_s, f_t = f_s.view(B, -1), f_t.view(B, -1)
    g_s = F.normalize(torch.mm(f_s, torch.t(f_s)))
    g_t = F.normalize(torch.mm(f_t, torch.t(f_t)))
    difference = g_t - g_s
    return ((difference * difference).view(-1, 1).sum(0) / (B * B)).squeeze()


def correlation(f_s: Tensor, f_t: Tensor) -> Tensor:
    """RepDistiller's `Correlation`: embeddings (B, D)."""
    delta = torch.abs(f_s - f_t)
    return torch.mean((delta[:-1] * delta[1:]).sum(1))


def vid(regressor: nn.Module, log_scale: Tensor, f_s: Tensor, f_t: Tensor, eps: float = 1e-5) -> Tensor:
    """RepDistiller's `VIDLoss`: one stage's maps (B, C, H, W), the regressor and its C_t log scales."""
    f_s, f_t = pool_larger(f_s, f_t)
    mean = regressor(f_s)
    variance = torch.log(1.0 + torch.exp(log_scale)) + eps
    variance = variance.view(1, -1, 1, 1)
    return torch.mean(0.5 * ((mean - f_t) ** 2 / variance + torch.log(variance)))


def _distances(e: Tensor, eps: float = 1e-12) -> Tensor:
    square = e.pow(2).sum(dim=1)
    result = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * e @ e.t()).clamp(min=eps).sqrt()
    result = result.clone()
    result[range(len(e)), range(len(e))] = 0
    return result


def rkd(f_s: Tensor, f_t: Tensor, w_d: float = 25, w_a: float = 50) -> Tensor:
    """RepDistiller's `RKDLoss`: pooled vectors (B, D)."""
    student, teacher = f_s.view(f_s.shape[0], -1), f_t.view(f_t.shape[0], -1)

    def angles(e: Tensor) -> Tensor:
        direction = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
        return torch.bmm(direction, direction.transpose(1, 2)).view(-1)

    with torch.no_grad():
        d_t = _distances(teacher)
        d_t = d_t / d_t[d_t > 0].mean()
    d_s = _distances(student)
    d_s = d_s / d_s[d_s > 0].mean()
    distance = F.smooth_l1_loss(d_s, d_t)
    with torch.no_grad():
        a_t = angles(teacher)
    return w_d * distance + w_a * F.smooth_l1_loss(angles(student), a_t)


def pkt(f_s: Tensor, f_t: Tensor, eps: float = 1e-7) -> Tensor:
    """RepDistiller's `PKT`: pooled vectors (B, D)."""

    def unit(f: Tensor) -> Tensor:
        f = f / (torch.sqrt(torch.sum(f**2, dim=1, keepdim=True)) + eps)
        f[f != f] = 0
        return f

    f_s, f_t = unit(f_s), unit(f_t)
    s, t = torch.mm(f_s, f_s.transpose(0, 1)), torch.mm(f_t, f_t.transpose(0, 1))
    s, t = (s + 1.0) / 2.0, (t + 1.0) / 2.0
    s, t = s / torch.sum(s, dim=1, keepdim=True), t / torch.sum(t, dim=1, keepdim=True)
    return torch.mean(t * torch.log((t + eps) / (s + eps)))


def abound(g_s: Sequence[Tensor], g_t: Sequence[Tensor], margin: float = 1.0) -> Tensor:
    """RepDistiller's `ABLoss`: connected maps and the teacher's before their activation (B, C_i, H_i, W_i)."""
    B, n = g_s[0].shape[0], len(g_s)
    losses = []
    for s, t in zip(g_s, g_t, strict=True):
        loss = (s + margin) ** 2 * ((s > -margin) & (t <= 0)).float()
        loss = loss + (s - margin) ** 2 * ((s <= margin) & (t > 0)).float()
        losses.append(torch.abs(loss).sum())
    return sum(2 ** (i - n + 1) * loss / B / 1000 * 3 for i, loss in enumerate(losses))


def factor(f_s: Tensor, f_t: Tensor) -> Tensor:
    """RepDistiller's `FactorTransfer`, p1 = 2, p2 = 1: factors (B, C, H, W)."""

    def collapsed(f: Tensor) -> Tensor:
        return F.normalize(f.pow(2).mean(1).view(f.size(0), -1))

    f_s, f_t = pool_larger(f_s, f_t)
    return (collapsed(f_s) - collapsed(f_t)).abs().mean()


def fsp(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """RepDistiller's `FSP`: maps of stem and stages (B, C_i, H_i, W_i), each channel broadcast against each other."""

    def flows(g: Sequence[Tensor]) -> list[Tensor]:
        result = []
        for i in range(len(g) - 1):
            bottom, top = pool_larger(g[i], g[i + 1])
            B = bottom.shape[0]
            bottom = bottom.view(B, 1, bottom.shape[1], -1)
            top = top.view(B, top.shape[1], 1, -1)
            result.append((bottom * top).mean(-1))
        return result

    return sum((s - t).pow(2).mean() for s, t in zip(flows(g_s), flows(g_t), strict=True))


def nst(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """RepDistiller's `NSTLoss`: maps of the stages (B, C_i, H_i, W_i), each channel broadcast against each other."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    losses = []
    for pair in zip(g_s, g_t, strict=False):
        s, t = (F.normalize(f.view(f.shape[0], f.shape[1], -1), dim=2) for f in pool_larger(*pair))
        losses.append(kernel(t, t).mean().detach() + kernel(s, s).mean() - 2 * kernel(s, t).mean())
    return sum(losses)


def new_bank(memory_s: Tensor, memory_t: Tensor, T: float, momentum: float) -> SimpleNamespace:
    """What `crd` keeps between steps: the embeddings of all images (N, D) and RepDistiller's buffer of constants."""
    constants = torch.tensor([T, -1, -1, momentum], device=memory_s.device)
    return SimpleNamespace(memory_v1=memory_s.clone(), memory_v2=memory_t.clone(), constants=constants)


def _contrast(x: Tensor, n_data: int, eps: float = 1e-7) -> Tensor:
    B, m = x.shape[0], x.size(1) - 1
    p_n = 1 / float(n_data)
    positive, negative = x.select(1, 0), x.narrow(1, 1, m)
    log_hit = torch.div(positive, positive.add(m * p_n + eps)).log_()
    log_miss = torch.div(negative.clone().fill_(m * p_n), negative.add(m * p_n + eps)).log_()
    return (-(log_hit.sum(0) + log_miss.view(-1, 1).sum(0)) / B).squeeze()


def _crd_embed(linear: nn.Linear, f: Tensor) -> Tensor:
    x = linear(f.view(f.shape[0], -1))
    return x.div(x.pow(2).sum(1, keepdim=True).pow(1.0 / 2))


def crd(
    linear_s: nn.Linear,
    linear_t: nn.Linear,
    bank: SimpleNamespace,
    f_s: Tensor,
    f_t: Tensor,
    index: Tensor,
    contrast_index: Tensor,
) -> Tensor:
    """RepDistiller's `CRDLoss`: pooled vectors (B, D), positions (B,), (B, K + 1), whose rows it gathers."""
    v1, v2 = _crd_embed(linear_s, f_s), _crd_embed(linear_t, f_t)
    T, Z_v1, Z_v2, momentum = (bank.constants[i].item() for i in range(4))
    B, D = v1.shape
    (N, _), flat = bank.memory_v1.shape, contrast_index.view(-1)

    rows = torch.index_select(bank.memory_v1, 0, flat).detach().view(B, -1, D)
    out_v2 = torch.exp(torch.div(torch.bmm(rows, v2.view(B, D, 1)), T))
    rows = torch.index_select(bank.memory_v2, 0, flat).detach().view(B, -1, D)
    out_v1 = torch.exp(torch.div(torch.bmm(rows, v1.view(B, D, 1)), T))
    if Z_v1 < 0:
        bank.constants[1] = out_v1.mean() * N
        Z_v1 = bank.constants[1].clone().detach().item()
    if Z_v2 < 0:
        bank.constants[2] = out_v2.mean() * N
        Z_v2 = bank.constants[2].clone().detach().item()
    out_v1, out_v2 = torch.div(out_v1, Z_v1).contiguous(), torch.div(out_v2, Z_v2).contiguous()

    with torch.no_grad():
        for memory, v in ((bank.memory_v1, v1), (bank.memory_v2, v2)):
            stored = torch.index_select(memory, 0, index.view(-1))
            stored.mul_(momentum).add_(torch.mul(v, 1 - momentum))
            memory.index_copy_(0, index, stored.div(stored.pow(2).sum(1, keepdim=True).pow(0.5)))
    return _contrast(out_v1, N) + _contrast(out_v2, N)


def kdsvd(g_s: Sequence[Tensor], g_t: Sequence[Tensor], k: int = 1) -> Tensor:
    """RepDistiller's `KDSVD`: maps of the stages (B, C_i, H_i, W_i)."""

    def svd(f: Tensor, n: int) -> tuple[Tensor, Tensor]:
        _, s, v = torch.svd(f.view(f.shape[0], f.shape[1], -1).transpose(-2, -1))
        return F.normalize(s[:, :n], dim=1), F.normalize(v[:, :, :n], dim=1)

    def rbf(above: Tensor, below: Tensor) -> Tensor:
        return torch.exp(-(above.unsqueeze(2) - below.unsqueeze(1)).pow(2) / 8)

    losses, before = [], None
    for f_s, f_t in zip(g_s, g_t, strict=False):
        s_t, v_t = svd(f_t, k)
        _, v_s = svd(f_s, k + 3)
        cosine = torch.matmul(v_s.transpose(-2, -1), v_t)
        largest = torch.max(torch.abs(cosine), 1, keepdim=True)[0]
        mask = torch.where(torch.eq(largest, torch.abs(cosine)), torch.sign(cosine), torch.zeros_like(cosine))
        v_s, v_t = torch.matmul(v_s, mask) * s_t.unsqueeze(1), v_t * s_t.unsqueeze(1)
        if before is not None:
            difference = (rbf(v_s, before[0]) - rbf(v_t, before[1]).detach()).pow(2)
            difference = torch.where(torch.isfinite(difference), difference, torch.zeros_like(difference))
            losses.append(difference.sum())
        before = v_s, v_t
    return sum(losses) / g_s[0].shape[0]


def ofd(g_s: Sequence[Tensor], g_t: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """OFD in mdistiller: connected maps, the teacher's before their activation (B, C_i, H_i, W_i), (1, C_i, 1, 1)."""
    n, total = len(g_s), 0.0
    for i, (source, target, margin) in enumerate(zip(g_s, g_t, margins, strict=True)):
        target = F.adaptive_avg_pool2d(target, source.shape[-2:]).detach()
        loss = (
            (source - margin) ** 2 * ((source > margin) & (target <= margin)).float()
            + (source - target) ** 2 * ((source > target) & (target > margin) & (target <= 0)).float()
            + (source - target) ** 2 * (target > 0).float()
        )
        total = total + torch.abs(loss).mean(dim=0).sum() / 2 ** (n - i - 1)
    return total


def reviewkd(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """ReviewKD in mdistiller, `hcl_loss`: fused maps and the teacher's (B, C_i, H_i, W_i), the pooled vector as one."""
    result = 0.0
    for f_s, f_t in zip(g_s, g_t, strict=True):
        height = f_s.shape[2]
        loss = F.mse_loss(f_s, f_t, reduction="mean")
        count, total = 1.0, 1.0
        for size in (4, 2, 1):
            if size >= height:
                continue
            pooled_s, pooled_t = (F.adaptive_avg_pool2d(f, (size, size)) for f in (f_s, f_t))
            count /= 2.0
            loss = loss + F.mse_loss(pooled_s, pooled_t, reduction="mean") * count
            total += count
        result = result + loss / total
    return result


def catkd(cam_s: Tensor, cam_t: Tensor, resolution: int) -> Tensor:
    """CAT-KD's repository, not normalised: class activation maps (B, C, H, W)."""
    pool = nn.AdaptiveAvgPool2d((resolution, resolution))
    return F.mse_loss(pool(cam_s), pool(cam_t))


def simkd(f_s: Tensor, f_t: Tensor) -> Tensor:
    """SimKD's repository: the projected map and the teacher's (B, C, H, W)."""
    return nn.MSELoss()(*pool_larger(f_s, f_t))


def srrl(
    linear: nn.Linear, norm: nn.BatchNorm1d, head: tuple[Tensor, Tensor], f_s: Tensor, f_t: Tensor, z_t: Tensor
) -> Tensor:
    """SRRL in SimKD's repository: pooled vectors (B, D), logits (B, C); the connector takes the vector as a 1×1 map."""
    x = F.conv2d(f_s.unsqueeze(-1).unsqueeze(-1), linear.weight[:, :, None, None])
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum, norm.eps)
    connected = F.relu(x).view(f_s.shape[0], -1)
    criterion = nn.MSELoss()
    return criterion(connected, f_t) + criterion(F.linear(connected, *head), z_t)


def wkd_feature(f_s: Tensor, f_t: Tensor, rho: float, eps: float = 1e-5) -> Tensor:
    """WKD's repository, features, one cell: the projected map and the teacher's (B, C, H, W)."""

    def statistics(f: Tensor) -> tuple[Tensor, Tensor]:
        f = f.flatten(2)
        return torch.mean(f, dim=-1), torch.sqrt(torch.var(f, dim=-1) + eps)

    (mean_s, std_s), (mean_t, std_t) = statistics(f_s), statistics(f_t)
    means = F.mse_loss(mean_s, mean_t, reduction="none").sum(1)
    stds = F.mse_loss(std_s, std_t, reduction="none").sum(1)
    return (rho * means + stds).mean()
