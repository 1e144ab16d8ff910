"""The plain loop computes what the training here computes, and every benchmark of the training runs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loader as loader_benchmark
from benchmarks import losses as losses_benchmark
from benchmarks import plain as plain_loop
from benchmarks import scaling, timing, train_step
from benchmarks.train_step import Pair, Product, Stretch, expected_share, make_pair, memory_loader, plain_copy
from dataset import ImageData, MemoryLoader
from helper.errors import UserError
from helper.precision import Precision

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
BATCH = 8
TINY = "--dataset noise --images 32 --threads 1"
STEPS = f"{TINY} --steps 1 --repeats 1"
SEPARATOR = "=" * 10 + "\n"
# runs the benchmarks one after the other as `python -m benchmarks.NAME` would
RUN_ALL = f"""
import json, runpy, sys
for name, arguments in json.loads(sys.argv[1]).items():
    if name != "plain":
        print({SEPARATOR!r}, end="")
    sys.argv = [name, *arguments]
    try:
        runpy.run_module("benchmarks." + name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("exit code", end.code, flush=True)
"""
# arguments of each benchmark, and what its table must hold
COMMANDS = {
    "plain": (
        f"{TINY} --model_s resnet8 --epochs 2 --batch_size 16 --num_workers 0 --warmup_epochs 0 --lr_decay_epochs 1",
        [r"epoch 1/2  lr 0\.05  train loss \d", r"epoch 2/2  lr 0\.005 .* test acc .* images/s"],
    ),
    "train_step": (
        f"{STEPS} --pairs resnet8-resnet8 --batch 8 --workers 0 --test_images 10 --side 64",
        [
            r"no cache +- ",
            r"cache at epoch 100 +\d+ %",
            r"full cache +100 % .* to [\d.]+ +[\d,]+\n",
            r"plain( +\d+\.\d\d){8}\n",
            r"; ours [\d.]+ s, [\d.]+ % \([\d.]+ to [\d.]+\) with no cache, .* with full cache\n",
            r"peak memory .*: plain [\d,]+ MiB, ours with no cache [\d,]+ MiB, .* full cache [\d,]+ MiB\n",
        ],
    ),
    "loader": (f"{TINY} --batch 8 --batches 2 --repeats 1 --workers 0", [r"\n +0( +\d+){2} +\d+\.\d  .* to "]),
    "limits": (
        f"{STEPS} --pairs resnet8-resnet8 --batch 8 --side 64 --copy 1",
        [r"bfloat16 [\d,]+ GFLOP/s", r"copy of 1 MiB: [\d.]+ GB/s", r"resnet8 -> resnet8( +[\d.,]+){10}\n"],
    ),
    "teacher": (
        f"{TINY} --side 64",
        [r"float32 +\d+\.\d+ +0\.0e\+00", r"bfloat16, folded +\d+\.\d+ +\d\.\de-\d+ +\d+\n"],
    ),
    "gradients": (
        f"{TINY} --steps 3 --repeats 2 --batches 2 --batch 8 --learning_rate 0.001 --pairs resnet8-resnet8",
        [r"\n +3( +[\d.]+ \([\d.]+ to [\d.]+\)){4}\n +6( +[\d.]+ \([\d.]+ to [\d.]+\)){4}\n"],
    ),
    "convolution": (
        "--batch 2 --repeats 1 --threads 1 --side 64",
        [r"512->512 3x3, 4x4( +[\d.]+){3} +[\d.]+ to", "96->96 3x3, 32x32, depthwise, stride 2 "],
    ),
    "scaling": (
        f"{STEPS} --pairs resnet8-resnet8 --batches 8 --classes 10 --ks 3 --seconds 0 --counts 64 --workers 0"
        " --processes 2 --images 128 --files 2",
        [
            *(r"\n +64 +10 +7( +[\d.]+){3}", r"\n +8( +[\d.]+){5}\n", r"\n +8( +[\d.]+){2}\n"),
            *(
                r"\n +64( +[\d.]+){5}\n",
                r"JPEG +0 +\d+\n",
                r"PNG +0 +\d+\n",
                r"resnet8 +2 +1( +[\d.]+){2}\n +2 +peak .* [\d,]+ MiB",
            ),
        ],
    ),
}


def few_images(count: int = 2 * BATCH) -> ImageData:
    draw = np.random.default_rng(3)
    return ImageData(draw.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), draw.integers(100, size=count))


@pytest.fixture
def loader() -> MemoryLoader:
    return memory_loader(few_images(), BATCH, CPU)


@pytest.fixture
def pair(loader: MemoryLoader) -> Pair:
    return make_pair(("resnet8", "resnet8"), loader)


@pytest.fixture
def product(pair: Pair, loader: MemoryLoader) -> Product:
    return Product(pair, loader, Precision(CPU, torch.float32, plain=True))


def test_losses_of_both_loops_are_equal(pair: Pair, product: Product, loader: MemoryLoader) -> None:
    plain = plain_copy(pair, CPU)
    for batch in list(loader):  # the second one sees the weights that the first one has left
        figures = product._train(Stretch(iter([batch]), 1, CPU), product.teacher)
        loss, accuracy = plain.train([(batch.images.contiguous(), batch.target)])
        assert loss == pytest.approx(figures["loss"], rel=1e-4)
        assert accuracy == pytest.approx(figures["train_acc"])


def test_gradients_of_both_loops_are_equal(pair: Pair, product: Product) -> None:
    plain = plain_copy(pair, CPU)
    # in one memory layout, so that rounding puts no activation on the other side of a ReLU's kink
    plain.student.to(memory_format=torch.channels_last)
    batch = next(product.batches)
    product._train(Stretch(iter([batch]), 1, CPU), product.teacher)
    plain.train([(batch.images, batch.target)])
    pairs = zip(product.step.student.named_parameters(), plain.student.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        size = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4 * size, msg=name)


def test_weights_that_both_loops_learn_are_equal(pair: Pair) -> None:
    """Momentum, weight decay, running statistics and a drop of the rate included, over epochs with a short batch."""
    data = few_images(3 * BATCH + 3)
    loader = memory_loader(data, BATCH, CPU)
    product, plain = Product(pair, loader, Precision(CPU, torch.float32)), plain_copy(pair, CPU)
    plain.student.to(memory_format=torch.channels_last)
    start = copy.deepcopy(plain.student.state_dict())
    for epoch, rate in enumerate((0.001, 0.001, 0.0001), start=1):
        for optimizer in (product.phase.optimizer, plain.optimizer):
            optimizer.param_groups[0]["lr"] = rate
        loader.set_epoch(epoch)
        batches = list(loader)
        product._train(Stretch(iter(batches), len(batches), CPU), product.teacher)
        plain.train([(batch.images, batch.target) for batch in batches])
    ours = product.step.student.state_dict()
    for name, theirs in plain.student.state_dict().items():
        moved = (theirs - start[name]).float().norm()
        assert moved > 0
        assert (ours[name] - theirs).float().norm() < 0.005 * moved, name


def test_rate_of_a_slow_format_is_that_of_a_small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    rate = 1e9
    monkeypatch.setattr(timing, "_gemm_rate", lambda dtype, device, side, repeats: sides.append(side) or rate)
    assert timing.gemm_rate(torch.bfloat16, CPU, 2048) == (rate, 512)
    assert max(sides) == 512
    rate = 1e11
    assert timing.gemm_rate(torch.bfloat16, CPU, 2048) == (rate, 2048)
    assert timing.gemm_rate(torch.bfloat16, CPU, 48) == (rate, 48)


def test_what_interrupts_a_product_of_small_matrices_does_not_make_the_format_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait, rate = 0.025, 1e11  # of two threads that share their cores with others
    monkeypatch.setattr(timing, "_gemm_rate", lambda dtype, device, side, _: 2 * side**3 / (2 * side**3 / rate + wait))
    assert timing.gemm_rate(torch.float32, CPU, 2048).side == 2048


def test_images_of_both_loaders_are_equal() -> None:
    data = few_images()
    ours = next(iter(memory_loader(data, len(data.labels), CPU, train=False)))
    for batch, start in zip(plain_loop.test_batches(data, BATCH, 0), range(0, 2 * BATCH, BATCH // 2), strict=True):
        assert torch.equal(batch[0], ours.images[start : start + BATCH // 2])
        assert torch.equal(batch[1], ours.target[start : start + BATCH // 2])


def test_stretch_of_the_plain_loader_has_its_length_each_time() -> None:
    stretch = plain_loop.train_stretch(few_images(), BATCH, workers=0, steps=3)
    assert [[len(target) for _, target in stretch] for _ in range(2)] == [[BATCH] * 3] * 2


def test_cache_holds_its_share_of_the_rows_that_are_met(product: Product) -> None:
    steps = 20
    for share in (0.5, 1.0):
        with product.cached(share, epoch=7, steps=steps):
            product.run(steps)
            assert product.teacher.cache.hit_rate() == pytest.approx(share, abs=0.12)
    assert product.teacher.cache is None


def test_expected_share_is_that_of_independent_draws() -> None:
    assert expected_share(1) == 0
    assert expected_share(2) == pytest.approx(1 / 162)
    views = np.random.default_rng(0).integers(162, size=(4000, 99))
    met = [(row[:-1] == row[-1]).any() for row in views]
    assert np.mean(met) == pytest.approx(expected_share(99), abs=0.03)


def test_parts_of_a_step_are_all_there(product: Product) -> None:
    split = product.split(2)
    assert all(milliseconds > 0 for milliseconds in split.values()), split
    hooks = [*product.step.student._forward_hooks, *product.step.method._forward_hooks]
    assert not hooks


@pytest.fixture(scope="module")
def outputs(environment: dict[str, str], teacher: Path) -> dict[str, str]:
    """What each benchmark prints; one process runs all, since most of its time is torch's import."""
    commands = {
        name: [*arguments.split(), *(["--path_t", str(teacher)] if name not in ("loader", "convolution") else [])]
        for name, (arguments, _) in COMMANDS.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split(SEPARATOR)
    return dict(zip(commands, parts, strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_benchmark_ends_well_and_prints_its_table(name: str, outputs: dict[str, str]) -> None:
    out = outputs[name]
    assert "exit code 0" in out
    for pattern in COMMANDS[name][1]:
        assert re.search(pattern, out), f"{pattern} not in\n{out}"


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (plain_loop.main, "--path_t nowhere/x.pth", "no teacher at nowhere/x.pth"),
        (train_step.main, "--pairs resnet8", "no list of pairs"),
        (train_step.main, "--pairs resnet8-resnet9", "unknown model resnet9"),
        (train_step.main, "--dataset noise --images 7 --workers 0", "fewer than a batch"),
        (train_step.main, "--path_t {teacher}", "the teacher of no pair"),
        (loader_benchmark.main, "--data_folder {empty}", "--dataset noise"),
        (losses_benchmark.main, "--batch 0", "0 is too small"),
        (losses_benchmark.main, "--methods kd,teleport", "no method 'teleport'"),
        (losses_benchmark.main, "--classes 7", "--classes must be from 8"),
        (losses_benchmark.main, "--device tpu", "--device tpu cannot be used"),
        (scaling.main, "--what all", "no table 'all'"),
        (scaling.main, "--counts 63", "--counts must be from 64"),
        (scaling.main, "--processes 2,80", "--processes 80 would share a batch of 64 images"),
    ],
)
def test_bad_input_is_one_line(
    main: Callable, arguments: str, words: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fails)
    with pytest.raises(UserError, match=re.escape(words)):
        main(arguments.format(teacher=teacher, empty=tmp_path).split())
