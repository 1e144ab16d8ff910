"""The cache of the teacher's logits: what it serves, what it refuses to believe, who may share it."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import ImageData, MemoryLoader
from dataset.loader import VIEWS
from helper.errors import UserError
from helper.precision import Precision
from helper.teacher_cache import LogitCache, cache_facts
from models import model_dict

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)
SAMPLES, CLASSES, BATCH = 22, 10, 8


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


def open_cache(root, loader=None, network=None, precision=FP32):
    loader = loader or make_loader()
    return LogitCache(root, cache_facts(network or make_network(), loader, precision), SAMPLES, VIEWS, CLASSES)


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
    ],
    ids=["teacher", "images", "normalisation", "precision"],
)
def test_what_changes_a_row_changes_the_key(tmp_path, other):
    assert open_cache(tmp_path, **other).folder != open_cache(tmp_path).folder
    assert open_cache(tmp_path, make_loader(seed=9)).folder == open_cache(tmp_path).folder


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


def damage_header(folder):
    (folder / "header.json").write_text('{"version": 1')


def remove_header(folder):
    (folder / "header.json").unlink()


def other_version(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "version": 0}))


def foreign_key(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "key": "0" * 64}))


def truncate(folder):
    with open(folder / "logits.f16", "r+b") as file:
        file.truncate(100)


def remove_state(folder):
    (folder / "state.u8").unlink()


@pytest.mark.parametrize(
    "harm", [damage_header, remove_header, other_version, foreign_key, truncate, remove_state], ids=lambda f: f.__name__
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
    values = np.memmap(cache.folder / "logits.f16", np.uint16, "r+")
    if value:
        values += (values != 0).astype(np.uint16)
    else:
        values[:] = 0
    values.flush()
    logits = Counting()
    assert torch.equal(serve_epoch(open_cache(tmp_path), loader, 1, logits), expected)
    assert logits.images == SAMPLES
    assert capsys.readouterr().err.count("damaged rows") == 1


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
        open_cache(tmp_path / "new")
    assert not list((tmp_path / "new").glob("*"))


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    loader, cache, logits = make_loader(), open_cache(tmp_path), Counting()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert torch.equal(serve_epoch(cache, loader, 1, logits), serve_epoch(cache, loader, 1, logits))
    assert logits.images == 2 * SAMPLES
    assert capsys.readouterr().err.count("takes no more rows (No space left on device)") == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--teacher_cache"):
        open_cache(tmp_path / "file")
