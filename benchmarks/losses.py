"""Every loss against a literal version of it, which computes as the official implementation does.

    python -m benchmarks.losses                                         # all, B 64 and 256, C 100 and 1000
    python -m benchmarks.losses --methods ldrld,crd --batch 64,1024 --classes 1000 --threads 1
    python -m benchmarks.losses --methods ldrld --compile               # ours as the flag of train_student.py has it

A run is the loss and its gradients with respect to the student's outputs and the adapters. Losses whose cost depends on
C are run for every C; features have the shapes of a resnet32x4 and a resnet8x4 for images of 32×32. Both versions have
the same adapters, whose time is in both columns. Values and gradients of both are compared first; where they differ,
nothing is timed and the exit code is 1. The ratio is literal / ours, the median over the pairs of runs, and `spread`
its 10th and 90th percentile. Where the C library is glibc, the process keeps freed memory, so that neither version pays
for what the other one left.

Left out of both versions: cross-entropy (LDRLD's own loss includes it), the KL term that feature methods can add, the
drawing of CRD's negatives, and the pre-training of FT's paraphraser. AB and FSP are their pre-training losses.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distiller_zoo import KDSVD, TwoViews, class_similarity, mlkd_terms, registry, transform_registry, transport_cost
from distiller_zoo.base import Distiller, LogitDistiller, LogitPair, Output, Shapes, Step
from helper.errors import UserError, run_command
from helper.flags import OneLineParser
from helper.precision import pick_device
from helper.setup import feature_shapes
from models import model_dict

from . import literal
from .plain import names_of, positive, positives
from .timing import interleave, keep_freed_memory, limited_memory, machine

# largest difference of a value or gradient, relative to its largest absolute entry; CRD's sum of a million logarithms
# close to 0 is off by half of that in either version
TOLERANCE = 2e-4
# ramps are at their full height: warm-ups are over, decays have not begun
EPOCH = 100
FEWEST_CLASSES = 8  # LDRLD compares 7, and needs one besides
# least time of a measurement, which takes several runs where one is shorter
BLOCK_MS = 10.0
HEADER = f"{'method':<12} {'B':>5} {'C':>9} {'literal ms':>11} {'ours ms':>9} {'ratio':>7}  {'spread':<15} {'pairs':>5}"


@dataclass(frozen=True)
class Sizes:
    """What a loss is run on.

    Attributes:
        batch, classes: B and C.
        student, teacher: networks that give the shapes of the features.
        samples, negatives: CRD's N and K.
    """

    batch: int
    classes: int
    student: str = "resnet8x4"
    teacher: str = "resnet32x4"
    samples: int = 50_000
    negatives: int = 16_384


@dataclass(frozen=True)
class Case:
    """Both versions of a loss, on the same tensors.

    Attributes:
        literal, ours: give the scalar loss.
        leaves: the tensors that receive gradients.
    """

    literal: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    leaves: list[Tensor]


def weights(name: str) -> list[float]:
    """The published -a and -b of a method of logits."""
    return [registry[name].weights[flag] for flag in "ab" if flag in registry[name].weights]


def adapted(maps: Sequence[Tensor], adapters: Sequence[nn.Module]) -> list[Tensor]:
    return [adapter(f) for adapter, f in zip(adapters, maps, strict=True)]


# the literal versions, given the method for its adapters, the outputs of student and teacher, and the step
LITERAL: dict[str, Callable[[Distiller, Output, Output, Step], Tensor]] = {
    "abound": lambda m, s, t, x: literal.abound(adapted(s.features[1:-1], m.connectors), t.features[1:-1]),
    "attention": lambda m, s, t, x: literal.attention(s.features[1:-1], t.features[1:-1]),
    "catkd": lambda m, s, t, x: literal.catkd(s.features[-2], t.features[-2], m.loss.resolution),
    "correlation": lambda m, s, t, x: literal.correlation(m.embed_s(s.features[-1]), m.embed_t(t.features[-1])),
    "crd": lambda m, s, t, x: literal.crd(
        m.loss.embed_s.linear, m.loss.embed_t.linear, m.bank, s.features[-1], t.features[-1], x.index, x.contrast_index
    ),
    "dist": lambda m, s, t, x: literal.dist(s.logits, t.logits, *weights("dist"), m.temperature),
    "dkd": lambda m, s, t, x: literal.dkd(s.logits, t.logits, x.target, *weights("dkd"), m.temperature),
    "ekd": lambda m, s, t, x: literal.ekd(s.logits, t.logits, m.transforms[0].log_prior_s.item(), *weights("ekd")),
    "factor": lambda m, s, t, x: literal.factor(
        m.translator(s.features[-2]), torch.no_grad()(m.paraphraser.encoder)(t.features[-2])
    ),
    "fsp": lambda m, s, t, x: literal.fsp(s.features[:-1], t.features[:-1]),
    "hint": lambda m, s, t, x: literal.hint(m.regress(s.features[m.layer]), t.features[m.layer]),
    "kd": lambda m, s, t, x: literal.kd(s.logits, t.logits, *weights("kd"), m.temperature),
    "kdsvd": lambda m, s, t, x: literal.kdsvd(s.features[1:-1], t.features[1:-1]),
    "ldrld": lambda m, s, t, x: literal.ldrld(s.logits, t.logits, x.target, m.loss.k, m.temperature, 1, 1, 1),
    "lg": lambda m, s, t, x: literal.lg(m.project, [s.features[1 + i] for i in m.blocks], t.features[1:-1]),
    "mlkd": lambda m, s, t, x: literal.mlkd(s.logits, t.logits, s.strong_logits, t.strong_logits, m.temperature),
    "nst": lambda m, s, t, x: literal.nst(s.features[1:-1], t.features[1:-1]),
    "ofd": lambda m, s, t, x: literal.ofd(
        adapted(s.features[1:-1], m.loss.connectors), t.features[1:-1], list(m.loss.buffers(recurse=False))
    ),
    "pkt": lambda m, s, t, x: literal.pkt(s.features[-1], t.features[-1]),
    "ReviewKD": lambda m, s, t, x: literal.reviewkd(
        m.fusion(s.features[1:]), [*t.features[1:-1], t.features[-1][:, :, None, None]]
    ),
    "rkd": lambda m, s, t, x: literal.rkd(s.features[-1], t.features[-1]),
    "similarity": lambda m, s, t, x: literal.similarity(s.features[-2], t.features[-2]),
    "simkd": lambda m, s, t, x: literal.simkd(s.features[-2], t.features[-2]),
    "srrl": lambda m, s, t, x: literal.srrl(
        *m.connect.transfer[:2], (m.head_weight, m.head_bias), s.features[-1], t.features[-1], t.logits
    ),
    "vid": lambda m, s, t, x: sum(
        literal.vid(loss.regressor, loss.log_scale, *maps)
        for loss, *maps in zip(m.losses, s.features[1:-1], t.features[1:-1], strict=True)
    ),
    "wkd": lambda m, s, t, x: (
        literal.wkd_logit(s.logits, t.logits, x.target, m.logits.cost, 1.0, m.transport_weight, m.temperature)
        + weights("wkd")[1] * literal.wkd_feature(m.maps.project(s.features[-2]), t.features[-2], m.maps.loss.rho)
    ),
    "wkd_f": lambda m, s, t, x: literal.wkd_feature(m.project(s.features[-2]), t.features[-2], m.loss.rho),
    "wkd_l": lambda m, s, t, x: literal.wkd_logit(
        s.logits, t.logits, x.target, m.cost, *weights("wkd_l"), m.temperature
    ),
    "wsld": lambda m, s, t, x: literal.wsld(s.logits, t.logits, x.target, *weights("wsld"), m.temperature),
}


def own_loss(name: str, m: Distiller, x: Step) -> Tensor:
    """A method's terms without cross-entropy and the KL that features are combined with, at the published weights."""
    if name == "ldrld":
        return m.loss(x.student.logits, x.teacher.logits, x.target)
    if name in ("abound", "fsp"):
        return m.boundaries(x) if name == "abound" else m.flow(x)
    if name == "mlkd":
        views = TwoViews(x.student.logits, x.teacher.logits, x.student.strong_logits, x.teacher.strong_logits)
        return sum(mlkd_terms(views, m.temperature).values())
    if isinstance(m, LogitDistiller) or name == "wkd":
        pair = LogitPair(x.student.logits, x.teacher.logits, x.target, m.temperature, x.epoch)
        terms = {**m.logit_terms(m.transformed(pair)), **m.added_terms(pair), **m.feature_terms(x)}
        return sum(registry[name].weights[flag] * terms[m.weighs[flag]] for flag in "ab" if flag in m.weighs)
    return m.kd(x)


def compiled(case: Case) -> Case:
    """The case with our version compiled, as a part of what `--compile` of train_student.py compiles."""
    torch.compiler.reset()  # each case is new code, and not one more shape of the last one
    return replace(case, ours=torch.compile(case.ours, dynamic=False))


def depends_on_classes(name: str) -> bool:
    return issubclass(registry[name].build, LogitDistiller) or name in ("catkd", "srrl", "wkd")


@functools.cache
def shapes_of(network: str) -> list[torch.Size]:
    return feature_shapes(model_dict[network](), (32, 32))


def make_method(name: str, sizes: Sizes) -> Distiller:
    """The method as training would have it, without a look at the training set."""
    shapes = [shapes_of(network) for network in (sizes.student, sizes.teacher)]
    if name == "catkd":  # its last maps are those of the classes' activations
        shapes = [[*side[:-2], torch.Size([2, sizes.classes, *side[-2][2:]]), side[-1]] for side in shapes]
    options = {"nce_k": sizes.negatives} if name == "crd" else {}
    known = Shapes(*shapes, sizes.classes, sizes.samples)
    m = registry[name].build(known, **options).train()
    m.transforms.extend(transform_registry[flag](known) for flag in m.implies)
    m.temperature = registry[name].temperature
    if name in ("wkd_l", "wkd"):
        (m if name == "wkd_l" else m.logits).cost = transport_cost(class_similarity(torch.randn(sizes.classes, 4, 2)))
    elif type(m).prepare is not Distiller.prepare:
        m.prepare(model_dict[sizes.teacher](num_classes=sizes.classes), ())
    if name == "kdsvd":  # the literal version keeps the signs that the routine gives
        m.loss = KDSVD()
    return m


def make_case(name: str, sizes: Sizes, device: torch.device) -> Case:
    """Both versions of a method's loss for random outputs, the features not negative where they follow a ReLU."""
    torch.manual_seed(0)
    m = make_method(name, sizes).to(device)
    B, C = sizes.batch, sizes.classes

    def output(shapes: Sequence[torch.Size], trained: bool) -> Output:
        signed = m.needs.preact is True or (m.needs.preact == "teacher" and not trained) or name == "catkd"
        features = [torch.randn(B, *shape[1:], device=device) for shape in shapes]
        features = [f.requires_grad_(trained) for f in (features if signed else [f.relu_() for f in features])]
        weak, strong = ((2 * torch.randn(B, C, device=device)).requires_grad_(trained) for _ in range(2))
        return Output(weak, m.needs.select(features), strong)

    s, t = output(m.shapes.student, True), output(m.shapes.teacher, False)
    target = torch.randint(C, (B,), device=device)
    index = torch.randperm(sizes.samples, device=device)[:B]
    contrast = torch.randint(sizes.samples, (B, 1 + sizes.negatives), device=device) if m.needs.negatives else None
    step = Step(s, t, target, index, contrast, EPOCH)
    if name == "crd":
        memory = m.loss.contrast  # each version updates its own
        m.bank = literal.new_bank(memory.memory_v1, memory.memory_v2, memory.temperature, memory.momentum)
    leaves = [s.logits, s.strong_logits, *(f for f in s.features or [] if f is not None), *m.parameters()]
    return Case(lambda: LITERAL[name](m, s, t, step), lambda: own_loss(name, m, step), leaves)


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def difference(case: Case) -> float:
    """Largest difference of both versions' values and gradients, each relative to its largest absolute entry."""

    def results(loss: Tensor) -> list[Tensor]:
        grads = zip(gradients(loss, case.leaves), case.leaves, strict=True)
        return [loss.detach(), *(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in grads)]

    pairs = list(zip(results(case.literal()), results(case.ours()), strict=True))
    if not all(bool(side.isfinite().all()) for pair in pairs for side in pair):
        return math.inf
    sizes = [max(a.abs().max().item(), b.abs().max().item()) for a, b in pairs]
    floor = 1e-5 * max(sizes[1:])  # what is smaller is the rounding of 0: the gradient of a bias before a batch norm
    errors = [(a - b).abs().max().item() for a, b in pairs]
    return max(error / size for error, size in zip(errors, sizes, strict=True) if size > floor)


def all_sizes(name: str, opt: argparse.Namespace) -> Iterator[Sizes]:
    for batch in opt.batch:
        for classes in opt.classes if depends_on_classes(name) else opt.classes[:1]:
            yield Sizes(batch, classes)


def bench(name: str, sizes: Sizes, opt: argparse.Namespace) -> bool:
    """Compare and time both versions of a loss and print the line; returns whether they agree."""
    columns = f"{name:<12} {sizes.batch:>5} {sizes.classes if depends_on_classes(name) else 'features':>9}"
    try:
        case = make_case(name, sizes, opt.device)
        if opt.compile:
            case = compiled(case)
            gradients(case.ours(), case.leaves)  # the compiler's time is nobody's
        start = time.perf_counter()
        error = difference(case)
        slow = time.perf_counter() - start > opt.seconds  # one pair then says it: the noise is of shorter runs
        if error > TOLERANCE:
            print(f"{columns} the versions differ by {error:.1e} of the largest entry", flush=True)
            return False
        literal_run, own_run = (lambda f=f: gradients(f(), case.leaves) for f in (case.literal, case.ours))
        repeats, warmup = (1, 0) if slow else (opt.repeats, 1)
        c = interleave(literal_run, own_run, repeats, warmup, opt.device, opt.seconds, BLOCK_MS)
    except (RuntimeError, MemoryError) as problem:
        if isinstance(problem, RuntimeError) and "memory" not in str(problem):
            raise
        print(f"{columns} too large for the memory that is free here", flush=True)
        return True
    spread = f"{c.low:.2f} to {c.high:.2f}"
    print(f"{columns} {c.a_ms:>11.3f} {c.b_ms:>9.3f} {c.ratio:>7.2f}  {spread:<15} {c.pairs:>5}", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the table.

    Raises:
        SystemExit: with exit code 1, where versions differ.
    """
    parser = OneLineParser(prog="python -m benchmarks.losses", description="Time every loss against a literal one.")
    parser.add_argument(
        "--methods", type=names_of(LITERAL, "method"), default=sorted(LITERAL), metavar="A,B", help="(all)"
    )
    parser.add_argument("--batch", type=positives, default=[64, 256], metavar="N,N", help="batch sizes (64,256)")
    parser.add_argument("--classes", type=positives, default=[100, 1000], metavar="N,N", help="(100,1000)")
    parser.add_argument("--repeats", type=positive, default=100, metavar="N", help="pairs of runs at most (100)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10,
        metavar="S",
        help="for a line, about (10); one pair where a run takes longer",
    )
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--threads", type=positive, metavar="N", help="of torch (its default)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="(cpu)")
    opt = parser.parse_args(arguments)
    opt.device = pick_device(opt.device)
    if few := [count for count in opt.classes if count < FEWEST_CLASSES]:
        raise UserError(f"--classes must be from {FEWEST_CLASSES}, but {few[0]} is not")
    if 1 in opt.batch:
        raise UserError("--batch 1 is too small: adapters normalise over a batch")
    if opt.threads:
        torch.set_num_threads(opt.threads)
    keep_freed_memory()
    print(machine(opt.device), HEADER, sep="\n\n", flush=True)
    with limited_memory():
        agree = [bench(name, sizes, opt) for name in opt.methods for sizes in all_sizes(name, opt)]
    if not all(agree):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(run_command(main))
