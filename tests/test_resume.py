"""A run that is stopped at any moment and resumed ends with the same files as one that was not."""

import json
import multiprocessing
import os
import re
import resource
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from helper import checkpoint, errors, loops
from helper.loops import TrainStep
from helper.run import Run, resume_command

QUICK = (
    *("--dataset", "shapes100", "--device", "cpu", "--precision", "fp32", "--quiet"),
    *("--epochs", "2", "--lr_decay_epochs", "1", "--save_freq", "2"),
)
METHODS = {
    "kd": ("--distill", "kd"),
    "crd": ("--distill", "crd", "--nce_k", "16"),
    "factor": ("--distill", "factor", "--init_epochs", "2", "--init_learning_rate", "1e-4"),
}
TIMES = ("seconds", "images_per_second")


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program may catch it."""


def run_folder(save):
    """The only run below a save folder."""
    (folder,) = [path for kind in ("models", "student_model") for path in (save / kind).glob("*")]
    return folder


def outcome(save):
    """What must not depend on interruptions: every tensor, number and line that a finished run leaves."""
    folder = run_folder(save)
    found = {}
    for path in sorted(folder.glob("*.pth")):
        found[path.name] = torch.load(path, weights_only=True)
        if "history" in found[path.name]:
            found[path.name]["history"] = [
                {key: value for key, value in row.items() if key not in TIMES}
                for row in json.loads(found[path.name]["history"])
            ]
    for path in (folder / "options.json", folder / "summary.json"):
        content = json.loads(path.read_text())
        found[path.name] = {k: v for k, v in content.items() if k not in (*TIMES, "resume", "save_folder")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{k: v for k, v in row.items() if k not in TIMES} for row in lines]
    return found


def same(one, other):
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_outcome(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if not same(found[name], expected[name])]
    assert not different


def unfinished_writes(save):
    return sorted(save.rglob("*.tmp"))


@pytest.fixture
def flags(teacher):
    """The flags of a run of a method."""

    def get(method, save):
        return ("--path_t", teacher, "--model_s", "resnet8", *METHODS[method], *QUICK, "--save_folder", save)

    return get


@pytest.fixture
def distil(call, flags, tmp_path):
    """Runs train_student.py in this process; returns the result and the save folder."""

    def run(method, *arguments, save="save"):
        return call("train_student", *flags(method, tmp_path / save), *arguments), tmp_path / save

    return run


@pytest.fixture
def reference(distil, tmp_path_factory):
    """Outcome of an uninterrupted run of a method, and the number of its writes; it is trained once for all tests."""

    def get(method):
        kept = tmp_path_factory.getbasetemp() / f"reference_{method}.pt"
        if not kept.exists():
            with pytest.MonkeyPatch.context() as patch:
                writes = count_writes(patch)
                result, save = distil(method, save=f"reference_{method}")
            assert result.code == 0, result.err
            assert not unfinished_writes(save)
            torch.save((outcome(save), len(writes)), kept)
        return torch.load(kept, weights_only=True)

    return get


def count_writes(patch):
    """Record the name of every file that is put into place."""
    writes, replace = [], os.replace
    patch.setattr(os, "replace", lambda source, target: (writes.append(Path(target).name), replace(source, target)))
    return writes


def die_at_write(patch, number):
    """Let the process die in its write `number`, from 1, with half of the new content on the disk."""
    left, replace = [number], os.replace

    def dying(source, target):
        left[0] -= 1
        if left[0] == 0:
            os.truncate(source, os.path.getsize(source) // 2)
            raise Killed
        replace(source, target)

    patch.setattr(os, "replace", dying)


# Killed between any two writes


@pytest.mark.parametrize("method", METHODS)
def test_reference_writes(reference, method):
    expected, writes = reference(method)
    stage = [("init", 1), ("init", 2)] if method == "factor" else []
    rows = [(row.get("stage", ""), row["epoch"]) for row in expected["metrics.jsonl"]]
    assert rows == [*stage, ("", 1), ("", 2)]
    assert {"resnet8_last.pth", "ckpt_epoch_2.pth", "resume.pth"} <= expected.keys()
    # options, teacher accuracy, two an epoch, best at least once, one numbered, last, summary
    assert writes in (10 + 2 * len(stage), 11 + 2 * len(stage))


@pytest.mark.parametrize(
    ("method", "number"),
    [*(("crd", n) for n in range(1, 12)), *(("kd", n) for n in (3, 6, 8)), *(("factor", n) for n in (3, 5, 6, 9))],
)
def test_killed_in_any_write(distil, reference, monkeypatch, method, number):
    expected, writes = reference(method)
    if number > writes:
        pytest.skip("the run has fewer writes")
    with monkeypatch.context() as patch:
        die_at_write(patch, number)
        with pytest.raises(Killed):
            distil(method)
    result, save = distil(method, "--resume")
    assert result.code == 0, result.err
    assert_same_outcome(outcome(save), expected)
    assert len(unfinished_writes(save)) <= 1  # the half-written file of the write that was cut off


def test_the_best_student_is_none_of_an_epoch_that_was_cut_off(distil, monkeypatch):
    """On a GPU, the epoch may be a worse one when it is trained again."""
    evaluate, found = loops.evaluate, iter([10.0, 20.0, 5.0])
    monkeypatch.setattr(loops, "evaluate", lambda *words: {**evaluate(*words), "test_acc": next(found)})
    replace = os.replace

    def die(source, target):
        if Path(target).name == "resume.pth" and Path(target).exists():
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(Killed):
            distil("kd")
    result, save = distil("kd", "--resume")
    assert result.code == 0, result.err
    best = torch.load(run_folder(save) / "resnet8_best.pth", weights_only=True)
    assert (best["epoch"], best["best_acc"]) == (1, 10.0)
    assert json.loads((run_folder(save) / "summary.json").read_text())["best_acc"] == 10.0


def test_killed_again_and_again(distil, reference, monkeypatch):
    expected, _ = reference("crd")
    for _ in range(20):
        with monkeypatch.context() as patch:
            die_at_write(patch, 5)
            try:
                result, save = distil("crd", "--resume")
                break
            except Killed:
                continue
    assert result.code == 0, result.err
    assert_same_outcome(outcome(save), expected)


def test_files_of_a_killed_write_are_mistaken_for_nothing_and_removed(distil, reference):
    expected, _ = reference("kd")
    _, save = distil("kd")
    folder = run_folder(save)
    (folder / "summary.json").unlink()
    for name in ("resume.pth", "metrics.jsonl", "summary.json", "options.json", "resnet8_last.pth"):
        (folder / f".{name}.{os.getpid()}.tmp").write_bytes(b"half")
        (folder / f".{name}.1.tmp").write_bytes(b"half")
    foreign = folder / ".evaluation.json.1.tmp"  # evaluate.py may be at work there
    foreign.write_bytes(b"half")
    result, _ = distil("kd", "--resume")
    assert result.code == 0, result.err
    assert_same_outcome(outcome(save), expected)
    assert unfinished_writes(save) == [foreign]


def test_checkpoints_are_whole_at_every_moment(distil, monkeypatch, tmp_path):
    broken, replace = [], os.replace

    def checked(source, target):
        replace(source, target)
        for path in tmp_path.rglob("*.pth"):
            try:
                torch.load(path, weights_only=True)
            except Exception as error:
                broken.append((path, error))

    monkeypatch.setattr(os, "replace", checked)
    assert distil("kd")[0].code == 0
    assert not broken


# Killed as a process


def epochs_done(save):
    return max((len(path.read_text().splitlines()) for path in save.glob("*/*/metrics.jsonl")), default=0)


def assert_resumes(result, save, expected):
    assert result.code == 0, result.err
    assert_same_outcome(outcome(save), expected)


def test_sigkill_in_the_first_and_second_epoch(stop_when, call, flags, reference, tmp_path):
    method = "crd"  # whose memory is part of its state
    expected, _ = reference(method)
    save = tmp_path / "save"
    started = flags(method, save)
    stop_when(lambda: (save / "teacher_accuracy.json").exists(), signal.SIGKILL, "train_student", *started, delay=0.05)
    again = (*started, "--resume")
    stop_when(lambda: epochs_done(save) == 1, signal.SIGKILL, "train_student", *again, delay=0.05)
    assert not list(save.glob("*/*/summary.json"))
    assert_resumes(call("train_student", *again), save, expected)


def assert_names_the_command(result, number, started):
    """Check the last words of a run that a signal ended; returns the flags with which it goes on."""
    assert result.code == 128 + number
    (line,) = result.err.splitlines()
    assert number.name in line
    words = shlex.split(line.partition("to go on: ")[2])
    assert words == ["python", "train_student.py", *map(str, started), "--resume"]
    return words[2:]


def test_sigterm_names_the_command_that_resumes(stop_when, call, flags, reference, tmp_path):
    expected, _ = reference("kd")
    # a name that a shell would split shows that the command is quoted
    save = tmp_path / "my runs"
    started = flags("kd", save)
    result = stop_when(lambda: epochs_done(save) == 1, signal.SIGTERM, "train_student", *started, delay=0.1)
    again = assert_names_the_command(result, signal.SIGTERM, started)
    assert not unfinished_writes(save)
    assert epochs_done(save) == 1
    assert_resumes(call("train_student", *again), save, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("epoch", [1, 2])
def test_signal_in_a_step(distil, call, flags, reference, monkeypatch, tmp_path, number, epoch):
    expected, _ = reference("crd")
    forward = TrainStep.forward

    def signalled(self, batch, teacher, now):
        if now == epoch:
            os.kill(os.getpid(), number)
        return forward(self, batch, teacher, now)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "forward", signalled)
        result, save = distil("crd")
    again = assert_names_the_command(result, number, flags("crd", save))
    assert epochs_done(save) == epoch - 1
    assert_resumes(call("train_student", *again), save, expected)


def test_flag_of_the_command_that_resumes_is_not_given_twice(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_student.py", "--resume", "--trial", "a b"])
    assert resume_command() == "python train_student.py --resume --trial 'a b'"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_a_write_waits_for_its_end(distil, monkeypatch, number):
    replace, names = os.replace, []

    def signalled(source, target):
        names.append(Path(target).name)
        if names[-1] == "resume.pth":
            os.kill(os.getpid(), number)
        replace(source, target)

    monkeypatch.setattr(os, "replace", signalled)
    result, save = distil("kd")
    assert result.code == 128 + number
    # the files of an epoch belong together
    assert names[-3:] == ["resume.pth", "resnet8_best.pth", "metrics.jsonl"]
    assert epochs_done(save) == 1
    assert not unfinished_writes(save)
    assert "--resume" in result.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_after_the_end_is_ignored(number):
    assert errors.run_command(lambda: None) == 0
    os.kill(os.getpid(), number)


def test_train_teacher_resumes(call, monkeypatch, tmp_path):
    started = ("--model", "resnet8", *QUICK)
    assert call("train_teacher", *started, "--save_folder", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        die_at_write(patch, 6)
        with pytest.raises(Killed):
            call("train_teacher", *started, "--save_folder", tmp_path / "killed")
    assert epochs_done(tmp_path / "killed") == 1
    done = call("train_teacher", *started, "--save_folder", tmp_path / "killed", "--resume")
    assert_resumes(done, tmp_path / "killed", outcome(tmp_path / "whole"))


# Finished runs, seeds


def test_resuming_a_finished_run_changes_nothing(distil, files_below):
    _, save = distil("kd")
    before = files_below(save)
    times = {path: path.stat().st_mtime_ns for path in run_folder(save).iterdir()}
    result, _ = distil("kd", "--resume")
    assert result.code == 0, result.err
    assert not result.out  # --quiet
    assert not re.search("^resuming", result.out, re.MULTILINE)
    changed = {name for name, content in files_below(save).items() if before.get(name) != content}
    assert not changed  # an empty file of TensorBoard events would be a change, too
    assert {path: path.stat().st_mtime_ns for path in run_folder(save).iterdir()} == times


def test_same_seed_same_weights_other_trial_other_weights(distil, reference):
    expected, _ = reference("kd")
    result, save = distil("kd", "--trial", "1", save="again")
    assert result.code == 0
    assert_same_outcome(outcome(save), expected)
    result, save = distil("kd", "--trial", "2", save="other")
    assert result.code == 0
    other = outcome(save)["resnet8_last.pth"]["model"]
    assert not same(other["conv1.weight"], expected["resnet8_last.pth"]["model"]["conv1.weight"])


def test_trials_lie_side_by_side(distil, files_below):
    _, save = distil("kd", "--epochs", "1")
    before = files_below(save)
    assert distil("kd", "--epochs", "1", "--trial", "second try")[0].code == 0
    assert len(list((save / "student_model").iterdir())) == 2
    assert before.items() <= files_below(save).items()


def test_resume_with_another_length_leaves_the_run_alone(distil, files_below):
    _, save = distil("kd")
    folder = run_folder(save)
    before = files_below(folder)
    assert distil("kd", "--resume", "--epochs", "3")[0].code == 0
    assert files_below(folder) == before


def change_options(save, **values):
    path = run_folder(save) / "options.json"
    options = {key: value for key, value in {**json.loads(path.read_text()), **values}.items() if value is not None}
    path.write_text(json.dumps(options))


def test_a_finished_run_is_so_wherever_auto_finds_another_precision(distil, assert_one_line_error):
    _, save = distil("kd", "--epochs", "1", "--subset", "1")
    change_options(save, precision="bf16")
    assert distil("kd", "--epochs", "1", "--subset", "1", "--resume")[0].code == 0
    (run_folder(save) / "summary.json").unlink()
    result, _ = distil("kd", "--epochs", "1", "--subset", "1", "--resume")
    assert_one_line_error(result, "precision = bf16, not fp32 (--precision auto finds another format here")


def test_a_damaged_resume_file_says_what_to_delete(distil, assert_one_line_error):
    _, save = distil("kd", "--epochs", "1", "--subset", "1")
    (run_folder(save) / "summary.json").unlink()
    path = run_folder(save) / "resume.pth"
    path.write_bytes(path.read_bytes()[:-100])
    result, _ = distil("kd", "--epochs", "1", "--subset", "1", "--resume")
    assert_one_line_error(result, str(path), f"delete {run_folder(save)} to begin anew")


def test_a_forked_process_does_not_hold_the_folder(tmp_path):
    """As a loader's worker, which may outlive a run that is killed."""
    fcntl = pytest.importorskip("fcntl")
    Run(tmp_path, tmp_path / "events", "resnet8", 1, 1)._keep_out_others()
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    errors._last.pop()()
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + 30  # the worker may not have begun yet
        while True:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        os.close(other)
        worker.kill()
        worker.join()


def test_a_folder_in_use_is_left_alone(distil, files_below, assert_one_line_error):
    fcntl = pytest.importorskip("fcntl")
    flags = ("kd", "--epochs", "1", "--subset", "1")
    _, save = distil(*flags)
    folder, before = run_folder(save), files_below(save)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    for words in (("--resume",), ()):
        if not words:  # as soon as it begins, a run has a folder with nothing to resume
            (folder / "summary.json").unlink()
            (folder / "resume.pth").unlink()
            before = files_below(save)
        assert_one_line_error(distil(*flags, *words)[0], "another process is at work on")
        assert files_below(save) == before
    os.close(held)
    assert distil(*flags)[0].code == 0


# What stops a run


def test_full_disk(launch, distil, flags, reference, monkeypatch, tmp_path, assert_one_line_error):
    expected, _ = reference("crd")
    with monkeypatch.context() as patch:
        die_at_write(patch, 7)
        with pytest.raises(Killed):
            distil("crd")
    save = tmp_path / "save"
    folder = run_folder(save)
    assert epochs_done(save) == 1
    before = (folder / "resume.pth").read_bytes()
    # room for the student's checkpoint, but not for all that a resume needs
    limit = (len(before) + (folder / "resnet8_best.pth").stat().st_size) // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = launch("train_student", *flags("crd", save), "--resume", small=True, preexec_fn=limited)
    assert_one_line_error(result, "resume.pth", "File too large", "kept", code=3)
    assert (folder / "resume.pth").read_bytes() == before
    assert checkpoint.load_network("resnet8", folder / "resnet8_best.pth", 100)
    assert epochs_done(save) == 1
    assert_resumes(distil("crd", "--resume")[0], save, expected)


@pytest.mark.parametrize("number", [4, 7])
def test_full_disk_in_any_write(distil, reference, monkeypatch, number, assert_one_line_error):
    expected, _ = reference("kd")
    left, fsync = [number], os.fsync

    def full(file):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result, save = distil("kd")
    assert_one_line_error(result, "No space left on device", "kept", code=3)
    assert not unfinished_writes(save)
    assert_resumes(distil("kd", "--resume")[0], save, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--learning_rate", "1e30", "--batch_size", "20"), ("the term 'cls' is", "epoch 1, step 2")),
        (("-r", "1e39"), ("the term 'loss' is inf", "epoch 1, step 1")),
        (("--print_freq", "1", "-r", "1e39"), ("the term 'loss' is inf", "epoch 1, step 1")),
        (("--learning_rate", "1e30", "--batch_size", "100"), ("weights are not finite", "epoch 1")),
    ],
    ids=["rate", "weight", "read at every step", "last step"],
)
def test_loss_that_is_not_finite(distil, arguments, words, assert_one_line_error):
    result, save = distil("kd", *arguments)
    assert_one_line_error(result, *words, "checkpoint", "learning rate", code=3)
    assert sorted(path.name for path in run_folder(save).iterdir()) == ["options.json"]


@pytest.mark.parametrize("rate", [1e6, 1e12, 1e18, 1e25])
def test_figures_that_are_saved_are_finite(distil, rate):
    # one step an epoch: the loss is finite, the weights after it are absurd
    result, save = distil("kd", "--learning_rate", rate, "--batch_size", "100", "--epochs", "1")
    assert result.code in (0, 3), result.err

    def refuse(name):
        raise AssertionError(f"{name} in a JSON file")

    folder = run_folder(save)
    for path in (*folder.glob("*.json"), *folder.glob("*.jsonl")):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)
    for path in folder.glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in content.get("model", {}).values()), path.name


def test_last_good_checkpoint_is_kept_and_resumed(distil, reference, monkeypatch, assert_one_line_error):
    expected, _ = reference("kd")
    forward = TrainStep.forward

    def failing(self, batch, teacher, epoch):
        output, terms = forward(self, batch, teacher, epoch)
        return output, {**terms, "div": terms["div"] * (float("nan") if epoch == 2 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "forward", failing)
        result, save = distil("kd")
    assert_one_line_error(result, "the term 'div' is nan", "epoch 2, step 1", code=3)
    folder = run_folder(save)
    assert torch.load(folder / "resume.pth", weights_only=True)["epoch"] == 1
    assert checkpoint.load_network("resnet8", folder / "resnet8_best.pth", 100)
    assert epochs_done(save) == 1
    assert_resumes(distil("kd", "--resume")[0], save, expected)


# What does not stop a run


def test_run_without_tensorboard_logger(distil, reference, monkeypatch, tmp_path):
    expected, _ = reference("kd")
    (tmp_path / "tensorboard_logger.py").write_text("raise TypeError('made for\\nan older protobuf')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard_logger"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    result, save = distil("kd")
    assert result.code == 0
    (note,) = result.err.splitlines()
    assert note.startswith("note: ")
    assert "made for" in note
    assert "metrics.jsonl" in note
    assert_same_outcome(outcome(save), expected)
    assert not list((save / "student_tensorboards").glob("*/events*"))


class FailingLogger:
    """Fails like a full disk: when it is made, or later."""

    late = False

    def __init__(self, *_, **__):
        if not self.late:
            self.log_value()

    def log_value(self, *_):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("late", [False, True])
def test_logger_that_fails(distil, reference, monkeypatch, late):
    import tensorboard_logger

    expected, _ = reference("kd")
    monkeypatch.setattr(FailingLogger, "late", late)
    monkeypatch.setattr(tensorboard_logger, "Logger", FailingLogger)
    result, save = distil("kd", "--tb_freq", "1")
    assert result.code == 0
    (note,) = result.err.splitlines()
    assert note.startswith("note: no TensorBoard events")
    assert len(run_folder(save).joinpath("metrics.jsonl").read_text().splitlines()) == 2
    # how often something is logged is of no consequence for the rest
    found = outcome(save)
    assert found["options.json"].pop("tb_freq") == 1
    expected["options.json"].pop("tb_freq")
    assert_same_outcome(found, expected)
