"""Which number format `--precision auto` takes."""

import pytest
import torch

from helper import precision
from helper.options import student_options
from helper.precision import Precision, keep_timing
from helper.setup import choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def arm64(monkeypatch):
    """A processor that is not asked, since torch knows nothing of it."""
    monkeypatch.setattr(precision.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(precision, "_cpu_has", lambda check: pytest.fail("asked for x86"))
    precision._bfloat16_is_faster.cache_clear()
    yield
    precision._bfloat16_is_faster.cache_clear()


@pytest.mark.parametrize(("bfloat16", "name"), [(1.0, "bf16"), (1.9, "bf16"), (2.1, "fp32"), (9.0, "fp32")])
def test_other_processors_than_x86_are_timed_once(arm64, monkeypatch, bfloat16, name):
    seconds = {torch.bfloat16: bfloat16, torch.float32: 3.0}
    timed = []
    monkeypatch.setattr(precision, "_convolution_seconds", lambda dtype: timed.append(dtype) or seconds[dtype])
    assert [Precision.choose("auto", CPU).name for _ in range(2)] == [name, name]
    assert len(timed) == 2
    assert [Precision.choose(given, CPU).name for given in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_what_was_timed_is_kept_for_other_runs(arm64, monkeypatch, tmp_path):
    times = iter([1.0, 3.0, 3.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr(precision, "_convolution_seconds", lambda dtype: next(times))
    memory = tmp_path / "save" / "memory.json"

    def run() -> str:
        precision._bfloat16_is_faster.cache_clear()
        name = Precision.choose("auto", CPU, memory).name
        keep_timing(memory)
        return name

    assert [run(), run()] == ["bf16", "bf16"]
    memory.write_text("{")
    assert [run(), run()] == ["fp32", "fp32"]
    monkeypatch.setattr(precision.platform, "node", lambda: "another")
    assert [run(), run()] == ["bf16", "bf16"]


def test_a_resumed_run_keeps_its_format(arm64, monkeypatch, call, killed_after_an_epoch, teacher, small_data, tmp_path):
    seconds = {torch.bfloat16: 1.0, torch.float32: 3.0}
    monkeypatch.setattr(precision, "_convolution_seconds", lambda dtype: seconds[dtype])
    monkeypatch.setattr(precision, "_cpu_has", lambda check: False)
    flags = ("--dataset", "shapes100", "--model_s", "resnet8", "--epochs", 2, "--warmup_epochs", 0)
    command = ("train_student", *flags, "--path_t", teacher, "--save_folder", tmp_path / "save")
    killed_after_an_epoch(call, *command)
    precision._bfloat16_is_faster.cache_clear()
    seconds[torch.bfloat16] = 9.0
    done = call(*command, "--resume")
    assert done.code == 0, done.err
    assert "resuming after epoch 1" in done.out
    assert Precision.choose("auto", CPU).name == "fp32"


def test_where_nothing_was_timed_nothing_is_kept(arm64, tmp_path):
    keep_timing(tmp_path / "memory.json")
    assert not list(tmp_path.iterdir())


def test_what_is_timed_learns(arm64):
    before = torch.random.get_rng_state()
    assert all(precision._convolution_seconds(dtype) > 0 for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("flags", "name"),
    [(["_is_amx_tile_supported"], "bf16"), (["_is_avx512_bf16_supported"], "bf16"), (["_is_avx2_supported"], "fp32")],
)
def test_x86_processors_are_asked(monkeypatch, flags, name):
    monkeypatch.setattr(precision.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(precision, "_cpu_has", flags.__contains__)
    assert Precision.choose("auto", CPU).name == name


@pytest.mark.parametrize(
    ("flags", "machine", "emulated"),
    [
        (["_is_avx2_supported"], "x86_64", [False, False, True, True]),
        (["_is_avx512_bf16_supported"], "x86_64", [False] * 4),
        ([], "aarch64", [False] * 4),
    ],
)
def test_formats_that_a_processor_emulates(monkeypatch, flags, machine, emulated):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(precision, "_cpu_has", flags.__contains__)
    monkeypatch.setattr(precision, "_bfloat16_is_faster", lambda: True)
    assert [Precision.choose(name, CPU).emulated for name in ("auto", "fp32", "bf16", "fp16")] == emulated


def test_a_run_in_an_emulated_format_is_told_so(monkeypatch):
    monkeypatch.setattr(Precision, "emulated", property(lambda self: self.name == "bf16"))
    notes = {}
    for name in ("bf16", "fp32"):
        opt = student_options(["--precision", name, "--device", "cpu"])[0]
        choose_precision(opt)
        notes[name] = [note for note in opt.notes if "emulates" in note]
    assert notes["bf16"] == [
        "this processor emulates bf16, which is far slower than float32, which --precision auto takes"
    ]
    assert not notes["fp32"]


def test_only_what_is_asked_for_as_float32_leaves_networks_unfolded():
    assert [Precision.choose(name, CPU).plain for name in ("auto", "fp32", "bf16", "fp16")] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_the_island_within_autocast_is_float32(low):
    ours, x = Precision(CPU, low), torch.ones(2, 2)
    with ours.autocast():
        assert (x @ x).dtype == low
        with ours.autocast(enabled=False):
            assert (x @ x).dtype == torch.float32
    with ours.autocast(enabled=False):
        assert (x @ x).dtype == torch.float32
