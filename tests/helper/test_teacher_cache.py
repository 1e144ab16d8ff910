"""The cache of the teacher's logits: what it serves, what it refuses to believe, who may share it."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset.locks
from dataset import ImageData, MemoryLoader
from dataset.loader import VIEWS
from distiller_zoo import Needs
from helper import teacher_cache
from helper.errors import RunError, UserError
from helper.precision import Precision
from helper.teacher import Teacher, evaluate, measured_accuracy
from helper.teacher_cache import LogitCache, cache_facts
from models import model_dict

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FP32 = Precision(CPU, torch.float32)
SAMPLES, CLASSES, BATCH = 22, 10, 8
LONGEST_WAIT = 120  # seconds for a process, on a machine that does other things, too
spawned = multiprocessing.get_context("spawn")


def make_loader(seed=0, shift=0, mean=0.5):
    rng = np.random.Generator(np.random.PCG64(0))
    images = rng.integers(0, 200, (SAMPLES, 32, 32, 3), dtype=np.uint8) + np.uint8(shift)
    data = ImageData(images, np.arange(SAMPLES) % CLASSES)
    return MemoryLoader(data, (mean,) * 3, (0.25,) * 3, BATCH, CPU, train=True, seed=seed)


def make_network(seed=0):
    torch.manual_seed(seed)
    return model_dict["resnet8"](num_classes=CLASSES).eval()


class Counting:
    """Gives logits that tell images apart, and counts the images that it was asked for."""

    def __init__(self, scale=1.0):
        self.images, self.scale = 0, scale

    def __call__(self, images):
        self.images += len(images)
        return self.scale * images.flatten(1)[:, 40 : 40 + CLASSES].float()


def make_facts(loader=None, network=None, precision=FP32):
    return cache_facts(network or make_network(), loader or make_loader(), precision)


def open_cache(root, *arguments, **facts):
    return LogitCache(root, make_facts(*arguments, **facts), SAMPLES, VIEWS, CLASSES)


def serve_epoch(cache, loader, epoch, logits):
    loader.set_epoch(epoch)
    return torch.cat([cache.serve(batch, logits) for batch in loader])


def test_the_second_run_of_a_trial_finds_everything(tmp_path):
    loader, logits = make_loader(seed=3), Counting()
    first, cache = [], open_cache(tmp_path)
    for epoch in (1, 2, 3):
        first.append(serve_epoch(cache, loader, epoch, logits))
    asked = logits.images
    assert 2 * SAMPLES < asked <= 3 * SAMPLES
    again = open_cache(tmp_path)
    for epoch, expected in zip((1, 2, 3), first, strict=True):
        assert torch.equal(serve_epoch(again, make_loader(seed=3), epoch, logits), expected)
        assert again.hit_rate() == 1.0
    assert logits.images == asked


def test_values_are_those_of_the_images_rounded_to_half(tmp_path):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    for _ in range(2):
        for batch in loader:
            assert torch.equal(cache.serve(batch, logits), logits(batch.images).half().float())


def test_only_missing_rows_are_computed(tmp_path):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    index = torch.arange(6)
    cache.serve(loader.batch(index[:4], index[:4] * 7), logits)
    served = cache.serve(loader.batch(index, index * 7), logits)
    assert logits.images == 6
    assert torch.equal(served, Counting()(loader.batch(index, index * 7).images).half().float())
    assert cache.hit_rate() == pytest.approx(4 / 10)


def test_what_batches_miss_is_computed_together(tmp_path):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    batches = list(loader)
    for batch in batches:  # all but three rows of each
        cache.serve(replace(batch, images=batch.images[3:], entry=batch.entry[3:]), logits)
    calls = []

    def counted(images):
        calls.append(len(images))
        return logits(images)

    served = cache.serve_together(batches, counted)
    assert [len(batch.entry) for batch in batches] == [8, 8, 6]
    assert calls == [8, 1]  # no more than a batch has
    for batch, some in zip(batches, served, strict=True):
        assert torch.equal(some, logits(batch.images).half().float())
    assert cache.hit_rate() == pytest.approx((SAMPLES - 9) / (2 * SAMPLES - 9))


class Copies:
    """In place of `fetch`, a GPU: a copy has its values only once it has been waited for."""

    def __init__(self):
        self.begun = self.waited = 0

    def __call__(self, values):
        self.begun, copy = self.begun + 1, torch.full_like(values, torch.nan)

        def arrived():
            self.waited += 1
            return copy.copy_(values)

        return arrived


def test_what_a_gpu_computes_is_written_by_the_next_call(tmp_path, monkeypatch):
    copies, cache, loader, logits = Copies(), open_cache(tmp_path), make_loader(), Counting()
    monkeypatch.setattr(teacher_cache, "fetch", copies)
    for number, batch in enumerate(loader):
        served = cache.serve_together([batch], logits)
        assert torch.equal(served[0], Counting()(batch.images).half().float())
        assert (copies.begun, copies.waited) == (number + 1, number)
    for _ in range(2):
        cache.write_pending()
    assert (copies.begun, copies.waited) == (3, 3)
    asked = logits.images
    for batch in make_loader():
        assert torch.equal(open_cache(tmp_path).serve(batch, logits), Counting()(batch.images).half().float())
    assert logits.images == asked


@pytest.mark.parametrize("last", [1, 3])
def test_what_is_computed_last_is_written_where_an_epoch_ends_early_too(tmp_path, last):
    teacher = Teacher(make_network(), Needs(), FP32, cache=open_cache(tmp_path))
    for number, _ in enumerate(teacher.answers(make_loader()), start=1):
        if number == last:
            break
    again = open_cache(tmp_path)
    for batch in make_loader():
        again.serve(batch, None)  # the whole group of batches was computed
    assert again.hit_rate() == 1


def test_a_share_without_images_among_batches(tmp_path):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    first, second, third = loader
    empty = replace(second, images=second.images[:1], entry=second.entry[:0])
    served = cache.serve_together([first, empty, third], logits)
    assert [len(some) for some in served] == [8, 0, 6]
    assert torch.equal(served[2], Counting()(third.images).half().float())


def test_two_processes_see_each_others_rows(tmp_path):
    one, other, logits = open_cache(tmp_path), open_cache(tmp_path), Counting()
    serve_epoch(one, make_loader(), 1, logits)
    serve_epoch(other, make_loader(), 1, logits)
    assert logits.images == SAMPLES


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, SAMPLES - 1), st.integers(0, VIEWS - 1)), min_size=1, max_size=12, unique=True)
)
def test_any_order_of_views(tmp_path_factory, pairs):
    index, view = torch.tensor(pairs).T
    batch = make_loader().batch(index, view)
    cache, logits = open_cache(tmp_path_factory.mktemp("cache")), Counting()
    for _ in range(2):
        assert torch.equal(cache.serve(batch, logits), Counting()(batch.images).half().float())
    assert logits.images == len(pairs)


@pytest.mark.parametrize(
    "other",
    [
        {"network": make_network(1)},
        {"loader": make_loader(shift=1)},
        {"loader": make_loader(mean=0.4)},
        {"precision": Precision(CPU, torch.bfloat16)},
        {"precision": replace(FP32, plain=True)},
    ],
    ids=["teacher", "images", "normalisation", "precision", "folding"],
)
def test_what_changes_a_row_changes_the_key(tmp_path, other):
    assert open_cache(tmp_path, **other).folder != open_cache(tmp_path).folder
    assert open_cache(tmp_path, make_loader(seed=9)).folder == open_cache(tmp_path).folder


@pytest.fixture
def tf32():
    """What multiplies float32 on a GPU, as exactly as asked for here."""
    backends = {"products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
    before = {name: backend.allow_tf32 for name, backend in backends.items()}
    for backend in backends.values():
        backend.allow_tf32 = False
    yield backends
    for name, backend in backends.items():
        backend.allow_tf32 = before[name]


@pytest.mark.parametrize("name", ["products", "convolutions"])
def test_tf32_changes_the_key_of_float32_on_a_gpu(tmp_path, tf32, name):
    precisions = {"gpu": Precision(GPU, torch.float32, plain=True), "cpu": FP32, "low": Precision(GPU, torch.bfloat16)}
    before = {key: open_cache(tmp_path, precision=precision).folder for key, precision in precisions.items()}
    tf32[name].allow_tf32 = True
    after = {key: open_cache(tmp_path, precision=precision).folder for key, precision in precisions.items()}
    assert [key for key in precisions if before[key] != after[key]] == ["gpu"]


def test_the_measured_accuracy_of_folded_networks_is_kept_apart(tmp_path):
    loader, memory = make_loader(), tmp_path / "teacher_accuracy.json"
    for precision in (FP32, replace(FP32, plain=True)):
        measured_accuracy(Teacher(make_network(), Needs(), precision), loader, "some", memory)
    assert len(json.loads(memory.read_text())) == 2


def network_with(change):
    """A network with weights and a description like those of others, whose code is changed."""
    network = make_network()
    forward = network.forward
    network.forward = lambda images: change(forward(images))
    return network


def test_the_measured_accuracy_of_other_code_is_another(tmp_path):
    loader, memory = make_loader(), tmp_path / "teacher_accuracy.json"
    loader.train = False
    for change in (lambda logits: logits, lambda logits: logits.flip(1), lambda logits: logits):
        teacher = Teacher(network_with(change), Needs(), FP32)
        expected = evaluate(teacher.network, loader, FP32)["test_acc"]
        assert measured_accuracy(teacher, loader, "some", memory) == expected
    assert len(json.loads(memory.read_text())) == 2


def test_networks_that_differ_in_their_code_alone_have_tables_of_their_own(tmp_path, capsys):
    plain, other, third = (network_with(change) for change in (lambda x: x, lambda x: x.flip(1), lambda x: 1.05 * x))
    folders = [open_cache(tmp_path, network=network).folder for network in (plain, other, third)]
    assert len({*folders}) == 3
    assert folders == [open_cache(tmp_path, network=network).folder for network in (plain, other, third)]
    assert "not used" not in capsys.readouterr().err


def test_rounding_does_not_change_the_table(tmp_path):
    folder = open_cache(tmp_path).folder
    assert (
        open_cache(tmp_path, network=network_with(lambda x: x + 2e-3 * x.std() * torch.randn_like(x))).folder == folder
    )
    undefined = network_with(lambda x: x * torch.nan)
    assert open_cache(tmp_path, network=undefined).folder == open_cache(tmp_path, network=undefined).folder


def test_a_look_at_the_network_leaves_it_and_the_random_numbers_alone():
    network, state = make_network().train(), torch.get_rng_state()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert len(make_facts(network=network)["logits"]) == teacher_cache.ASKED
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_fill_computes_every_view_once(tmp_path, capsys):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    serve_epoch(cache, loader, 1, logits)
    cache.fill(loader, logits)
    assert logits.images == SAMPLES * VIEWS
    assert "100 % filled" in capsys.readouterr().out
    for epoch in (5, 9):
        serve_epoch(cache, loader, epoch, logits)
        assert cache.hit_rate() == 1.0
    cache.fill(loader, logits, quiet=True)
    assert logits.images == SAMPLES * VIEWS


def change_values(folder, change):
    values = np.memmap(folder / "logits.f16", np.uint16, "r+")
    change(values)
    values.flush()


def test_fill_computes_damaged_rows_again(tmp_path, capsys):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    cache.fill(loader, logits, quiet=True)

    def lose_three_rows(values):
        values[20 * CLASSES : 23 * CLASSES] = 0

    change_values(cache.folder, lose_three_rows)
    open_cache(tmp_path).fill(loader, logits, quiet=True)
    assert logits.images == SAMPLES * VIEWS + 3
    assert capsys.readouterr().err.count("damaged rows") == 1
    open_cache(tmp_path).fill(loader, logits, quiet=True)
    assert logits.images == SAMPLES * VIEWS + 3


def test_fill_stops_where_the_disk_is_full(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_cache, "FILL_BATCH", 5)
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    cache._values_file = io.FileIO("/dev/full", "r+")
    cache.fill(loader, logits)
    assert logits.images == 5
    out, err = capsys.readouterr()
    assert "filled" not in out
    assert err.count("takes no more rows (No space left on device)") == err.count("is filled no further") == 1


def damage_header(folder):
    (folder / "header.json").write_text('{"version": 1')


def remove_header(folder):
    (folder / "header.json").unlink()


def other_version(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "version": 0}))


def list_for_a_header(folder):
    (folder / "header.json").write_text("[1]")


def foreign_key(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "key": "0" * 64}))


def damage_logits_of_header(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "logits": [[1.0], "2"]}))


def truncate(folder):
    with open(folder / "logits.f16", "r+b") as file:
        file.truncate(100)


def remove_state(folder):
    (folder / "state.u8").unlink()


@pytest.mark.parametrize(
    "harm",
    [
        *(damage_header, remove_header, list_for_a_header, other_version, foreign_key, damage_logits_of_header),
        *(truncate, remove_state),
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_damaged_or_foreign_is_set_aside(tmp_path, harm, capsys):
    logits = Counting()
    serve_epoch(cache := open_cache(tmp_path), make_loader(), 1, logits)
    harm(cache.folder)
    fresh = open_cache(tmp_path)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "not used" in err
    assert (tmp_path / f"{cache.folder.name}.damaged-1").is_dir()
    serve_epoch(fresh, make_loader(), 1, logits)
    assert logits.images == 2 * SAMPLES


@pytest.mark.parametrize("value", [0, 1])
def test_rows_whose_state_does_not_fit_are_computed_again(tmp_path, capsys, value):
    """As after a crash of the machine: flags on the disk, values not."""
    loader = make_loader()
    expected = serve_epoch(cache := open_cache(tmp_path), loader, 1, Counting())

    def harm(values):
        values[:] = value * (values + (values != 0))

    change_values(cache.folder, harm)
    logits = Counting()
    assert torch.equal(serve_epoch(open_cache(tmp_path), loader, 1, logits), expected)
    assert logits.images == SAMPLES
    assert capsys.readouterr().err.count("damaged rows") == 1


def test_checksums_tell_a_row_from_others_and_from_a_missing_one():
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(4096, CLASSES)).astype(np.float16)
    sums = teacher_cache._checksums(rows)
    assert sums.min() == 1  # 0 stands for a row that is not there
    swapped = rows[:, [1, 0, *range(2, CLASSES)]]
    assert (teacher_cache._checksums(swapped) != sums).mean() > 0.9


def test_a_row_of_zeros_is_not_believed(tmp_path, capsys):
    """A crash of the machine may leave flags alone, and the checksum of nothing may be one of these."""
    loader, cache = make_loader(), open_cache(tmp_path)
    flag = teacher_cache._checksums(np.zeros((1, CLASSES), np.float16))
    (cache.folder / "state.u8").write_bytes(bytes(flag) * (SAMPLES * VIEWS))
    logits = Counting()
    served = serve_epoch(open_cache(tmp_path), loader, 1, logits)
    assert logits.images == SAMPLES
    assert served.any(1).all()


def test_logits_beyond_float16_are_served_and_not_kept(tmp_path):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting(scale=1e6)
    for _ in range(2):
        for batch in loader:
            served = cache.serve(batch, logits)
            assert served.isfinite().all()
            large = logits(batch.images).abs() > 65504
            assert torch.equal(served[large], logits(batch.images)[large])


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"0\.00 GB.*0\.00 GB free"):
        open_cache(tmp_path / "new" / "folder")
    assert not list(tmp_path.glob("*"))


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path, capsys):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()
    cache._values_file = io.FileIO("/dev/full", "r+")
    assert torch.equal(serve_epoch(cache, loader, 1, logits), serve_epoch(cache, loader, 1, logits))
    assert logits.images == 2 * SAMPLES
    assert capsys.readouterr().err.count("takes no more rows (No space left on device)") == 1


def test_a_table_that_could_not_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(path, _):
        raise RunError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(teacher_cache, "write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        open_cache(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_process_left_that_was_killed_while_it_made_a_table_is_removed(tmp_path, monkeypatch, locks):
    root, copy, left = tmp_path / "cache", tmp_path / "copy", []

    def killed(path, _):
        left.append(path.parent.parent)
        shutil.copytree(left[0], copy)
        raise RunError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "write_json", killed)
        with pytest.raises(UserError, match="killed"):
            open_cache(root)
    copy.rename(left[0])
    if not locks:  # it may still be at work
        monkeypatch.setattr(dataset.locks, "fcntl", None)
    folder = open_cache(root).folder
    assert set(root.iterdir()) == ({folder} if locks and dataset.locks.fcntl else {folder, left[0]})


def test_others_may_read_a_new_table(tmp_path):
    before = os.umask(0o022)
    try:
        folder = open_cache(tmp_path).folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert list(tmp_path.iterdir()) == [folder]


def refusing(refused, function):
    """A function that is denied what the given name is part of."""

    def run(path, *arguments, **options):
        if refused in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *arguments, **options)

    return run


def test_a_table_that_cannot_be_written_is_read(tmp_path, monkeypatch, capsys):
    loader, logits = make_loader(), Counting()
    expected = serve_epoch(open_cache(tmp_path), loader, 1, logits)
    monkeypatch.setattr(io, "FileIO", refusing("", io.FileIO))
    cache = open_cache(tmp_path)
    assert torch.equal(serve_epoch(cache, loader, 1, logits), expected)
    assert logits.images == SAMPLES
    for _ in range(2):
        serve_epoch(cache, loader, 2, logits)
    assert logits.images > 2 * SAMPLES
    assert capsys.readouterr().err.count("takes no more rows (Permission denied)") == 1


def test_a_full_table_that_cannot_be_written_counts_as_filled(tmp_path, monkeypatch, capsys):
    loader, logits = make_loader(), Counting()
    open_cache(tmp_path).fill(loader, logits, quiet=True)
    monkeypatch.setattr(io, "FileIO", refusing("", io.FileIO))
    open_cache(tmp_path).fill(loader, logits)
    assert logits.images == SAMPLES * VIEWS
    out, err = capsys.readouterr()
    assert "100 % filled" in out
    assert "filled no further" not in err


@pytest.mark.parametrize(
    ("owner", "name", "file"), [(np, "memmap", "state.u8"), (Path, "read_text", "header.json")], ids=["table", "header"]
)
def test_a_table_that_cannot_be_read_is_refused_and_stays(tmp_path, monkeypatch, owner, name, file):
    folder = open_cache(tmp_path).folder
    monkeypatch.setattr(owner, name, refusing(file, getattr(owner, name)))
    with pytest.raises(UserError, match=f"{folder} cannot be used .Permission denied.; name another folder"):
        open_cache(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


class Between:
    """An array, after each look at which something happens."""

    def __init__(self, array, happens):
        self.array, self.happens = array, happens

    def __getitem__(self, entries):
        found = self.array[entries]
        self.happens()
        return found


def test_rows_that_another_process_writes_meanwhile_are_not_taken_for_damaged(tmp_path, capsys):
    cache, writer, loader = open_cache(tmp_path), open_cache(tmp_path), make_loader()

    def write():
        serve_epoch(writer, loader, 1, Counting())

    cache._values, cache._state = Between(cache._values, write), Between(cache._state, write)
    expected = torch.cat([Counting()(batch.images).half().float() for batch in loader])
    assert torch.equal(serve_epoch(cache, make_loader(), 1, Counting()), expected)
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_where_there_are_no_locks(tmp_path, monkeypatch, capsys, locks):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    fcntl = None if locks == "none" else SimpleNamespace(LOCK_EX=2, flock=refuse)
    monkeypatch.setattr(dataset.locks, "fcntl", fcntl)
    damage_header(open_cache(tmp_path).folder)
    open_cache(tmp_path)
    assert capsys.readouterr().err.count("not used") == 1


class Hesitant(LogitCache):
    """Waits between its look at a table and what it does about it."""

    def _problem(self):
        problem = super()._problem()
        time.sleep(0.02)
        return problem


def open_at_once(roots, facts, barrier):
    """What one of several processes does that meet before each folder."""
    try:
        for root in roots:
            barrier.wait(LONGEST_WAIT)
            Hesitant(root, facts, SAMPLES, VIEWS, CLASSES)
    except BaseException:
        barrier.abort()
        raise


def test_processes_that_find_a_damaged_table_at_once_agree(tmp_path):
    pytest.importorskip("fcntl")
    count, roots, facts = 2, [tmp_path / str(number) for number in range(10)], make_facts()
    for root in roots:
        damage_header(LogitCache(root, facts, SAMPLES, VIEWS, CLASSES).folder)
    barrier = spawned.Barrier(count)
    processes = [spawned.Process(target=open_at_once, args=(roots, facts, barrier)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST_WAIT)
    assert [process.exitcode for process in processes] == [0] * count
    for root in roots:
        name = LogitCache(root, facts, SAMPLES, VIEWS, CLASSES).folder.name
        assert sorted(path.name for path in root.iterdir()) == [name, f"{name}.damaged-1"]


def write_all(root, facts):
    """What one of two processes does that fill a table: all rows in their order, slowly."""

    def slow(images):
        time.sleep(0.002)
        return Counting()(images)

    cache, loader = LogitCache(root, facts, SAMPLES, VIEWS, CLASSES), make_loader()
    for entries in torch.arange(SAMPLES * VIEWS).split(4):
        cache.serve(loader.batch(entries // VIEWS, entries % VIEWS), slow)


def test_a_process_that_is_killed_while_two_write_leaves_no_wrong_row(tmp_path):
    facts = make_facts()
    cache = LogitCache(tmp_path, facts, SAMPLES, VIEWS, CLASSES)
    killed, other = (spawned.Process(target=write_all, args=(tmp_path, facts)) for _ in range(2))
    killed.start()
    other.start()
    end = time.monotonic() + LONGEST_WAIT
    while np.count_nonzero(cache._state) < 500 and time.monotonic() < end:
        time.sleep(0.001)
    killed.kill()
    killed.join(LONGEST_WAIT)
    batch = make_loader().batch(*(torch.arange(SAMPLES * VIEWS) // VIEWS, torch.arange(SAMPLES * VIEWS) % VIEWS))
    expected, unknown = Counting()(batch.images).half().float(), 1e3
    reader = LogitCache(tmp_path, facts, SAMPLES, VIEWS, CLASSES)
    reader._full = True  # so that it keeps nothing itself

    def assert_right():
        served = reader.serve(batch, lambda images: torch.full((len(images), CLASSES), unknown))
        found = (served != unknown).any(1)
        assert torch.equal(served[found], expected[found])
        assert reader.hit_rate() == pytest.approx(found.float().mean().item())
        return found

    assert assert_right().sum() >= 500
    other.join(LONGEST_WAIT)
    assert (killed.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    assert assert_right().all()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--teacher_cache"):
        open_cache(tmp_path / "file")
