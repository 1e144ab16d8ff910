"""Fixtures that many tests share: a small teacher, a small data set, and ways to run the entry scripts."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import helper.errors
from dataset import shapes100
from helper.run import Run
from models import model_dict

# the same examples in every run
hypothesis.settings.register_profile("fixed", derandomize=True, database=None)
hypothesis.settings.load_profile("fixed")

REPOSITORY = Path(__file__).resolve().parent.parent
# images of each class, so that an epoch takes a fraction of a second
TRAIN_PER_CLASS, TEST_PER_CLASS = 1, 1
COSTLY_FIXTURES = ("test_distributed.py", "benchmarks/test_train_step.py")
LONGEST_WAIT = 120  # seconds for a process, on a machine that does other things, too

PAUSE = 0.3  # seconds that a batch lasts in a process that a signal is to meet in the middle of an epoch

# runs a script as `python SCRIPT ...` would, but with few images of each class, and slowly
SMALL_DATA = f"""
import runpy, sys, time
from dataset import loader, shapes100
shapes100.TRAIN_PER_CLASS, shapes100.TEST_PER_CLASS = {TRAIN_PER_CLASS}, {TEST_PER_CLASS}
pause, batch = float(sys.argv[1]), loader.MemoryLoader._batch
def slow_batch(*arguments):
    time.sleep(pause)
    return batch(*arguments)
loader.MemoryLoader._batch = slow_batch
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def pytest_configure(config: pytest.Config) -> None:
    """Keep the summary short: tensorboard_logger's generated code warns about itself on every import."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:tensorboard_logger.*")


class Scheduling(LoadScopeScheduling):
    """Gives files whose fixtures are costly to one worker, and the tests of others one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file.endswith(COSTLY_FIXTURES) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Choose who runs which test where several processes do."""
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread for torch here and in child processes: many threads of several workers wait for one another."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """No test leaves signals ignored, as a command that was stopped does, to the next one's child processes."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a network with random weights as a teacher checkpoint, and returns the file."""

    def make(model: str = "resnet8", classes: int = 100, folder: str = "", seed: int = 0) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = model_dict[model](num_classes=classes)
        path = tmp_path_factory.mktemp("teachers") / (folder or f"{model}_vanilla") / "ckpt_epoch_1.pth"
        path.parent.mkdir()
        torch.save({"epoch": 1, "model": network.state_dict()}, path)
        return path

    return make


@pytest.fixture(scope="session")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    """The checkpoint of a resnet8 for 100 classes with random weights. Tests must not change it."""
    return make_teacher()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of child processes: one thread, no data folder of the user's, no way to the network."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {name: value for name, value in os.environ.items() if name not in ("KD_DATA", "no_proxy", "NO_PROXY")}
    return {**kept, **proxies, "OMP_NUM_THREADS": "1"}


_small_split = functools.cache(shapes100.draw)


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images in each class of shapes100, as `launch(..., small=True)` has them."""
    monkeypatch.setattr(shapes100, "TRAIN_PER_CLASS", TRAIN_PER_CLASS)
    monkeypatch.setattr(shapes100, "TEST_PER_CLASS", TEST_PER_CLASS)
    monkeypatch.setattr(shapes100, "draw", _small_split)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    small_data: None,
) -> Callable[..., Result]:
    """A function that runs a script's `main` in this process: `call("train_student", "--epochs", 0)`.

    The working folder is an empty one, so that nothing can land in the repository.
    """
    for name in ("KD_DATA", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))

    def run(script: str, *arguments: object) -> Result:
        module = importlib.import_module(script)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        monkeypatch.setitem(helper.errors._resume, "command", "")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                code = helper.errors.run_command(module.main)
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        out, err = capsys.readouterr()
        # pytest keeps warnings to itself, a process prints them
        warned = [w for w in caught if issubclass(w.category, UserWarning)]
        return Result(code, out, "".join(f"{w.category.__name__}: {w.message}\n" for w in warned) + err)

    return run


def _command(
    script: str, arguments: tuple[object, ...], small: bool, pause: float = 0, processes: int = 1
) -> list[str]:
    start = [sys.executable, "-c", SMALL_DATA, str(pause)] if small else [sys.executable]
    if processes > 1:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--no-python")
        start = [sys.executable, *torchrun, *start]
    return [*start, f"{script}.py", *map(str, arguments)]


@pytest.fixture(scope="session")
def launch(environment: dict[str, str]) -> Callable[..., Result]:
    """A function that runs a script as a process of its own and waits for it.

    `small=True` gives it the small data set; further keywords go to `subprocess.run`, `env` adding to the environment.
    """

    def run(script: str, *arguments: object, small: bool = False, env: dict | None = None, **options) -> Result:
        done = subprocess.run(
            _command(script, arguments, small),
            cwd=REPOSITORY,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=LONGEST_WAIT,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def launch_together(environment: dict[str, str]) -> Callable[..., list[Result]]:
    """A function that runs a script as two processes that share its work, started as torchrun would start them."""

    def run(script: str, *arguments: object, small: bool = False) -> list[Result]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        started = [
            subprocess.Popen(
                _command(script, arguments, small),
                cwd=REPOSITORY,
                env={**environment, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            words = [process.communicate(timeout=LONGEST_WAIT) for process in started]
        finally:
            for process in started:
                process.kill()
        return [Result(process.returncode, *said) for process, said in zip(started, words, strict=True)]

    return run


@pytest.fixture
def stop_when(environment: dict[str, str]) -> Iterator[Callable[..., Result]]:
    """A function that starts a script on the small data set, sends it a signal once a condition holds, and waits.

    The condition is tested every few milliseconds; `delay` seconds pass between it and the signal. Each batch takes
    PAUSE seconds longer than it would. `processes` makes it several; `whom` gives the one that gets the signal, from
    that of the process that was started.
    """
    started: list[subprocess.Popen] = []

    def run(
        condition: Callable[[], bool],
        number: signal.Signals,
        script: str,
        *arguments: object,
        delay: float = 0,
        processes: int = 1,
        whom: Callable[[int], int] = lambda pid: pid,
    ) -> Result:
        process = subprocess.Popen(
            _command(script, arguments, small=True, pause=PAUSE, processes=processes),
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        deadline = time.monotonic() + LONGEST_WAIT
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        assert process.poll() is None, f"it ended before the signal: {process.communicate()}"
        os.kill(whom(process.pid), number)
        out, err = process.communicate(timeout=LONGEST_WAIT)
        return Result(process.returncode, out, err)

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def killed_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that calls a command, which is killed once an epoch has ended."""
    end_epoch = Run.end_epoch

    def killed(self: Run, *given: object) -> None:
        end_epoch(self, *given)
        raise Killed

    def run(command: Callable[..., object], *arguments: object, **options: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "end_epoch", killed)
            with pytest.raises(Killed):
                command(*arguments, **options)

    return run


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors in containers and data classes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])


class CudaGraphs:
    """Stands for compiled code with CUDA graphs: their results and gradients are lost when another step begins.

    Attributes:
        options: what each compilation was asked for.
        begun: steps so far.
    """

    def __init__(self) -> None:
        self.options: list[dict] = []
        self.begun = 0
        self._lost: list[torch.Tensor] = []
        self._parameters: list[torch.nn.Parameter] = []

    def compile(self, function: Callable, **options: object) -> Callable:
        """What stands for torch.compile: the function, whose results do not last."""
        own = getattr(function, "__self__", function)
        if not isinstance(own, torch.nn.Module):  # a trial of the compiler
            return function
        self._parameters += own.parameters()
        self.options.append(options)

        def run(*arguments: object) -> object:
            result = function(*arguments)
            kept = {t.untyped_storage().data_ptr() for t in _tensors([arguments, *own.state_dict().values()])}
            self._lost += [t for t in _tensors(result) if t.untyped_storage().data_ptr() not in kept]
            return result

        return run

    def begin(self) -> None:
        """What stands for torch.compiler.cudagraph_mark_step_begin."""
        self.begun += 1
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        for tensor in (*self._lost, *gradients):
            tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 0)
        self._lost.clear()


@pytest.fixture
def cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    """What torch.compile is for a test."""
    graphs = CudaGraphs()
    monkeypatch.setattr(torch, "compile", graphs.compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", graphs.begin)
    return graphs


@pytest.fixture(scope="session")
def assert_one_line_error() -> Callable[..., str]:
    """A function that checks how a command failed, and returns the text of its error.

    Args:
        result: of the command.
        code: its exit code.
        save_folder: must hold no run folder.
        words: that the error has to name.
    """

    def check(result: Result, *words: object, code: int = 2, save_folder: Path | None = None) -> str:
        assert result.code == code, f"exit code {result.code}\n{result.out}{result.err}"
        assert "Traceback" not in result.out + result.err
        lines = result.err.splitlines()
        assert [line for line in lines if not line.startswith("note: ")] == lines[-1:], result.err
        assert lines[-1].startswith("error: "), result.err
        for word in words:
            assert str(word) in lines[-1]
        if save_folder is not None:
            left = [path for kind in ("models", "student_model") for path in (save_folder / kind).glob("*")]
            assert not left, f"a run folder is left behind: {left}"
        return lines[-1].removeprefix("error: ")

    return check


@pytest.fixture(scope="session")
def files_below() -> Callable[[Path], dict[str, bytes]]:
    """A function that reads all files below a folder: relative name -> content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
