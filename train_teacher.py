"""Train one network, a teacher or a plain student, from labels: `python train_teacher.py --help` lists the flags."""

from __future__ import annotations

import argparse
import sys

import torch

from distiller_zoo import Shapes, label_losses
from helper.checkpoint import new_network
from helper.distributed import together
from helper.errors import UserError, run_command
from helper.loops import TrainStep
from helper.options import teacher_options
from helper.recipe import dataset_label, name_suffix
from helper.run import safe_name
from helper.setup import (
    begin,
    choose_precision,
    feature_shapes,
    load_data,
    make_phases,
    new_run,
    to_device,
    train,
    with_input_of,
)


def run_name(opt: argparse.Namespace) -> str:
    """The folder of a run, below `models/` of the save folder, from its resolved options."""
    name = f"{opt.model}_{dataset_label(opt)}_lr_{opt.learning_rate}_decay_{opt.weight_decay}"
    return safe_name(f"{name}{name_suffix(opt, 'learning_rate', 'weight_decay')}_trial_{opt.trial}")


def main() -> None:
    """Read the options, build all parts, train."""
    opt = teacher_options(sys.argv[1:])
    precision = choose_precision(opt)
    run = new_run(opt, "models", "tensorboard", run_name(opt), opt.model)
    data = load_data(opt, precision)

    torch.manual_seed(opt.seed)
    network = new_network(opt.model, data.classes, opt.size, drop_path=opt.drop_path)
    run.input_size = network.input_size
    network = with_input_of(network, data.train)
    shapes = feature_shapes(network, data.train.side, opt.model, data.classes)
    try:
        method = label_losses[opt.loss](Shapes(shapes, shapes, data.classes, data.train.samples), **opt.loss_options)
    except ValueError as error:
        raise UserError(str(error)) from None
    step = to_device(TrainStep(network, method, precision, opt.sync_bn), precision)

    phases = make_phases(opt, step, method.weights, {})
    begin(run, opt, phases, {})
    train(run, opt, step, phases, None, (data.train, data))


if __name__ == "__main__":
    sys.exit(run_command(together(main)))
