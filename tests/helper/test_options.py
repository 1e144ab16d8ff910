"""What a command line resolves to."""

import re

import pytest

from distiller_zoo import registry, transform_registry
from distiller_zoo.base import constructor_options
from helper.errors import UserError
from helper.options import student_options, teacher_options
from helper.recipe import name_suffix, stronger_last


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


def test_transformers_have_a_recipe_of_their_own():
    opt = student_options(["--distill", "lg", "--model_s", "deit_ti"])[0]
    assert (opt.optimizer, opt.lr_schedule, opt.lr_end, opt.weight_decay) == ("adamw", "cosine", 0.01, 0.05)
    assert (opt.learning_rate, opt.batch_size, opt.epochs, opt.warmup_epochs) == (5e-4, 128, 300, 20)
    assert (opt.rand_augment, opt.random_erasing) == (9, 0.25)
    assert not opt.differs
    changed = student_options(
        ["--distill", "lg", "--model_s", "deit_ti", "--lr_schedule", "step", "--optimizer", "sgd", "--momentum", "0.5"]
    )[0]
    assert (changed.optimizer, changed.lr_schedule, changed.momentum) == ("sgd", "step", 0.5)
    assert {"optimizer", "lr_schedule", "momentum"} <= set(changed.differs)


def test_of_a_network_and_a_data_set_the_stronger_recipe_comes_last():
    data, light, whole = {"learning_rate": 0.2}, {"learning_rate": 0.01}, {"learning_rate": 5e-4, "optimizer": "adamw"}
    assert stronger_last(light, data) == (light, data)
    assert stronger_last(whole, data) == (data, whole)


def test_convolutional_networks_keep_theirs():
    opt = student_options(["--model_s", "resnet8"])[0]
    assert (opt.optimizer, opt.lr_schedule, opt.lr_decay_epochs) == ("sgd", "step", (150, 180, 210))
    assert (opt.lr_end, opt.rand_augment, opt.random_erasing) == (None, 0, 0)
    opt = student_options(
        ["--model_s", "resnet8", "--optimizer", "adamw", "--lr_schedule", "cosine", "--learning_rate", "1e-3"]
    )[0]
    assert opt.lr_decay_epochs == ()
    assert opt.differs == {"learning_rate": 1e-3, "optimizer": "adamw", "lr_schedule": "cosine"}


def test_sizes_and_taps_are_part_of_the_name():
    opt = student_options(
        ["--model_s", "timm:resnet18", "--size_s", "48", "--size_t", "24", "--taps_s", "layer1,layer2"]
    )[0]
    assert name_suffix(opt) == "_size_s-48_size_t-24_taps_s-layer1-layer2"


def test_torchvisions_name_of_a_network_that_is_here():
    assert student_options(["--model_s", "torchvision:resnet18"])[0].model_s == "imagenet_ResNet18"
    assert teacher_options(["--model", "torchvision:resnet18"]).model == "imagenet_ResNet18"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--lr_schedule cosine --lr_decay_epochs 3", "--lr_decay_epochs has no effect with --lr_schedule cosine"),
        ("--model_s deit_ti --lr_decay_rate 0.5", "--lr_decay_rate has no effect"),
        ("--model_s deit_ti --momentum 0.5", "--momentum has no effect with --optimizer adamw"),
        ("--lr_end 0.1", "--lr_end has no effect with --lr_schedule step"),
        ("--lr_schedule cosine --lr_end 2", "--lr_end 2.0 must be at least 0 and at most 1"),
        ("--model_s resnet8 --drop_path 0.1", "--drop_path has no effect on resnet8"),
        ("--model_s deit_ti --drop_path 1", "--drop_path 1.0 must be at least 0 and at most 0.9"),
        ("--model_s deit_ti --momentum 0", "--momentum has no effect with --optimizer adamw"),
        ("--lr_end 0", "--lr_end has no effect with --lr_schedule step"),
        ("--rand_augment 11", "--rand_augment 11.0 must be at least 0 and at most 10"),
        ("--rotation 181", "--rotation 181.0 must be at least 0 and at most 180"),
        ("--random_erasing -0.1", "--random_erasing -0.1 must be at least 0 and at most 1"),
        ("--distill ekd -b 0 --ekd_warmup 3", "--ekd_warmup has no effect while -b is 0"),
        ("--distill dkd --ekd --ekd_weight 0 --ekd_soften", "--ekd_soften has no effect while --ekd_weight is 0"),
        ("--distill dkd --dkd_alpha 1", "--dkd_alpha goes with --dkd_beta"),
        ("--distill dkd -a 1 --dkd_alpha 1 --dkd_beta 2", "-a 1.0 has nothing to weigh beside --dkd_alpha; give -a 0"),
        ("--distill dkd --dkd_alpha 1 --dkd_beta -2", "--dkd_beta -2.0 must be at least 0"),
        ("--size_s 0", "--size_s 0 must be at least 1"),
        ("--size_t -3", "--size_t -3 must be at least 1"),
        ("--model_s deit_tiny", "unknown model deit_tiny; did you mean deit_ti"),
        ("--distill attention --model_s deit_ti_distilled", "learns from the teacher's logits: give -a above 0"),
        ("--distill mlkd --model_s deit_ti_distilled", "two views"),
    ],
)
def test_what_has_no_effect_or_no_sense(arguments, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        student_options(arguments.split())


def test_the_line_of_ctkd_for_dkd():
    line = "--distill dkd -r 1 -a 0 -b 1 --dkd_alpha 1 --dkd_beta 2 --curriculum_T"
    opt = student_options(line.split())[0]
    assert (opt.r, opt.a, opt.b) == (1, 1, 2)
    assert opt.differs == {"curriculum_T": "on"}
    opt = student_options(["--distill", "dkd", "-b", "3", "--dkd_alpha", "0.5", "--dkd_beta", "2"])[0]
    assert (opt.a, opt.b) == (1.5, 6)


def test_a_network_that_needs_a_teacher():
    with pytest.raises(UserError, match="learns from a teacher"):
        teacher_options(["--model", "deit_ti_distilled"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (teacher_options, ("--model", "")),
        (teacher_options, ("--dataset", "")),
        (student_options, ("--dataset", "shapes100", "--model_s", "")),
    ],
)
def test_names_that_are_empty_are_not_those_of_the_recipe(options, words):
    """As of a shell's variable that is not set."""
    with pytest.raises(UserError, match=r"unknown (model|data set) ;"):
        options(words)
