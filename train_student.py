"""Distil a teacher checkpoint into a student: `python train_student.py --distill METHOD --help` lists the flags."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dataset import ContrastLoader, ContrastSampler, Data, StrongLoader, TrainLoader
from distiller_zoo import Distiller, Shapes
from distiller_zoo.base import Method
from helper.checkpoint import load_network, new_network
from helper.distributed import share, size, together
from helper.errors import UserError, run_command
from helper.loops import TrainStep
from helper.options import student_options
from helper.recipe import dataset_label, name_suffix
from helper.run import safe_name
from helper.setup import (
    adapt_networks,
    begin,
    build_method,
    choose_precision,
    feature_shapes,
    load_data,
    make_phases,
    measure_teacher,
    new_run,
    open_cache,
    to_device,
    train,
    with_input_of,
)
from helper.teacher import FUSED_FROM, Teacher, check_teacher_file, teacher_name
from models import is_pretrained


def run_name(opt: argparse.Namespace, method: Method, name_t: str) -> str:
    """Folder name of a run: networks, data set, method, weights, whatever is not the recipe's, trial."""
    folder_t = Path(opt.path_t).absolute().parent.name
    known = is_pretrained(opt.path_t) or folder_t in (name_t, f"{name_t}_vanilla")
    teacher = name_t if known else folder_t
    weights = "_".join(f"{flag}-{getattr(opt, flag)}" for flag in method.weights)
    return safe_name(
        f"S-{opt.model_s}_T-{teacher}_{dataset_label(opt)}_{opt.distill}_{weights}{name_suffix(opt)}_{opt.trial}"
    )


def training_loader(data: Data, distiller: Distiller) -> TrainLoader:
    """The training loader with what the method needs besides images and labels."""
    needs, loader = distiller.needs, data.train
    try:
        if needs.negatives:
            loader = ContrastLoader(loader, ContrastSampler(data.train.labels, needs.negatives, needs.positives))
    except ValueError as error:
        raise UserError(str(error)) from None
    return StrongLoader(loader) if needs.strong_view else loader


def teacher_batch(opt: argparse.Namespace, data: Data) -> int | None:
    """Images that the teacher sees at once, for `Teacher`; None where it sees too few batches to be fused for them."""
    many = opt.teacher_cache_fill or opt.epochs * len(data.train) >= FUSED_FROM
    return -(-opt.batch_size // size()) if opt.compile or many else None


def main() -> None:
    """Read the options, build all parts, train."""
    opt, method = student_options(sys.argv[1:])
    precision = choose_precision(opt)
    check_teacher_file(opt.path_t)
    name_t = teacher_name(opt.path_t, opt.model_t)
    network_t = load_network(name_t, opt.path_t, opt.classes, opt.size_t, opt.taps_t)
    run = new_run(opt, "student_model", "student_tensorboards", run_name(opt, method, name_t), opt.model_s)
    data = load_data(opt, precision)

    torch.manual_seed(opt.seed)
    student = new_network(opt.model_s, data.classes, opt.size_s, opt.taps_s, opt.drop_path)
    run.input_size = student.input_size
    seen = [with_input_of(network, data.train) for network in (student, network_t)]
    named = zip(seen, (opt.model_s, name_t), strict=True)
    sizes = [feature_shapes(network, data.train.side, name, data.classes) for network, name in named]
    shapes = Shapes(*sizes, data.classes, data.train.samples)
    distiller = build_method(method, shapes, opt.method_options, opt.kd_T, opt.transforms)
    if distiller.needs.features == "none" and (opt.taps_s or opt.taps_t):
        opt.notes.append(f"--taps_s and --taps_t have no effect with --distill {method.name}, which needs no features")
    student, network_t = adapt_networks(distiller, student, network_t, data.train)
    cache = open_cache(opt, data, distiller.needs, network_t, precision)
    teacher = Teacher(network_t, distiller.needs, precision, teacher_batch(opt, data), opt.compile, cache)
    step = to_device(TrainStep(student, distiller, precision, opt.sync_bn), precision)
    weights = {term: getattr(opt, flag) for flag, term in method.build.weighs.items()}
    for change in distiller.transforms:
        weights = {**change.weights, **weights}
    published = {term: method.weights[flag] for flag, term in method.build.weighs.items()}
    loaders = (training_loader(data, distiller), data)
    phases = make_phases(opt, step, weights, published)

    begin(run, opt, phases, {"model_t": name_t, "teacher_sha256": teacher.digest})
    measure_teacher(run, opt, teacher, data)
    if cache and opt.teacher_cache_fill and not share(run.finished):
        cache.fill(data.train, teacher.logits, opt.quiet)
    train(run, opt, step, phases, teacher, loaders)


if __name__ == "__main__":
    sys.exit(run_command(together(main)))
