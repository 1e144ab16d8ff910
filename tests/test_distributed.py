"""Several processes give what one gives: figures, gradients, weights, files; and they end together."""

import functools
import json
import os
import shlex
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from image_trees import make_folder
from torch import Tensor, nn

import helper.errors
import helper.loops
from dataset import ContrastLoader, ContrastSampler, ImageData, MemoryLoader, StrongLoader
from dataset.loader import share_sizes
from distiller_zoo import Shapes, registry, transform_registry
from distiller_zoo.base import Output
from helper import distributed
from helper.errors import RunError, UserError
from helper.loops import StageStep, TrainStep
from helper.optim import DOT, backward
from helper.precision import Precision
from helper.setup import adapt_networks, build_method, feature_shapes
from helper.teacher import evaluate, run_network
from models import model_dict

PROCESSES = 2
CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32, plain=True)
CLASSES, SAMPLES, TESTED = 10, 21, 7
# the shares are of 3 and 2 images, and in the last step of 1 and none
BATCH, STEPS_OF_AN_EPOCH, EPOCHS = 5, 5, 4
SIDE = 16  # pixels
LOOK = ((0.5,) * 3, (0.25,) * 3)
SMALL = {"crd": {"nce_k": 12, "feat_dim": 16}}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


# What both a single process and one of several run


def images(count: int, seed: int) -> ImageData:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return ImageData(pixels, generator.permutation(np.arange(count) % CLASSES))


def train_loader() -> MemoryLoader:
    return MemoryLoader(images(SAMPLES, 0), *LOOK, BATCH, CPU, train=True, seed=3)


@dataclass
class Parts:
    """What trains in float64, and what it needs."""

    step: TrainStep
    teacher: Callable
    loader: MemoryLoader | ContrastLoader | StrongLoader


def build(name: str, *transforms: str, sync_bn: bool = True) -> Parts:
    """A method for a pair of networks and its loader, this process's share of the batches."""
    torch.manual_seed(0)
    student, network = (model_dict[network](num_classes=CLASSES) for network in ("resnet8", "resnet14"))
    loader = train_loader()
    shapes = Shapes(*(feature_shapes(n, loader.side) for n in (student, network)), CLASSES, SAMPLES)
    method = registry[name]
    distiller = build_method(method, shapes, SMALL.get(name, {}), 4.0, {})
    for flag in (*method.build.implies, *transforms):
        distiller.add_transform(transform_registry[flag](shapes))
    student, network = adapt_networks(distiller, student, network, loader)
    step = TrainStep(student, distiller, FP32, sync_bn).double()
    network.double().eval()
    needs = distiller.needs

    @torch.no_grad()
    def teacher(batch):
        output = run_network(network, batch.images, needs, preact=bool(needs.preact))
        strong = network(batch.strong_images) if needs.strong_view else None
        return Output(output.logits, output.features, strong)

    if needs.negatives:
        loader = ContrastLoader(loader, ContrastSampler(loader.labels, needs.negatives, needs.positives))
    loader = StrongLoader(loader) if needs.strong_view else loader
    loader.shard(distributed.rank(), distributed.size())
    return Parts(step, teacher, loader)


def batches(loader, epoch: int):
    """The batches of an epoch in float64."""
    loader.set_epoch(epoch)
    for batch in loader:
        batch.images = batch.images.double()
        if batch.strong_images is not None:
            batch.strong_images = batch.strong_images.double()
        yield batch


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def train(name: str, *transforms: str, dot: bool = False, sync_bn: bool = True) -> dict:
    """Losses, first and last gradients and final state of a short training."""
    parts = build(name, *transforms, sync_bn=sync_bn)
    step = parts.step.train()
    found = {"losses": []}
    optimizer = torch.optim.SGD(step.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    if dot:
        optimizer = DOT(step.parameters(), lr=0.02, momentum=0.9, delta=0.075, weight_decay=5e-4)
    for epoch in range(1, EPOCHS + 1):
        for batch in batches(parts.loader, epoch):
            _, terms = step(batch, parts.teacher(batch), epoch + 20)
            weights = registry[name].weights
            weighted = {t: weights[flag] * terms[t] for flag, t in step.method.weighs.items()}
            task = weighted.pop("cls")
            backward(optimizer, task, sum(weighted.values()), torch.amp.GradScaler("cpu", enabled=False))
            optimizer.step()
            found["losses"].append((task + sum(weighted.values())).detach())
            found.setdefault("first gradients", gradients(step))
        found["last gradients"] = gradients(step)
    return {**found, "state": step.state_dict()}


def one_step(name: str) -> dict:
    """Terms and gradients of the pre-training stages and of the main training, for one batch."""
    parts = build(name)
    step = parts.step
    phases = [*(StageStep(step, stage) for stage in step.method.stages(step.student)), step]
    found = {}
    for number, module in enumerate(phases):
        module.train()
        batch = next(batches(parts.loader, 1))
        seen, terms = module(batch, parts.teacher(batch), 25)
        backward(torch.optim.SGD(step.parameters()), sum(terms.values()), 0, torch.amp.GradScaler(enabled=False))
        found[f"{number} terms"] = {term: value.detach() for term, value in terms.items()}
        found[f"{number} target"] = seen.target
        found[f"{number} gradients"] = gradients(step)
    return found


def figures_of_test_set() -> dict:
    """Figures of a test set, one of them known for some images only."""

    def figures(logits, target):
        values = logits.amax(1)
        return {"some": torch.where(target < 5, values, torch.nan), "none": torch.full_like(values, torch.nan)}

    torch.manual_seed(1)
    loader = MemoryLoader(images(TESTED, 1), *LOOK, 2, CPU, train=False)
    loader.shard(distributed.rank(), distributed.size())
    network = model_dict["resnet8"](num_classes=CLASSES)
    return {name: torch.tensor(value) for name, value in evaluate(network, loader, FP32, figures).items()}


LONG = {
    "kd": functools.partial(train, "kd"),
    "ldrld": functools.partial(train, "ldrld"),
    "crd": functools.partial(train, "crd"),
    "hint": functools.partial(train, "hint"),
    "kd --curriculum_T": functools.partial(train, "kd", "curriculum_T"),
    "kd --optimizer dot": functools.partial(train, "kd", dot=True),
}
SHORT = {f"a step of {name}": functools.partial(one_step, name) for name in registry}
CASES = {**LONG, **SHORT, "figures": figures_of_test_set}


def exchanges() -> dict:
    """What the small exchanges give."""
    number = distributed.rank()
    found = {"shared": distributed.share({"a": [number, None, "x"], "t": torch.full((2,), float(number))})}
    with distributed.first_of_each_machine():
        pass
    distributed.meet()
    try:
        distributed.refuse_differences({"same": 1, "epochs": 5 + number})
    except UserError as error:
        found["refused"] = str(error)
    found["speaks"] = helper.errors._voice["may_speak"]()
    module = nn.BatchNorm1d(3).requires_grad_(False)
    module.weight.fill_(number)
    module.running_mean.fill_(number)
    distributed.average_buffers(module)
    found["buffers"] = module.running_mean.clone()
    distributed.copy_from_main(module)
    found["weight"] = module.weight.clone()
    return found


# Two processes


def native_threads() -> list[str]:
    """Names of this process's threads, of those not made by Python, too; none where the system does not tell."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def work(number: int, port: int, folder: str, cases: dict) -> None:
    """One of several processes: run the cases and save what they give, and the threads that it then still has."""

    def run() -> None:
        torch.save({name: case() for name, case in cases.items()}, Path(folder) / f"{number}.pt")

    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(number)}
    os.environ.update(where, RANK=str(number), WORLD_SIZE=str(PROCESSES))
    Output.float = lambda self: self  # the networks are in float64
    try:
        distributed.together(run)()
        (Path(folder) / f"{number}.json").write_text(json.dumps(native_threads()))
    except Exception:
        (Path(folder) / f"{number}.txt").write_text(traceback.format_exc())
        os._exit(1)


def spawn(folder: Path, cases: dict) -> list[dict]:
    """What each process found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        torch.multiprocessing.spawn(work, (port, str(folder), cases), nprocs=PROCESSES)
    except torch.multiprocessing.ProcessExitedException:
        pytest.fail("\n".join(path.read_text() for path in sorted(folder.glob("*.txt"))))
    left = [json.loads((folder / f"{number}.json").read_text()) for number in range(PROCESSES)]
    found = [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(PROCESSES)]
    return [{**process, "threads": threads} for process, threads in zip(found, left, strict=True)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found in every case."""
    return spawn(tmp_path_factory.mktemp("found"), {**CASES, "exchanges": exchanges})


@pytest.fixture
def expected(monkeypatch):
    """A function that runs a case in this process alone."""
    monkeypatch.setattr(Output, "float", lambda self: self)
    return lambda case: CASES[case]()


def assert_close(found, expected, path=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_close(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{path}/{number}")
    else:
        torch.testing.assert_close(found, expected, **CLOSE, equal_nan=True, msg=lambda m: f"{path}: {m}")


@pytest.mark.parametrize("case", LONG)
def test_twenty_steps_are_those_of_one_process(found, expected, case):
    alone = expected(case)
    assert len(alone["losses"]) == EPOCHS * STEPS_OF_AN_EPOCH
    for process in found:
        assert_close(process[case], alone)


@pytest.mark.parametrize("case", LONG)
def test_all_processes_have_the_same_weights_bit_for_bit(found, case):
    first, second = (process[case]["state"] for process in found)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", SHORT)
def test_a_step_of_every_method_is_that_of_one_process(found, expected, case):
    alone = expected(case)
    for process in found:
        assert_close(process[case], alone)


def test_figures_of_a_shared_test_set(found, expected):
    for process in found:
        torch.testing.assert_close(process["figures"], expected("figures"), rtol=1e-6, atol=0)


def test_small_exchanges(found):
    main, other = (process["exchanges"] for process in found)
    assert main["shared"]["a"] == other["shared"]["a"] == [0, None, "x"]
    assert torch.equal(other["shared"]["t"], torch.zeros(2))
    assert "refused" not in main
    assert "process 1 on " in other["refused"]
    assert "epochs = 6, process 0 has 5" in other["refused"]
    assert sorted([main["speaks"], other["speaks"]]) == [False, True], "one process says how the run ended"
    for process in (main, other):
        assert torch.equal(process["buffers"], torch.full((3,), 0.5))
        assert torch.equal(process["weight"], torch.zeros(3))


def test_connections_end_with_the_run(found):
    """A thread of theirs that lived until the interpreter ends could abort the process."""
    assert not [name for process in found for name in process["threads"] if "gloo" in name]


# Shares of a batch


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_shares_in_order_are_the_batch_of_one_process(samples, batch_size, world, train):
    data = ImageData(np.arange(samples * 12, dtype=np.uint8).reshape(samples, 2, 2, 3), np.arange(samples) % 3)
    loaders = []
    for rank in range(world):
        loader = MemoryLoader(data, *LOOK, batch_size, CPU, train=train, seed=5)
        loader.shard(rank, world)
        loaders.append(loader)
    alone = MemoryLoader(data, *LOOK, batch_size, CPU, train=train, seed=5)
    if not train:  # every process has a part of its own
        parts = [[batch.index for batch in loader] for loader in loaders]
        assert torch.equal(torch.cat([index for part in parts for index in part]), torch.arange(samples))
        return
    assert {len(loader) for loader in loaders} == {len(alone)}
    for whole, *shares in zip(alone, *loaders, strict=True):
        assert [len(share.index) for share in shares] == share_sizes(len(whole.index), world)
        for name in ("target", "index", "view", "entry"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
        counted = [share.images[: len(share.index)] for share in shares]
        assert torch.equal(torch.cat(counted), whole.images)
        assert all(len(share.images) for share in shares)
        assert all(torch.equal(share.whole, whole.index) for share in shares)


def test_shares_have_the_contrast_and_the_strong_views_of_one_process():
    def loader(rank: int, world: int):
        plain = train_loader()
        wrapped = StrongLoader(ContrastLoader(plain, ContrastSampler(plain.labels, 6)))
        wrapped.shard(rank, world)
        return wrapped

    for whole, *shares in zip(loader(0, 1), *(loader(rank, 3) for rank in range(3)), strict=True):
        assert all(torch.equal(share.contrast_index, whole.contrast_index) for share in shares)
        strong = [share.strong_images[: len(share.index)] for share in shares]
        assert torch.equal(torch.cat(strong), whole.strong_images)


# The command line

QUICK = (
    *("--dataset", "shapes100", "--device", "cpu", "--precision", "fp32", "--model_s", "resnet8"),
    *("--epochs", "2", "--lr_decay_epochs", "1", "--learning_rate", "0.01", "--sync_bn"),
)
TIMES = ("seconds", "images_per_second")


@pytest.fixture
def flags(teacher, tmp_path):
    return lambda name: ("--path_t", teacher, *QUICK, "--save_folder", tmp_path / name)


def epochs_done(save: Path) -> int:
    return max((len(path.read_text().splitlines()) for path in save.glob("*/*/metrics.jsonl")), default=0)


def assert_same_figures(save: Path, reference: Path):
    """Check that a finished run has the figures of another one, but for rounding."""
    (found,), (expected,) = ([*folder.glob("student_model/*/metrics.jsonl")] for folder in (save, reference))
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (found, expected)]
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        assert one == {k: one[k] if k in TIMES else pytest.approx(v, rel=1e-3) for k, v in other.items()}
    assert json.loads(found.with_name("summary.json").read_text())["epochs"] == 2
    assert not list(save.rglob("*.tmp"))


def ending_in_epoch(number: int, evaluate: Callable) -> Callable:
    """An evaluation that fails at its call `number`."""
    calls = []

    def ending(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise RunError("stopped")
        return evaluate(*arguments)

    return ending


def own_lines(text: str) -> list[str]:
    """What the run itself says about its end, between torchrun's lines."""
    return [line for line in text.splitlines() if line.startswith(("error: ", "stopped by "))]


def last_worker(launcher: int) -> int:
    """The second of the processes that torchrun has started."""
    return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[1])


def test_one_process_goes_on_with_two(call, launch_together, flags, monkeypatch, tmp_path):
    assert call("train_student", *flags("alone")).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("helper.loops.evaluate", ending_in_epoch(2, helper.loops.evaluate))
        assert call("train_student", *flags("shared")).code == 3
    assert epochs_done(tmp_path / "shared") == 1
    done, other = launch_together("train_student", *flags("shared"), "--resume", small=True)
    assert done.code == other.code == 0, done.err + other.err
    assert "Traceback" not in done.err
    assert not other.out
    assert done.out.count("resuming after epoch 1") == done.out.count("epoch 2/2") == 1
    assert "2 processes share the 64 images of a step; batch norms see the whole batch" in done.out
    assert_same_figures(tmp_path / "shared", tmp_path / "alone")


@pytest.mark.parametrize(
    "network",
    [("deit_ti", "--size_s", 32, "--drop_path", 0, "--distill", "lg"), ("resnet8", "--distill", "kd")],
    ids=lambda words: words[0],
)
def test_changed_images_from_disk_are_those_of_one_process(call, launch_together, make_teacher, tmp_path, network):
    make_folder(tmp_path / "folder", train=7)
    data = ("--dataset", "folder", "--data_folder", tmp_path / "folder", "--memory_budget", 0, "--num_workers", 1)
    changed = ("--rand_augment", 9, "--random_erasing", 0.5, "--warmup_epochs", 0, "--lr_schedule", "step")
    # a small rate: batch norms of 8 values make much of rounding
    rate = ("--batch_size", 8, "--learning_rate", 1e-4)
    common = (*QUICK, "--path_t", make_teacher(classes=3), *data, *changed, *rate, "--model_s", *network)
    assert call("train_student", *common, "--save_folder", tmp_path / "alone").code == 0
    for done in launch_together("train_student", *common, "--save_folder", tmp_path / "shared"):
        assert done.code == 0, done.err
    assert_same_figures(tmp_path / "shared", tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_end_together_and_one_goes_on(stop_when, call, flags, tmp_path, number):
    save, began = tmp_path / "save", []

    def one_epoch() -> bool:
        began[:] = [time.monotonic()]
        return epochs_done(save) == 1

    # one process vanishes, or all are asked to end
    whom = last_worker if number == signal.SIGKILL else int
    ended = stop_when(one_epoch, number, "train_student", *flags("save"), delay=0.1, processes=2, whom=whom)
    assert time.monotonic() - began[0] < 60
    assert ended.code != 0
    (line,) = own_lines(ended.err)
    assert line.startswith("stopped by SIGTERM" if number == signal.SIGTERM else ("error: another process", "stopped"))
    words = shlex.split(line.partition("to go on: ")[2])
    given = list(map(str, flags("save")))
    assert words == ["torchrun", "--standalone", "--nproc_per_node", "2", "train_student.py", *given, "--resume"]
    assert epochs_done(save) == 1
    assert call("train_student", *flags("save"), "--resume").code == 0
    assert call("train_student", *flags("alone")).code == 0
    assert_same_figures(save, tmp_path / "alone")
