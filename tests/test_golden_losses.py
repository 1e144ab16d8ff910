"""Every loss against the numbers of its official implementation.

`$GOLDEN` (default: tests/golden) names a folder whose `losses/METHOD__CASE.npz` hold inputs, outputs and gradients.
"""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crd import ContrastLoss, CRDLoss
from distiller_zoo import (
    DIST,
    DKD,
    FSP,
    LDRLD,
    OFD,
    PKT,
    ABLoss,
    Attention,
    CATLoss,
    Correlation,
    CurriculumTemperature,
    DistillKL,
    FactorTransfer,
    HintLoss,
    NSTLoss,
    Projector,
    RKDLoss,
    Shapes,
    Similarity,
    Step,
    TwoViews,
    VIDLoss,
    WSLDLoss,
    batch_correlation,
    class_correlation,
    compare_vectors,
    dkd_terms,
    feat_loss,
    guidance_loss,
    hcl,
    hierarchical_context_loss,
    margins,
    mlkd_terms,
    registry,
    reversal_strength,
    right_singular_vectors,
    sort_logits,
    standardise,
    transform_registry,
    weighted_soft_labels,
)
from distiller_zoo.base import LogitPair, Output
from distiller_zoo.evidence import (
    dirichlet_kl,
    evidential_cross_entropy,
    expected_cross_entropy,
    expected_logits,
    second_order,
)
from distiller_zoo.ramps import warm_up
from distiller_zoo.spatial import match_size

GOLDEN = Path(os.environ.get("GOLDEN", Path(__file__).parent / "golden"))
ARCHIVES = sorted((GOLDEN / "losses").glob("*.npz"))


class Case:
    """An archive: parameters as attributes of `p`, inputs as tensors that can be differentiated where it matters."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        self.p = SimpleNamespace(**json.loads(str(arrays.pop("params"))))
        arrays.pop("meta")
        self.inputs = {key[3:]: torch.from_numpy(arrays.pop(key)) for key in list(arrays) if key.startswith("in_")}
        # what the official function gives for float32 inputs in float64 only shows the rounding of its result
        self.expected = {key: value for key, value in arrays.items() if "64_" not in key}
        for name, value in self.inputs.items():
            if {f"grad_{name}", f"fd_grad_{name}"} & set(self.expected):
                value.requires_grad_(True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.inputs[name]

    def features(self, side: str) -> list[torch.Tensor]:
        """The inputs feat_SIDE_0, feat_SIDE_1, ..."""
        return [self[f"feat_{side}_{i}"] for i in range(sum(name.startswith(f"feat_{side}_") for name in self.inputs))]

    def parameters(self) -> dict[str, torch.Tensor]:
        """The inputs param_NAME, as a module names them."""
        return {
            name.removeprefix("param_").replace("__", "."): value
            for name, value in self.inputs.items()
            if name.startswith("param_")
        }


Found = dict[str, torch.Tensor]


def with_terms(losses: list[torch.Tensor]) -> Found:
    """A list of losses as `out_loss`, their sum, and `out_term_i`."""
    return {"out_loss": sum(losses), **{f"out_term_{i}": loss for i, loss in enumerate(losses)}}


def check_kd(c: Case) -> Found:
    return {"out_loss": DistillKL(c.p.T)(c["logits_s"], c["logits_t"])}


def check_ldrld(c: Case) -> Found:
    s, t, target = c["logits_s"], c["logits_t"], c["target"]
    loss = LDRLD(c.p.alpha, c.p.beta, c.p.k, c.p.T, c.p.r)
    local, rest = loss.terms(s, t, c.p.T)
    ce = torch.nn.functional.cross_entropy(s, target)
    return {"out_loss": loss(s, t, target), "out_ldrld": local, "out_rntk": rest, "out_ce": ce}


def check_fitnet(c: Case) -> Found:
    return {"out_loss": HintLoss()(c["feat_s_0"], c["feat_t_0"])}


def check_crd_contrast(c: Case) -> Found:
    s_loss, t_loss = (ContrastLoss(c.p.n_data)(c[f"feat_{side}_scores"]) for side in "st")
    return {"out_s_loss": s_loss, "out_t_loss": t_loss, "out_loss": s_loss + t_loss}


def check_crd_full(c: Case) -> Found:
    loss = CRDLoss(c.p).to(c["memory_v1"].dtype)
    memory = loss.contrast
    memory.memory_v1.copy_(c["memory_v1"])
    memory.memory_v2.copy_(c["memory_v2"])
    names = [(side, kind) for side in "st" for kind in ("weight", "bias")]
    parameters = {f"embed_{side}.linear.{kind}": c[f"param_embed_{side}_{kind}"] for side, kind in names}
    found = {}
    for step in (0, 1):
        args = [c[f"{name}_{step}"] for name in ("feat_s", "feat_t", "idx", "contrast_idx")]
        found[f"out_loss_step{step}"] = torch.func.functional_call(loss, parameters, tuple(args))
        found[f"aux_memory_v1_step{step}"] = memory.memory_v1.clone()
        found[f"aux_memory_v2_step{step}"] = memory.memory_v2.clone()
    found |= {"aux_Z_v1": memory.Z_v1, "aux_Z_v2": memory.Z_v2}
    return {**found, "out_loss": found["out_loss_step0"] + found["out_loss_step1"]}


def check_at(c: Case) -> Found:
    return with_terms(Attention(c.p.p)(c.features("s"), c.features("t")))


def check_sp(c: Case) -> Found:
    return with_terms(Similarity()(c.features("s"), c.features("t")))


def check_cc(c: Case) -> Found:
    return {"out_loss": Correlation()(c["feat_s_0"], c["feat_t_0"])}


def check_vid(c: Case) -> Found:
    loss = VIDLoss(c.p.c_in, c.p.c_mid, c.p.c_target, c.p.init_pred_var, c.p.eps)
    return {"out_loss": torch.func.functional_call(loss, c.parameters(), (c["feat_s_0"], c["feat_t_0"]))}


def check_rkd(c: Case) -> Found:
    loss, pair = RKDLoss(c.p.w_d, c.p.w_a), (c["feat_s_0"], c["feat_t_0"])
    distance, angle = loss.terms(*pair)
    return {"out_loss": loss(*pair), "out_distance": distance, "out_angle": angle}


def check_pkt(c: Case) -> Found:
    return {"out_loss": PKT()(c["feat_s_0"], c["feat_t_0"])}


def check_nst(c: Case) -> Found:
    return with_terms(NSTLoss()(c.features("s"), c.features("t")))


def check_kdsvd(c: Case) -> Found:
    # the value depends on the signs of the vectors, which no two SVD routines need share: take the archive's
    found, values = {"s": [], "t": []}, []
    for side, extra in (("s", 3), ("t", 0)):
        for i, f in enumerate(c.features(side)):
            vectors, value = right_singular_vectors(f, c.p.k + extra)
            official = torch.from_numpy(c.expected[f"aux_v_{side}_{i}"])
            found[side].append(vectors * (vectors.detach() * official).sum(1, keepdim=True).sign())
            values += [value] if side == "t" else []
    used = {f"aux_v_{side}_{i}": v for side in "st" for i, v in enumerate(found[side])}
    return with_terms(compare_vectors(found["s"], found["t"], values)) | used


def decoupled(c: Case, s: torch.Tensor, t: torch.Tensor, T: float | torch.Tensor) -> Found:
    """DKD and its terms of the given logits and temperature."""
    tckd, nckd = dkd_terms(s, t, c["target"], T)
    return {"out_loss": DKD()(s, t, c["target"], c.p.alpha, c.p.beta, T), "out_tckd": tckd, "out_nckd": nckd}


def check_dkd(c: Case) -> Found:
    return decoupled(c, c["logits_s"], c["logits_t"], c.p.T)


def check_wsld(c: Case) -> Found:
    args = c["logits_s"], c["logits_t"], c["target"]
    unweighted = weighted_soft_labels(*args, c.p.T)
    return {"out_loss": WSLDLoss(c.p.T, c.p.alpha)(*args), "out_wsld_unweighted": unweighted}


def check_dist(c: Case) -> Found:
    loss = DIST(c.p.beta, c.p.gamma, c.p.tau)
    inter, intra = loss.terms(c["logits_s"], c["logits_t"], c.p.tau)
    return {"out_loss": loss(c["logits_s"], c["logits_t"]), "out_inter": inter, "out_intra": intra}


def check_sort_transform(c: Case) -> Found:
    return {"out_sorted": sort_logits(c["logits_t"], c["target"])}


def check_sort_kd(c: Case) -> Found:
    teacher = sort_logits(c["logits_t"], c["target"])
    return {"out_sorted": teacher, "out_loss": DistillKL(c.p.T)(c["logits_s"], teacher)}


def check_sort_dkd(c: Case) -> Found:
    teacher = sort_logits(c["logits_t"], c["target"])
    return {"out_sorted": teacher, **decoupled(c, c["logits_s"], teacher, c.p.T)}


def check_lskd_normalize(c: Case) -> Found:
    return {"out_normalized": standardise(c["logits_t"])}


def check_lskd_kd(c: Case) -> Found:
    return {"out_loss": DistillKL(c.p.T)(standardise(c["logits_s"]), standardise(c["logits_t"]))}


def check_lskd_dkd(c: Case) -> Found:
    return decoupled(c, standardise(c["logits_s"]), standardise(c["logits_t"]), c.p.T)


def check_ctkd(c: Case) -> Found:
    strength, shapes = getattr(c.p, "lambda"), Shapes([], [], c["logits_s"].shape[1], 1)
    # a curriculum that is over from the start has its last factor
    module = CurriculumTemperature(shapes, c.p.t_start, c.p.t_end, decay_loops=0, decay_min=strength)
    pair = LogitPair(c["logits_s"], c["logits_t"], c["target"] if "target" in c.inputs else None, 4.0)
    T = torch.func.functional_call(module, {"theta": c["global_T"]}, (pair,)).temperature
    found = decoupled(c, pair.student, pair.teacher, T) if c.p.loss == "dkd" else {}
    return {"out_temp": T.reshape(1), "out_loss": DistillKL(T)(pair.student, pair.teacher)} | found


def check_ctkd_schedule(c: Case) -> Found:
    shape = int(c.p.decay_loops), c.p.decay_max, c.p.decay_min, c.p.kind
    values = [reversal_strength(epoch, *shape) for epoch in c["epochs"].tolist()]
    return {"out_values": torch.tensor(values, dtype=torch.float64)}


def check_mlkd_terms(c: Case) -> Found:
    p_s, p_t = ((c[f"logits_{side}"] / c.p.T).softmax(dim=1) for side in "st")
    kd = DistillKL(c.p.T)(c["logits_s"], c["logits_t"])
    cc, bc = class_correlation(p_s, p_t), batch_correlation(p_s, p_t)
    return {"out_loss": kd + cc + bc, "out_kd": kd, "out_cc": cc, "out_bc": bc}


def check_mlkd(c: Case) -> Found:
    views = TwoViews(*(c[f"logits_{name}"] for name in ("s_weak", "t_weak", "s_strong", "t_strong")))
    for_kd = TwoViews(*map(standardise, views)) if c.p.logit_stand else None
    found = {f"out_{name}": c.p.kd_weight * term for name, term in mlkd_terms(views, c.p.T, for_kd=for_kd).items()}
    ce = sum(torch.nn.functional.cross_entropy(z, c["target"]) for z in (views.weak_s, views.strong_s))
    found["out_ce"] = c.p.ce_weight * ce
    return {**found, "out_loss": sum(found.values())}


def check_lskd_mlkd(c: Case) -> Found:
    return check_mlkd(c)  # its archives have logit_stand


def check_ekd_dirichlet_kl(c: Case) -> Found:
    return {"out_loss": dirichlet_kl(c["alpha_s"], c["alpha_t"])}


def check_ekd_evidential_ce(c: Case) -> Found:
    log_prior = c.p.lamb if c.p.impl == "evidentialCE" else math.log(c.p.prior)
    return {"out_loss": evidential_cross_entropy(c["logits_s"], c["target"], log_prior)}


def expected_pair(c: Case, log_prior: float) -> list[torch.Tensor]:
    """Logits at T of the expected probabilities of student and teacher."""
    return [expected_logits(c[f"logits_{side}"], c.p.T, log_prior) for side in "st"]


def check_ekd_kd(c: Case) -> Found:
    loss = DistillKL(c.p.T)(*expected_pair(c, c.p.lamb))
    return {"out_loss": loss, "out_kd_no_T2": loss / c.p.T**2}


def check_ekd_expected_kd_ce(c: Case) -> Found:
    s, t = (z / c.p.T for z in expected_pair(c, math.log(c.p.prior)))
    projected = c.p.T**2 * torch.nn.functional.cross_entropy(s, t.softmax(1))
    loss = expected_cross_entropy(c["logits_s"], c["logits_t"], c.p.T, math.log(c.p.prior))
    return {"out_loss": loss, "out_projected_ce": projected}


def check_ekd_dkd(c: Case) -> Found:
    s, t = expected_pair(c, c.p.lamb)
    tckd, nckd = dkd_terms(s, t, c["target"], c.p.T)
    loss = DKD()(s, t, c["target"], c.p.alpha, c.p.beta, c.p.T)
    return {"out_loss": loss, "out_tckd": tckd / c.p.T**2, "out_nckd": nckd / c.p.T**2}


def check_ekd_full_dkd(c: Case) -> Found:
    s, t, target, prior = c["logits_s"], c["logits_t"], c["target"], c.p.lamb
    ce = c.p.ce_weight * evidential_cross_entropy(s, target, prior)
    kd = c.p.kd_weight * DKD()(*expected_pair(c, prior), target, c.p.alpha, c.p.beta, c.p.T)
    second = second_order(s, t, prior, prior, "log_softplus")
    ekd = c.p.ekd_weight * warm_up(c.p.epoch, c.p.warmup + 10) * second
    return {"out_ce": ce, "out_kd": kd, "out_ekd": ekd, "out_loss": ce + kd + ekd}


def check_ekd_class(c: Case) -> Found:
    loss = second_order(c["logits_s"], c["logits_t"], c.p.lamb, c.p.lamb, "log_softplus")
    return {"out_loss": warm_up(c.p.epoch, c.p.warmup) * loss}


def check_ekd_vit(c: Case) -> Found:
    s, t = c["logits_s"], c["logits_t"]
    shapes = Shapes([], [], s.shape[1], len(s))
    method = registry["ekd"].build(shapes).double()
    method.temperature = c.p.T
    options = {"ekd_evidence": "log_softplus", "ekd_soften": True, "ekd_warmup": 0}
    evidential = transform_registry["ekd"](shapes, **options).double()
    for log_prior in (evidential.log_prior_s, evidential.log_prior_t):
        log_prior.fill_(c.p.lamb)  # in double precision, which a number given to the constructor does not have
    method.add_transform(evidential)
    terms = method(Step(Output(s), Output(t), torch.zeros(len(s), dtype=torch.long), None))
    loss = c.p.kd_weight * terms["first"] + c.p.ekd_weight * terms["second"]
    return {"out_kd": terms["first"], "out_ekd": terms["second"], "out_loss": loss}


def check_ekd_mlkd_terms(c: Case) -> Found:
    raw, prior = (c["logits_s"], c["logits_t"]), math.log(c.p.prior)
    used = [standardise(z) for z in raw] if c.p.logit_stand else raw
    kd = DistillKL(c.p.T)(*(expected_logits(z, c.p.T, prior) for z in used))
    # never standardised
    p_s, p_t = ((expected_logits(z, c.p.T, prior) / c.p.T).softmax(1) for z in raw)
    cc, bc = class_correlation(p_s, p_t), batch_correlation(p_s, p_t)
    return {"out_kd": kd, "out_cc": cc, "out_bc": bc, "out_loss": kd + cc + bc}


def check_reviewkd_hcl(c: Case) -> Found:
    g_s, g_t = c.features("s"), c.features("t")
    terms = [hierarchical_context_loss(s, t) for s, t in zip(g_s, g_t, strict=True)]
    return {**with_terms(terms), "out_loss": hcl(g_s, g_t)}


def check_ofd(c: Case) -> Found:
    g_s, g_t = c.features("s"), c.features("t")
    channels = [[feature.shape[1] for feature in side] for side in (g_s, g_t)]
    loss = OFD(*channels, c.p.kernel_size).to(g_s[0].dtype)
    found, parameters = {}, {}
    for i in range(len(g_s)):
        margin = margins(c[f"teacher_bn_weight_{i}"], c[f"teacher_bn_bias_{i}"])
        found[f"aux_margin_{i}"] = margin
        parameters[f"margin{i}"] = margin.view(1, -1, 1, 1)
        for layer, kind in [(0, "conv_weight"), (1, "bn_weight"), (1, "bn_bias")]:
            parameters[f"connectors.{i}.{layer}.{kind.split('_')[1]}"] = c[f"param_{kind}_{i}"]
    return {"out_loss": torch.func.functional_call(loss, parameters, (g_s, g_t)), **found}


def check_ofd_feat(c: Case) -> Found:
    return {"out_loss": feat_loss(c["feat_s_0"], c["feat_t_0"], c["margin"])}


def check_ab(c: Case) -> Found:
    s, t = c.features("s"), c.features("t")
    return with_terms(ABLoss(len(s), c.p.margin)(s, t))


def check_ft(c: Case) -> Found:
    return {"out_loss": FactorTransfer(c.p.p1, c.p.p2)(c["feat_s_0"], c["feat_t_0"])}


def check_fsp(c: Case) -> Found:
    s, t = c.features("s"), c.features("t")
    return with_terms(FSP([f.shape for f in s], [f.shape for f in t])(s, t))


def check_simkd(c: Case) -> Found:
    s, t = match_size(c["feat_s_0"], c["feat_t_0"])
    projector = Projector(c.p.s_n, c.p.t_n, c.p.factor).to(s.dtype)
    projected = torch.func.functional_call(projector, c.parameters(), (s,))
    pred = torch.nn.functional.linear(projected.mean((2, 3)), c["cls_weight"], c["cls_bias"])
    loss = torch.nn.functional.mse_loss(projected, t)
    return {"out_trans_s": projected, "out_trans_t": t, "out_pred": pred, "out_loss": loss}


def check_catkd(c: Case) -> Found:
    loss = CATLoss(c.p.resolution, c.p.normalize, c.p.binarize)
    return {"out_loss": c.p.weight * loss(c["feat_s_0"], c["feat_t_0"])}


def check_vit_inter(c: Case) -> Found:
    return {"out_loss": guidance_loss(c["feat_s_0"], c["feat_t_0"], c.p.transform)}


def check_vit_logit(c: Case) -> Found:
    # tiny-transformers averages over the classes, too
    return {"out_loss": DistillKL(c.p.T)(c["logits_s"], c["logits_t"]) / c["logits_s"].shape[1]}


# a check of METHOD's archives is called check_METHOD
CHECKS = {name.removeprefix("check_"): check for name, check in globals().copy().items() if name.startswith("check_")}


def gradient(key: str, found: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    """`grad_INPUT` is the gradient of out_loss, `grad_TERM_INPUT` that of out_TERM."""
    for term in ["loss", *(name[4:] for name in found if name.startswith("out_"))]:
        name = key.removeprefix("fd_").removeprefix("grad_").removeprefix(f"{term}_")
        if name in case.inputs and key in (f"fd_grad_{name}", f"grad_{name}", f"grad_{term}_{name}"):
            value = case[name]
            grad = torch.autograd.grad(found[f"out_{term}"], value, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(value) if grad is None else grad
    raise AssertionError(f"{key}: the test cannot tell what this is the gradient of")


def test_there_are_archives():
    assert ARCHIVES, f"no archives in {GOLDEN / 'losses'}"


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_archive(path: Path):
    method = path.stem.split("__")[0]
    assert method in CHECKS, f"no check for archives of {method}"
    case = Case(path)
    relative, absolute = {"float64": (1e-9, 1e-12), "float32": (1e-4, 1e-6)}[case.p.dtype]
    found = CHECKS[method](case)
    assert case.expected, "the archive expects nothing"
    for key, reference in case.expected.items():
        value = gradient(key, found, case) if key.startswith(("grad_", "fd_grad_")) else found[key]
        assert value.shape == reference.shape, key
        if key.startswith("fd_"):
            relative = 1e-6  # a finite difference
        error = np.abs(value.detach().numpy() - reference).max(initial=0)
        assert error <= relative * np.abs(reference).max(initial=0) + absolute, f"{key} is off by {error}"
