"""Flags that make runs faster, from the command line."""

import json
import time

import pytest
import torch
from image_trees import make_folder

import helper.setup
from helper import cpu_graph
from helper.loops import TrainStep

FLAGS = ("--model_s", "resnet8", "--dataset", "shapes100", "--epochs", 2, "--warmup_epochs", 0, "--quiet")


@pytest.fixture
def distil(call, teacher, tmp_path, small_data):
    def run(*arguments, save):
        result = call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path / save, *arguments)
        assert result.code == 0, result.err
        (folder,) = (tmp_path / save / "student_model").iterdir()
        return folder, result.err

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return torch.load(folder / "resnet8_last.pth", weights_only=True)["model"]


def test_float32_with_the_cache_is_float32_without_it_but_for_rounding(distil, tmp_path):
    cache = ("--teacher_cache", tmp_path / "cache", "--precision", "fp32")
    without, _ = distil("--distill", "kd", "--precision", "fp32", save="without")
    cold, _ = distil("--distill", "kd", *cache, save="cold")
    warm, _ = distil("--distill", "kd", *cache, save="warm")
    assert [row["teacher_cache_hits"] for row in rows(warm)] == [1.0, 1.0]
    assert rows(cold)[0]["teacher_cache_hits"] == 0.0
    for key, value in weights(cold).items():
        assert torch.equal(value, weights(warm)[key]), key
        torch.testing.assert_close(value, weights(without)[key], rtol=1e-2, atol=1e-3)
    for one, other in zip(rows(without), rows(warm), strict=True):
        assert "teacher_cache_hits" not in one
        assert one["div"] == pytest.approx(other["div"], rel=1e-3)


def test_methods_temperatures_and_students_of_a_trial_meet_the_same_views(distil, tmp_path):
    cache = ("--teacher_cache", tmp_path / "cache")
    distil("--distill", "kd", *cache, save="kd")
    others = (("--distill", "ldrld"), ("--distill", "dkd", "--kd_T", 2), ("--distill", "dist", "--model_s", "resnet14"))
    for number, arguments in enumerate(others):
        folder, _ = distil(*arguments, *cache, save=f"other{number}")
        assert [row["teacher_cache_hits"] for row in rows(folder)] == [1.0, 1.0]
    another, _ = distil("--distill", "kd", "--trial", 2, *cache, save="trial")
    assert rows(another)[0]["teacher_cache_hits"] < 0.5


def test_fill(distil, tmp_path):
    folder, _ = distil("--teacher_cache", tmp_path / "cache", "--teacher_cache_fill", "--subset", 1, save="filled")
    assert [row["teacher_cache_hits"] for row in rows(folder)] == [1.0, 1.0]


def test_of_two_processes_one_sets_a_damaged_table_aside(distil, launch_together, teacher, tmp_path):
    cache = ("--teacher_cache", tmp_path / "cache")
    distil(*cache, save="alone")
    (header,) = (tmp_path / "cache").glob("*/header.json")
    header.write_text("{")
    arguments = ("--path_t", teacher, "--save_folder", tmp_path / "shared", *cache)
    done = launch_together("train_student", *FLAGS, *arguments, small=True)
    words = "".join(process.err for process in done)
    assert [process.code for process in done] == [0, 0], words
    assert words.count("is not used (its header is missing or damaged)") == 1
    tables = sorted(path.parent.name for path in (tmp_path / "cache").glob("*/state.u8"))
    assert tables == [header.parent.name, f"{header.parent.name}.damaged-1"]


def test_a_method_that_needs_features_says_that_there_is_no_cache(distil, tmp_path):
    _, err = distil("--distill", "hint", "--teacher_cache", tmp_path / "cache", save="hint")
    assert "note: --teacher_cache is not used" in err
    assert not (tmp_path / "cache").exists()


def test_fill_without_a_cache(call, teacher, tmp_path, assert_one_line_error):
    result = call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path, "--teacher_cache_fill")
    assert_one_line_error(result, "--teacher_cache_fill needs --teacher_cache DIR")


def test_a_resumed_run_with_a_cache_ends_with_the_same_weights(call, teacher, tmp_path, small_data, monkeypatch):
    def run(save, cache):
        arguments = ("--distill", "ldrld", "--save_folder", tmp_path / save, "--teacher_cache", tmp_path / cache)
        return call("train_student", *FLAGS, "--path_t", teacher, *arguments, "--resume")

    assert run("whole", "one").code == 0
    calls = {"number": 0}
    from helper.run import Run

    whole_end = Run.end_epoch

    def dying(self, *arguments):
        calls["number"] += 1
        if calls["number"] == 2:
            raise OSError(28, "stopped")
        return whole_end(self, *arguments)

    monkeypatch.setattr(Run, "end_epoch", dying)
    with pytest.raises(OSError, match="stopped"):
        run("cut", "other")
    monkeypatch.setattr(Run, "end_epoch", whole_end)
    assert run("cut", "other").code == 0
    (whole,), (cut,) = ((tmp_path / name / "student_model").iterdir() for name in ("whole", "cut"))
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[key]), key


@pytest.mark.parametrize(
    ("size", "more", "fused"),
    [(25, (), False), (20, (), True), (25, ("--compile", "--epochs", 1), True)],
    ids=["eight batches", "ten", "compiled"],
)
def test_a_teacher_that_sees_few_batches_is_not_fused(distil, monkeypatch, size, more, fused):
    fuse, sizes = cpu_graph.fuse, []
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(
        cpu_graph, "fuse", lambda network, images, frozen: sizes.append(len(images)) or fuse(network, images, frozen)
    )
    distil("--distill", "kd", "--batch_size", size, *more, save="run")
    assert sizes == ([size] if fused else [])


@pytest.fixture
def graphs(monkeypatch):
    """What a compiler is given that only counts it, and how many that was when training began."""
    compile_, given, before = torch.compile, [], []

    def count(graph, _):
        given.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module, **_: compile_(module, backend=count, dynamic=False))
    monkeypatch.setattr(helper.setup, "_time_both", lambda *_: before.append(len(given)) or (1.0, 2.0))
    torch.compiler.reset()
    return given, before


@pytest.mark.parametrize(
    "method",
    [
        *("ldrld", "hint"),
        # these read the epoch, which must not be compiled anew each time: by a rise, half a cosine, and a bound
        *("dkd --kd_warmup 20", "wkd_f --decay_epoch 1 --decay_end 3"),
        "kd --curriculum_T --decay_loops 4 --decay_kind linear",
    ],
)
def test_compiled_runs_learn_the_same_and_compile_once(distil, graphs, method):
    given, before = graphs
    flags = ("--distill", *method.split(), "--precision", "fp32", "--batch_size", 32)
    plain, _ = distil(*flags, save="plain")
    assert not given
    compiled, _ = distil(*flags, "--compile", save="compiled")
    assert before == [len(given)] != [0]
    for key, value in weights(plain).items():
        torch.testing.assert_close(value, weights(compiled)[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ldrld", "crd -b 0.8", "mlkd", "kd --curriculum_T --decay_loops 4"])
def test_no_result_of_a_step_is_read_once_the_next_has_begun(distil, cuda_graphs, monkeypatch, method):
    """As CUDA graphs overwrite them; the teacher's answers to several batches, too."""
    monkeypatch.setattr(helper.setup, "_time_both", lambda *_: (1.0, 2.0))
    flags = ("--distill", *method.split(), "--precision", "fp32", "--batch_size", 16, "--print_freq", 2)
    plain, _ = distil(*flags, save="plain")
    assert not cuda_graphs.options
    graphs, _ = distil(*flags, "--compile", save="graphs")
    assert cuda_graphs.begun > 2 * 100 // 16
    for key, value in weights(plain).items():
        torch.testing.assert_close(value, weights(graphs)[key], rtol=1e-4, atol=1e-5)
    for one, other in zip(rows(plain), rows(graphs), strict=True):
        timed = ("seconds", "images_per_second")
        assert other == {
            key: other[key] if key in timed else pytest.approx(fact, rel=1e-3) for key, fact in one.items()
        }


@pytest.mark.parametrize("slower", ["compiled", "uncompiled"])
def test_a_step_that_is_slower_compiled_runs_as_it_is(call, teacher, tmp_path, small_data, monkeypatch, slower):
    """The compiler's results, or what they replace, are slowed down."""
    forward, calls = TrainStep._forward, []

    def slow(*arguments):
        time.sleep(0.3)
        return forward(*arguments)

    def compiled(module, **_):
        run = forward if slower == "uncompiled" else slow
        own = getattr(module, "__self__", None)
        if not isinstance(own, TrainStep):
            return module
        return lambda *arguments: calls.append(1) or run(own, *arguments)

    monkeypatch.setattr(torch, "compile", compiled)
    if slower == "uncompiled":
        monkeypatch.setattr(TrainStep, "_forward", slow)
    flags = (*FLAGS[:-1], "--distill", "kd", "--precision", "fp32", "--batch_size", 50, "--compile")
    result = call("train_student", *flags, "--path_t", teacher, "--save_folder", tmp_path)
    assert result.code == 0, result.err
    assert ("the student runs uncompiled" in result.out) == (slower == "compiled")
    assert (len(calls) > 2 + helper.setup.TIMED_STEPS) == (slower == "uncompiled")


def test_a_machine_without_a_compiler_is_told(call, teacher, tmp_path, small_data, monkeypatch, assert_one_line_error):
    def broken(module, **_):
        def run(*_):
            raise RuntimeError("no C++ compiler\nwas found")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    result = call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path, "--compile")
    assert_one_line_error(result, "--compile", "no C++ compiler", save_folder=tmp_path)


def test_float16_learns_nearly_the_same_and_resumes(call, make_teacher, tmp_path):
    # few small images: float16 is slow on a CPU
    data = ("--dataset", "folder", "--data_folder", make_folder(tmp_path / "images"), "--batch_size", 8)
    common = (*FLAGS, *data, "--epochs", 1, "--distill", "kd", "--path_t", make_teacher(classes=3))

    def run(save, *arguments):
        result = call("train_student", *common, "--save_folder", tmp_path / save, *arguments)
        assert result.code == 0, result.err
        (folder,) = (tmp_path / save / "student_model").iterdir()
        return folder

    low, full = run("low", "--precision", "fp16"), run("full", "--precision", "fp32")
    assert rows(low)[-1]["div"] == pytest.approx(rows(full)[-1]["div"], rel=0.05)
    state = torch.load(low / "resume.pth", weights_only=True)
    assert state["scaler"]["scale"] > 1
    (low / "summary.json").unlink()
    assert run("low", "--precision", "fp16", "--resume") == low


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tf32",), "--tf32 goes with --precision fp32"),
        (("--tf32", "--precision", "fp32", "--device", "cpu"), "CUDA"),
        (("--optimizer", "dot", "--precision", "fp16"), "--optimizer dot"),
        (("--optimizer", "dot", "--compile"), "--optimizer dot"),
    ],
)
def test_what_does_not_go_together(call, teacher, tmp_path, assert_one_line_error, arguments, words):
    result = call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path, *arguments)
    assert_one_line_error(result, words, save_folder=tmp_path)
