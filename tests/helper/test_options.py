"""What a command line resolves to."""

import pytest

from distiller_zoo import registry, transform_registry
from distiller_zoo.base import constructor_options
from helper.errors import UserError
from helper.options import student_options, teacher_options


def settings(arguments: str) -> dict:
    return vars(student_options(arguments.split())[0])


@pytest.mark.parametrize(
    ("short", "spelled_out"),
    [
        (
            "--distill ldrld --scale_epochs 24",
            "--distill ldrld --epochs 24 --lr_decay_epochs 15,18,21 --warmup_epochs 2",
        ),
        ("--distill dkd --scale_epochs 24", "--distill dkd --epochs 24 --lr_decay_epochs 15,18,21 --kd_warmup 2"),
        (
            "--epochs 480 --lr_decay_epochs 100,300 --scale_epochs 48 --curriculum_T --decay_loops 20 --ekd",
            "--epochs 48 --lr_decay_epochs 10,30 --curriculum_T --decay_loops 2 --ekd --ekd_warmup 3",
        ),
        ("--distill wkd_f --scale_epochs 16", "--distill wkd_f --epochs 16 --lr_decay_epochs 10,12,14 --decay_epoch 10"
         " --decay_end 16"),
        # what would round to nothing, or to the same epoch, does not
        ("--distill dkd --scale_epochs 2", "--distill dkd --epochs 2 --lr_decay_epochs 1,2 --kd_warmup 1"),
        # a schedule can be lengthened, too
        ("--scale_epochs 480", "--epochs 480 --lr_decay_epochs 300,360,420"),
    ],
)  # fmt: skip
def test_a_scaled_schedule_is_the_run_with_these_numbers(short, spelled_out):
    assert settings(short) == settings(spelled_out)


def test_the_schedule_of_a_teacher_is_scaled():
    opt = teacher_options(["--loss", "evidential", "--scale_epochs", "24"])
    assert (opt.epochs, opt.lr_decay_epochs, opt.flat_warmup) == (24, (15, 18, 21), 1)
    assert opt.loss_options["flat_warmup"] == 1


def test_what_counts_epochs_says_so():
    """By the names that such options have here."""
    builds = [*(method.build for method in registry.values()), *transform_registry.values()]
    for option in (option for build in builds for option in constructor_options(build)):
        looks_so = any(word in option.name for word in ("epoch", "warmup", "loops", "decay_end"))
        assert option.counts_epochs == looks_so, option


@pytest.mark.parametrize("value", ["0", "-3", "1.5"])
def test_bad_scales(value):
    with pytest.raises(UserError, match="--scale_epochs"):
        student_options(["--scale_epochs", value])
