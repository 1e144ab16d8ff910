"""The losses against their literal versions at a small size, and the harness that times them; no time is asserted."""

import functools
import math

import pytest
import torch

from benchmarks import literal, losses
from benchmarks.timing import FEWEST_PAIRS, interleave, limited_memory, machine
from distiller_zoo import LDRLD, registry

SMALL = losses.Sizes(batch=8, classes=20, student="resnet8", teacher="resnet14", samples=200, negatives=50)
CPU = torch.device("cpu")


def test_every_method_has_a_literal_version():
    assert set(losses.LITERAL) == set(registry)


@pytest.mark.parametrize("name", losses.LITERAL)
def test_both_versions_agree(name):
    assert losses.difference(losses.make_case(name, SMALL, CPU)) < losses.TOLERANCE


@pytest.mark.parametrize("name", ["ldrld", "ekd", "hint"])
def test_the_compiled_version_agrees(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # no C++ to wait for
    assert losses.difference(losses.compiled(losses.make_case(name, SMALL, CPU))) < losses.TOLERANCE


@pytest.mark.parametrize("k", [2, 3, 12])
def test_literal_ldrld_agrees_at_every_k(k):
    torch.manual_seed(0)
    s, t = (torch.randn(6, 12, dtype=torch.float64) for _ in "st")
    target = torch.arange(6)
    expected = literal.ldrld(s, t, target, k, 4.0, 10.5, 7.0, 1.0).item()
    assert LDRLD(10.5, 7.0, k, 4.0)(s, t, target).item() == pytest.approx(expected, rel=1e-9)


def test_main_prints_a_line_for_each_size(capsys):
    arguments = [
        "--methods",
        "kd,correlation",
        "--batch",
        "4,8",
        "--classes",
        "10,20",
        "--repeats",
        "2",
        "--seconds",
        "1",
    ]
    losses.main(arguments)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("kd", "correlation"))]
    assert [line[:3] for line in lines] == [
        *(["kd", batch, classes] for batch in "48" for classes in ("10", "20")),
        *(["correlation", batch, "features"] for batch in "48"),
    ]


@pytest.mark.parametrize("wrong", [lambda z: 1.001 * z.square().sum(), lambda z: z.sum() * math.nan])
def test_main_says_where_versions_differ(monkeypatch, capsys, wrong):
    monkeypatch.setitem(losses.LITERAL, "kd", lambda m, s, t, x: wrong(s.logits))
    with pytest.raises(SystemExit, match="1"):
        losses.main(["--methods", "kd", "--batch", "4", "--classes", "10"])
    assert "differ" in capsys.readouterr().out


def test_what_needs_too_much_memory_is_named_and_left_out(monkeypatch, capsys):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(losses.LITERAL, "kd", too_large)
    losses.main(["--methods", "kd", "--batch", "4", "--classes", "10"])
    assert "too large" in capsys.readouterr().out


def test_versions_are_run_in_turn():
    runs = []
    c = interleave(lambda: runs.append("a"), lambda: runs.append("b"), repeats=3, warmup=1, block_ms=0)
    assert "".join(runs) == "ab" + "ab" + 3 * "ab", "warm-up, a look at the length of a run, three pairs"
    assert c.pairs == 3
    assert c.low <= c.ratio <= c.high


def test_time_that_is_up_ends_the_repeats_but_not_before_a_few_pairs():
    assert interleave(lambda: None, lambda: None, repeats=1000, seconds=0).pairs == FEWEST_PAIRS


def test_machine_names_threads_torch_and_device():
    line = machine(CPU)
    for word in (f"{torch.get_num_threads()} thread", torch.__version__, "cpu", "CUDA"):
        assert word in line


def test_memory_is_limited_inside_only():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(share=0.5):
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == before
