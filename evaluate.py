"""Evaluate a checkpoint beyond its accuracy: `python evaluate.py --help` lists the flags.

Accuracies, agreement, calibration error and figures of detection are in percent, likelihoods and divergences in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset import Loader, dataset_dict
from distiller_zoo.evidence import check_log_prior, expected_entropy, mutual_information, uncertainty
from helper import corruptions, cost, metrics, probe
from helper.checkpoint import check_model, digest, load_checkpoint, load_network, nearest, write_json
from helper.errors import UserError, run_command
from helper.flags import OneLineParser, add_data, without_training
from helper.inference import Inference
from helper.options import settle_data
from helper.outliers import FAR_OUT, check_source, far_out, outside_images
from helper.precision import Precision
from helper.results import known_log_prior
from helper.setup import choose_precision, load_data, with_input_of
from helper.teacher import check_teacher_file, teacher_name

Figures = dict[str, Any]
# of Dirichlets, which tell test images from others
UNCERTAINTIES = {
    "vacuity": uncertainty,
    "mutual_information": mutual_information,
    "expected_entropy": expected_entropy,
}
# images -> the file of their figures
NAMES = {"test": "evaluation.json", "train": "evaluation_train.json"}
# flag -> the parts that read it
READ_BY = {
    "path_t": ("fidelity",),
    "log_prior": ("uncertainty", "ood"),
    "ood": ("ood",),
    "probe_epochs": ("probe",),
    "probe_lr": ("probe",),
    "seed": ("ood", "corruptions", "probe"),
}
# part -> the flag without which it has nothing to work on; a log prior may also come from the checkpoint's run
NEEDED = {"fidelity": "path_t", "uncertainty": "log_prior", "probe": "probe"}


@dataclass
class Subject:
    """A network, and all that its figures are made from.

    Attributes:
        network: on the device, frozen, in evaluation mode.
        inference: the same, as it runs for its logits.
        loader: of the images.
        precision: device and number format.
        logits, target: of the images, (N, C) float32 and (N,) labels, on the CPU.
        seed: of noise, patterns and order.
        log_prior: of its Dirichlets; None where none is known.
        logits_t: the teacher's (N, C).
        outside: name and images (M, 3, H, W) uint8 of the set that `--ood` names.
        transfer: runs the linear probe and gives its figures.
    """

    network: nn.Module
    inference: Inference
    loader: Loader
    precision: Precision
    logits: Tensor
    target: Tensor
    seed: int
    log_prior: float | None = None
    logits_t: Tensor | None = None
    outside: tuple[str, Tensor] | None = None
    transfer: Callable[[], Figures] | None = None


def logits_of(inference: Inference, pixels: Tensor, loader: Loader) -> Tensor:
    """Logits (N, C), on the CPU, of images (N, 3, H, W) uint8 that are normalised as the loader does.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    blocks = (block.to(loader.device) for block in pixels.split(loader.batch_size))
    return finite(torch.cat([inference(loader.normalise(block)).cpu() for block in blocks]))


def test_logits(inference: Inference, loader: Loader) -> Tensor:
    """Logits (N, C), on the CPU, of all images of a loader, batch by batch.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    return finite(torch.cat([inference(batch.images).cpu() for batch in loader]))


def finite(logits: Tensor) -> Tensor:
    """The logits.

    Raises:
        UserError: one is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise UserError("the network's logits are not finite: its weights are damaged, or too large for --precision")
    return logits


def _plain(values: Tensor) -> list[float | None]:
    """Numbers as JSON has them, without NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table, its first column flush left, the others right; numbers with two decimals."""

    def text(value: object) -> str:
        return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    cells = [list(header), *([text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def accuracy(subject: Subject) -> Figures:
    """Accuracy, also by class, the most confused pairs, likelihood and calibration."""
    given = subject.logits, subject.target
    diagram = metrics.reliability(*given)
    return {
        "top1": 100 * metrics.topk_accuracy(*given),
        "top5": 100 * metrics.topk_accuracy(*given, k=5),
        "nll": metrics.negative_log_likelihood(*given),
        "ece": 100 * diagram.calibration_error,
        "per_class": _plain(100 * metrics.class_accuracy(*given)),
        "confused": [
            dict(zip(("label", "answer", "count"), pair, strict=True)) for pair in metrics.confused_pairs(*given)
        ],
        "reliability": {
            "count": diagram.count.tolist(),
            "confidence": _plain(100 * diagram.confidence),
            "accuracy": _plain(100 * diagram.accuracy),
        },
    }


def show_accuracy(found: Figures) -> list[str]:
    """Lines for the terminal."""
    known = {label: value for label, value in enumerate(found["per_class"]) if value is not None}
    best, worst = max(known, key=known.get), min(known, key=known.get)
    confused = ", ".join(f"{pair['label']} as {pair['answer']} ({pair['count']})" for pair in found["confused"])
    diagram = found["reliability"]
    bins = len(diagram["count"])
    ranges = [f"{100 * i / bins:.1f} to {100 * (i + 1) / bins:.1f}" for i in range(bins)]
    return [
        f"top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}, NLL {found['nll']:.4f}, ECE {found['ece']:.2f}",
        f"best class {best} ({known[best]:.2f}), worst class {worst} ({known[worst]:.2f})",
        f"most confused: {confused or 'none'}",
        *_table(("confidence", "samples", "mean", "accuracy"), list(zip(ranges, *diagram.values(), strict=True))),
    ]


def fidelity(subject: Subject) -> Figures:
    """How far the network does what its teacher does."""
    return {
        "agreement": 100 * metrics.agreement(subject.logits, subject.logits_t),
        "kl": metrics.mean_kl(subject.logits, subject.logits_t),
        "teacher_top1": 100 * metrics.topk_accuracy(subject.logits_t, subject.target),
    }


def show_fidelity(found: Figures) -> list[str]:
    """Lines for the terminal."""
    return [
        f"same answer as the teacher {found['agreement']:.2f}, KL(teacher ‖ student) {found['kl']:.4f}, "
        f"teacher's top-1 {found['teacher_top1']:.2f}"
    ]


def evidence(subject: Subject) -> Figures:
    """Vacuity of the network's Dirichlets, of right and of wrong answers, in (0, 1].

    Source: Sensoy, Kaplan and Kandemir, Evidential Deep Learning to Quantify Classification Uncertainty, NeurIPS 2018,
    with the evidence and the prior of EKD, see `distiller_zoo.evidence.uncertainty`.
    """
    values, right = uncertainty(subject.logits.double(), subject.log_prior), subject.logits.argmax(1) == subject.target
    groups = values[right], values[~right]
    mean_right, mean_wrong = _plain(torch.stack([group.mean() for group in groups]))
    apart = 100 * metrics.auroc(values[~right], values[right]) if all(map(len, groups)) else None
    return {"log_prior": subject.log_prior, "right": mean_right, "wrong": mean_wrong, "auroc": apart}


def show_evidence(found: Figures) -> list[str]:
    """Lines for the terminal."""
    rows = [("right", found["right"]), ("wrong", found["wrong"])]
    means = ", ".join(f"{name} answers {'-' if value is None else format(value, '.3g')}" for name, value in rows)
    apart = "" if found["auroc"] is None else f"; AUROC of telling wrong from right {found['auroc']:.2f}"
    return [f"vacuity with log prior {found['log_prior']:.4g}: {means}{apart}"]


def outliers(subject: Subject) -> Figures:
    """How well scores tell the test set, the positive class, from images that belong to no class.

    Those of the Dirichlet are negative uncertainties. With exp evidence its vacuity falls as the negative energy rises:
    their figures differ by rounding only.
    """
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "max_softmax": metrics.max_softmax,
        "energy": metrics.negative_energy,
    }
    if subject.log_prior is not None:
        scores |= {
            name: lambda logits, measure=measure: -measure(logits.double(), subject.log_prior)
            for name, measure in UNCERTAINTIES.items()
        }
    # about as many as there are images, so that a useless score has an AUPR of a half
    each = -(-len(subject.target) // len(FAR_OUT))
    sets = [("drawn patterns", far_out(each, subject.loader.side, subject.seed)), *filter(None, [subject.outside])]
    found: Figures = {"in_distribution": len(subject.target), "positive_class": "in_distribution", "sets": []}
    for name, pixels in sets:
        logits = logits_of(subject.inference, pixels, subject.loader)
        figures = {key: metrics.detection(score(subject.logits), score(logits)) for key, score in scores.items()}
        percent = {key: {k: 100 * v for k, v in values.items()} for key, values in figures.items()}
        found["sets"].append({"name": name, "count": len(pixels), "scores": percent})
    return found


def show_outliers(found: Figures) -> list[str]:
    """Lines for the terminal."""
    rows = [
        (outside["name"], outside["count"], score, *values.values())
        for outside in found["sets"]
        for score, values in outside["scores"].items()
    ]
    return [
        f"the {found['in_distribution']} images are the positive class",
        *_table(("outside", "images", "score", "AUROC", "AUPR", "FPR at 95 TPR"), rows),
    ]


def corrupted(subject: Subject) -> Figures:
    """Top-1 accuracy on corrupted test images, by kind and severity."""
    pixels, by_kind = subject.loader.pixels().cpu(), {}
    for kind in corruptions.KINDS:
        changed = (corruptions.corrupt(pixels, kind, s + 1, subject.seed) for s in range(corruptions.SEVERITIES))
        logits = (logits_of(subject.inference, images, subject.loader) for images in changed)
        by_kind[kind] = [100 * metrics.topk_accuracy(found, subject.target) for found in logits]
    means = [sum(values) / len(values) for values in by_kind.values()]
    return {"top1": by_kind, "mean": sum(means) / len(means)}


def show_corrupted(found: Figures) -> list[str]:
    """Lines for the terminal."""
    rows = [(kind, *values, sum(values) / len(values)) for kind, values in found["top1"].items()]
    header = ("top-1 at severity", *map(str, range(1, corruptions.SEVERITIES + 1)), "mean")
    return [*_table(header, rows), f"mean over all {found['mean']:.2f}"]


def expense(subject: Subject) -> Figures:
    """Size and speed, see `cost.measure`."""
    return cost.measure(subject.network, subject.inference, subject.loader.side, subject.precision)


def show_expense(found: Figures) -> list[str]:
    """Lines for the terminal."""
    return [
        f"{found['params']} parameters, {found['flops'] / 1e6:.1f} million FLOPs an image (a multiply-add counts 2)",
        f"latency {found['latency_ms']:.2f} ms at batch 1, {found['images_per_second']:.0f} images/s at batch "
        f"{found['throughput_batch']} on {found['hardware']}, {found['precision']}",
    ]


def transfer(subject: Subject) -> Figures:
    """Linear probe, see `helper.probe`."""
    return subject.transfer()


def show_transfer(found: Figures) -> list[str]:
    """Lines for the terminal."""
    return [
        f"top-1 {found['top1']:.2f} of a linear classifier on {found['source']}: {found['classes']} classes, "
        f"{found['train']} training and {found['test']} test images, {found['epochs']} epochs from {found['lr']:g}"
    ]


# name -> how it is measured, and its lines on the terminal
PARTS: dict[str, tuple[Callable[[Subject], Figures], Callable[[Figures], list[str]]]] = {
    "accuracy": (accuracy, show_accuracy),
    "fidelity": (fidelity, show_fidelity),
    "uncertainty": (evidence, show_evidence),
    "ood": (outliers, show_outliers),
    "corruptions": (corrupted, show_corrupted),
    "cost": (expense, show_expense),
    "probe": (transfer, show_transfer),
}


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="evaluate.py", description="Evaluate a checkpoint.", allow_abbrev=False)
    add = parser.add_argument
    add("--path", required=True, metavar="FILE", help="the checkpoint")
    add("--model", metavar="NAME", help="its network (options.json beside it, or what the folder's name begins with)")
    add("--path_t", metavar="FILE", help="its teacher's checkpoint, for fidelity")
    add("--model_t", metavar="NAME", help="the teacher's network, found likewise")
    add_data(parser)
    add("--split", default="test", choices=list(NAMES), help="images that are run, unaugmented (test)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    precisions = ("auto", "fp32", "bf16", "fp16")
    add("--precision", default="auto", choices=precisions, help="auto: bf16 where the hardware has it")
    add("--parts", metavar="A,B", help=f"of {', '.join(PARTS)} (all that have what they need)")
    add("--log_prior", type=float, metavar="X", help="of the network's Dirichlets (that of its run, where it has one)")
    add("--ood", metavar="NAME", help="a data set or a folder of images to detect, besides drawn patterns")
    add("--probe", metavar="NAME", help="a data set or a folder with train/CLASS/ and val/CLASS/ for a linear probe")
    add("--probe_epochs", type=int, metavar="N", help=f"of the linear probe ({probe.EPOCHS})")
    add("--probe_lr", type=float, metavar="LR", help=f"its initial learning rate ({probe.LEARNING_RATE})")
    add("--seed", type=int, metavar="N", help="of noise, drawn patterns and the probe's order (0)")
    add(
        "--out",
        metavar="FILE",
        help="where all figures go as JSON (evaluation.json or evaluation_train.json beside the checkpoint)",
    )
    add("--quiet", action="store_true", help="print only notes and errors")
    without_training(parser)
    parser.set_defaults(save_folder="save")
    return parser


def _choose_parts(opt: argparse.Namespace, stored_prior: float | None) -> list[str]:
    """The parts of `--parts`, or all that have what they need, in their order; `--probe` adds its own.

    Args:
        opt: as parsed.
        stored_prior: the log prior of the checkpoint's run.

    Raises:
        UserError: an unknown part, one that lacks its flag, or a flag that no part reads.
    """
    stored = {"log_prior": stored_prior}
    lacking = [part for part, flag in NEEDED.items() if getattr(opt, flag) is None and stored.get(flag) is None]
    if opt.parts is None:
        chosen = [part for part in PARTS if part not in lacking]
    else:
        chosen = [word.strip() for word in opt.parts.split(",") if word.strip()]
        chosen += ["probe"] if opt.probe is not None else []
    if not chosen:
        raise UserError(f"--parts names no part; known: {', '.join(PARTS)}")
    for part in chosen:
        if part not in PARTS:
            raise UserError(f"unknown part {part} (--parts); {nearest(part, PARTS)}")
        if part in lacking:
            raise UserError(f"the part {part} needs --{NEEDED[part]}")
    for flag, readers in READ_BY.items():
        if getattr(opt, flag) is not None and not set(readers) & set(chosen):
            raise UserError(f"--{flag} has no effect without the part {' or '.join(readers)}")
    if opt.model_t is not None and opt.path_t is None:
        raise UserError("--model_t has no effect without --path_t")
    return [part for part in PARTS if part in chosen]


def _check_values(opt: argparse.Namespace) -> None:
    """Fill defaults and check ranges.

    Raises:
        UserError: the first value that is wrong.
    """
    if opt.dataset not in dataset_dict:
        raise UserError(f"unknown data set {opt.dataset}; {nearest(opt.dataset, dataset_dict)}")
    opt.seed = 0 if opt.seed is None else opt.seed
    opt.probe_epochs = probe.EPOCHS if opt.probe_epochs is None else opt.probe_epochs
    opt.probe_lr = probe.LEARNING_RATE if opt.probe_lr is None else opt.probe_lr
    if not 0 <= opt.seed < 2**63:
        raise UserError(f"--seed {opt.seed} must be at least 0 and below 2^63")
    if opt.probe_epochs < 1:
        raise UserError(f"--probe_epochs {opt.probe_epochs} must be at least 1")
    if not 0 < opt.probe_lr < math.inf:
        raise UserError(f"--probe_lr {opt.probe_lr} must be above 0")
    if opt.log_prior is not None:
        try:
            check_log_prior("log_prior", opt.log_prior)
        except ValueError as error:
            raise UserError(str(error)) from None
    for flag, source in (("--ood", opt.ood), ("--probe", opt.probe)):
        if source is not None:
            check_source(flag, source)
    if opt.ood == opt.dataset:
        raise UserError(f"--ood {opt.ood} is the data set that is evaluated")


def check_out(path: Path) -> None:
    """Refuse, before any work, what the figures cannot be written to.

    Raises:
        UserError: no .json, a folder, or in a folder that is absent or closed.
    """
    folder = path.absolute().parent
    if path.suffix != ".json":
        raise UserError(f"--out {path} must end in .json")
    if os.path.isdir(path):
        raise UserError(f"--out {path} is a folder")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: its folder is absent or closed; name another file with --out")


def run_facts(path: str) -> tuple[Figures, Figures]:
    """What the folder of a checkpoint tells of its run: options.json and summary.json, empty where there is none.

    Raises:
        UserError: one is damaged.
    """
    found = []
    for name in ("options.json", "summary.json"):
        file = Path(path).absolute().parent / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if os.path.exists(file) else {}
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{file} is damaged; mend it or move it away")
        found.append(content)
    return found[0], found[1]


def network_name(path: str, given: str | None, options: Mapping[str, Any], flag: str) -> str:
    """The architecture of a checkpoint: what the user says, else options.json, else the folder's name.

    Args:
        path: the checkpoint.
        given: the value of `flag`.
        options: of options.json.
        flag: `--model` or `--model_t`.

    Raises:
        UserError: it is unknown, or nothing tells it.
    """
    name = given or options.get("model_s") or options.get("model")
    if name is None:
        try:
            return teacher_name(path)
        except UserError:
            folder = Path(path).absolute().parent.name
            raise UserError(f"the folder '{folder}' does not tell the architecture; name it with {flag}") from None
    name = str(name)  # a foreign options.json may hold anything
    check_model(name, flag)
    return name


def check_file(path: str) -> None:
    """Refuse a path with nothing or a folder at it.

    Raises:
        UserError: it names the path.
    """
    if os.path.isdir(path):
        load_checkpoint(path)
    if not os.path.exists(path):  # unlike Path's, false where the name is too long
        raise UserError(f"--path {path} does not exist")


def freeze(network: nn.Module, precision: Precision) -> tuple[nn.Module, Inference]:
    """A network on the device in evaluation mode, and the same as it runs for its logits."""
    network = network.to(precision.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return network, Inference(network, precision, quiet=False)


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse and check the command line.

    Args:
        arguments: without the script's name.

    Returns:
        The resolved options, with `notes` for the user, and the names of the parts.

    Raises:
        UserError: the first thing that is wrong.
    """
    opt = _parser().parse_args(arguments)
    check_file(opt.path)
    options, summary = run_facts(opt.path)
    stored_prior = known_log_prior(summary)
    parts = _choose_parts(opt, stored_prior)
    opt.log_prior = stored_prior if opt.log_prior is None else opt.log_prior
    opt.dataset = str(options.get("dataset", "cifar100")) if opt.dataset is None else opt.dataset
    _check_values(opt)
    _inherit_look(opt, options)
    settle_data(opt)
    opt.model = network_name(opt.path, opt.model, options, "--model")
    if opt.path_t is not None:
        check_teacher_file(opt.path_t)
        opt.model_t = network_name(opt.path_t, opt.model_t, run_facts(opt.path_t)[0], "--model_t")
    opt.out = Path(opt.out or Path(opt.path).parent / NAMES[opt.split])
    check_out(opt.out)
    return opt, parts


def _inherit_look(opt: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Size and normalisation of the images as the checkpoint's run had them, where they are not given.

    Raises:
        UserError: its options.json is damaged.
    """
    for name, numbers in (("image_size", 2), ("mean", 3), ("std", 3)):
        stored = options.get(name) if opt.dataset == options.get("dataset") else None
        if stored is None or getattr(opt, name) is not None:
            continue
        if not isinstance(stored, list) or [type(v) in (int, float) for v in stored] != [True] * numbers:
            raise UserError(f"options.json beside {opt.path} is damaged ({name}); mend it or move it away")
        setattr(opt, name, tuple(stored))


def prepare_probe(opt: argparse.Namespace, subject: Subject) -> Callable[[], Figures]:
    """Read the data of `--probe`; the result runs the probe."""
    task = probe.read_task(opt.probe, opt.data_folder, subject.loader.side, opt.notes)
    recipe = {"epochs": opt.probe_epochs, "lr": opt.probe_lr}

    def run() -> Figures:
        share = probe.probe_accuracy(subject.network, task, subject.loader, subject.precision, seed=opt.seed, **recipe)
        sizes = {"train": len(task.train.labels), "test": len(task.test.labels)}
        return {"source": opt.probe, "top1": 100 * share, "classes": task.classes, **sizes, **recipe}

    return run


def prepare(opt: argparse.Namespace) -> Subject:
    """Load networks and data, and run the test set through them.

    Args:
        opt: of `read_options`; afterwards device and precision are the resolved ones.

    Raises:
        UserError: the first thing that cannot be had or does not fit.
    """
    precision = choose_precision(opt)
    network = load_network(opt.model, opt.path, opt.classes)
    teacher = None if opt.path_t is None else load_network(opt.model_t, opt.path_t, opt.classes)
    data = load_data(opt, precision)
    loader = data.test if opt.split == "test" else data.train.plain()
    network, inference = freeze(with_input_of(network, loader), precision)
    teacher = teacher and freeze(with_input_of(teacher, loader), precision)[1]
    outside = None if opt.ood is None else outside_images(opt.ood, opt.data_folder, loader.side, opt.notes)
    logits = test_logits(inference, loader)
    subject = Subject(network, inference, loader, precision, logits, loader.labels.cpu(), opt.seed, opt.log_prior)
    subject.logits_t = None if teacher is None else test_logits(teacher, loader)
    subject.outside = None if outside is None else (opt.ood, outside)
    subject.transfer = None if opt.probe is None else prepare_probe(opt, subject)
    return subject


def evaluate(subject: Subject, parts: Sequence[str], quiet: bool) -> Figures:
    """Measure part by part, and print each one's lines unless `quiet`."""
    found = {}
    for part in parts:
        measure, show = PARTS[part]
        if not quiet:
            print(f"\n{part}", flush=True)  # first, since some take minutes
        found[part] = measure(subject)
        if not quiet:
            print(*(f"  {line}" for line in show(found[part])), sep="\n", flush=True)
    return found


def main() -> None:
    """Read the options, load everything, measure, write."""
    opt, parts = read_options(sys.argv[1:])
    subject = prepare(opt)
    for note in opt.notes:
        print(f"note: {note}", file=sys.stderr)
    facts = {name: getattr(opt, name) for name in ("path", "model", "path_t", "model_t", "dataset", "split", "seed")}
    facts |= {"weights_sha256": digest(subject.network.state_dict()), "images": len(subject.target)}
    facts |= {"device": opt.device, "precision": opt.precision, "torch": torch.__version__}
    if not opt.quiet:
        print(f"{opt.model} on {opt.dataset}: {len(subject.target)} {opt.split} images, {opt.device}, {opt.precision}")
    found = evaluate(subject, parts, opt.quiet)
    write_json(opt.out, {**facts, **found})
    if not opt.quiet:
        print(f"\nall figures in {opt.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
