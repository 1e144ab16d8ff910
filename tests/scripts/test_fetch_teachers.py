"""scripts/fetch_pretrained_teachers.sh against servers on this machine.

The cases about transfers run a copy of the script in a folder of its own, whose `.venv/bin/python` is a stand-in that
compares files: the real check takes seconds. `test_real_check` runs the script in its place, with the real check.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from models import model_dict

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fetch_pretrained_teachers.sh"
PAGE = b"<!DOCTYPE html>\n<html><body>This page has moved.</body></html>\n"
# What the script and the stand-in call; each test puts the downloaders it wants beside them.
COMMANDS = ("sh", "env", "cat", "cmp", "dd", "dirname", "grep", "mkdir", "mktemp", "mv", "rm", "sed", "sleep", "tail")
STAND_IN = """#!/bin/sh
[ "$1" = -c ] && exit 0
cmp -s "$4" "$GOOD/$3" && exit 0
echo "error: $4 is not a torch checkpoint" >&2
exit 2
"""


class Server:
    """A file server that can misbehave.

    `files` maps the name of a teacher to content. `script` maps it to what to do at its next requests: "cut" (close
    after half), "stall" (stop after half), "no range" (always send all), "cut, no range" or a status code; without an
    entry it behaves. `requests` lists (name, Range header) of what was asked.
    """

    def __init__(self):
        self.files, self.script, self.requests = {}, {}, []
        self.end = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/repo"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def answer(self, request):
        name = re.fullmatch(r"/repo/(\w+)_vanilla/ckpt_epoch_240\.pth", request.path)[1]
        asked = request.headers.get("Range")
        self.requests.append((name, asked))
        plan = self.script.get(name)
        act = plan.pop(0) if plan else ""
        if name not in self.files or isinstance(act, int):
            request.send_error(act or 404)
            return
        content = self.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and "no range" not in act else 0
        if start and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if "cut" in act or act == "stall" else body)
        if act == "stall":
            request.wfile.flush()
            self.end.wait(30)

    def close(self):
        self.end.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def environment(save, url, **settings):
    """The variables for a run, with none of this process's own that could steer a transfer."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return kept | {"SAVE_FOLDER": str(save), "TEACHER_URL": url, "RETRY_PAUSE": "0", **settings}


class Desk:
    """A copy of the script with the stand-in check, run with a PATH that holds the given downloaders only."""

    def __init__(self, folder, server, *tools):
        self.folder, self.server, self.tools = folder, server, tools
        self.path, self.good, self.save = folder / "bin", folder / "good", folder / "my save"
        for sub in (self.path, self.good, folder / "scripts", folder / ".venv" / "bin", folder / "elsewhere"):
            sub.mkdir(parents=True)
        for name in (*COMMANDS, *tools):
            (self.path / name).symlink_to(shutil.which(name))
        self.script = Path(shutil.copy(SCRIPT, folder / "scripts"))
        python = folder / ".venv" / "bin" / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)

    def publish(self, name, *plan):
        """Let the server have a good file of this teacher, and a plan for its answers."""
        content = f"weights of {name} ".encode() + os.urandom(20_000)
        (self.good / name).write_bytes(content)
        self.server.files[name] = content
        self.server.script[name] = list(plan)
        return content

    def target(self, name, suffix=""):
        return self.save / "models" / f"{name}_vanilla" / f"ckpt_epoch_240.pth{suffix}"

    def put(self, name, content, suffix=""):
        target = self.target(name, suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def settings(self, **settings):
        own = {"PATH": str(self.path), "GOOD": str(self.good), "TEACHERS": "resnet56"}
        return environment(self.save, self.server.url, **own | settings)

    def run(self, *arguments, **settings):
        return subprocess.run(
            ["sh", self.script, *arguments],
            cwd=self.folder / "elsewhere",
            env=self.settings(**settings),
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(params=["curl", "wget"])
def desk(request, tmp_path, server):
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return Desk(tmp_path, server, request.param)


@pytest.fixture
def any_desk(tmp_path, server):
    tools = [tool for tool in ("curl", "wget") if shutil.which(tool)]
    if not tools:
        pytest.skip("neither curl nor wget is installed")
    return Desk(tmp_path, server, tools[0])


def test_fetches_then_skips(desk):
    names = ["wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"]
    content = {name: desk.publish(name) for name in names}
    first = desk.run(TEACHERS="")
    assert (first.returncode, first.stderr) == (0, "")
    assert [line.split(",")[0] for line in first.stdout.splitlines()] == [f"{name}: fetched" for name in names]
    assert desk.server.requests == [(name, None) for name in names]
    assert {name: desk.target(name).read_bytes() for name in names} == content
    assert len([path for path in desk.save.rglob("*") if path.is_file()]) == len(names)
    assert not list((desk.folder / "elsewhere").iterdir())

    second = desk.run(TEACHERS="vgg13 resnet56")
    assert second.returncode == 0
    assert [line.split(",")[0] for line in second.stdout.splitlines()] == [
        "vgg13: already there",
        "resnet56: already there",
    ]
    assert len(desk.server.requests) == len(names)


def test_goes_on_from_a_part(desk):
    content = desk.publish("resnet56")
    desk.put("resnet56", content[:7000], ".part")
    assert desk.run().returncode == 0
    assert desk.server.requests == [("resnet56", "bytes=7000-")]
    assert desk.target("resnet56").read_bytes() == content
    assert not desk.target("resnet56", ".part").exists()


@pytest.mark.parametrize("have", [7000, None, 30_000], ids=["short", "complete", "too long"])
def test_part_that_does_not_fit_is_fetched_anew(desk, have):
    content = desk.publish("resnet56")
    desk.put("resnet56", b"?" * (have or len(content)), ".part")
    assert desk.run().returncode == 0
    assert desk.target("resnet56").read_bytes() == content
    assert desk.server.requests[-1] == ("resnet56", None)


def test_complete_part_is_only_checked(desk):
    content = desk.publish("resnet56")
    desk.put("resnet56", content, ".part")
    assert desk.run().returncode == 0
    assert desk.server.requests == [("resnet56", f"bytes={len(content)}-")]
    assert desk.target("resnet56").read_bytes() == content


@pytest.mark.parametrize("part", [b"?" * 7000, b"right"], ids=["other content", "right content"])
def test_server_without_ranges(desk, part):
    content = desk.publish("resnet56", *["no range"] * 9)
    desk.put("resnet56", content[:7000] if part == b"right" else part, ".part")
    assert desk.run().returncode == 0
    assert desk.target("resnet56").read_bytes() == content


def test_server_without_ranges_that_always_breaks_off(desk):
    desk.publish("resnet56", *["cut, no range"] * 50)
    result = desk.run(RETRIES="2")
    assert result.returncode == 1
    assert "resnet56: FAILED, the transfer broke off" in result.stdout
    assert len(desk.server.requests) <= 4
    assert not desk.target("resnet56").exists()


def test_broken_off_then_resumed(desk):
    content = desk.publish("resnet56", "cut", 503)
    assert desk.run().returncode == 0
    half = f"bytes={len(content) // 2}-"
    assert desk.server.requests == [("resnet56", None), ("resnet56", half), ("resnet56", half)]
    assert desk.target("resnet56").read_bytes() == content


def test_stalled_transfer_is_given_up_and_resumed(desk):
    content = desk.publish("resnet56", "stall")
    assert desk.run(TIMEOUT="1").returncode == 0
    assert [asked for _, asked in desk.server.requests] == [None, f"bytes={len(content) // 2}-"]
    assert desk.target("resnet56").read_bytes() == content


def test_missing_file_and_web_page(desk):
    content = desk.publish("vgg13")
    desk.server.files["wrn_40_2"] = PAGE
    result = desk.run(TEACHERS="resnet56 wrn_40_2 vgg13", RETRY_PAUSE="100")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "resnet56: FAILED, the server answered 404"
    assert lines[1] == "wrn_40_2: FAILED, rejected what the server sent: a web page (HTML), not a checkpoint"
    assert lines[2] == f"vgg13: fetched, {desk.target('vgg13')}"
    assert len(lines) == 3
    assert [name for name, _ in desk.server.requests] == ["resnet56", "wrn_40_2", "vgg13"]  # neither gets a second try
    assert [path.read_bytes() for path in desk.save.rglob("*") if path.is_file()] == [content]
    assert "Not fetched: resnet56 wrn_40_2." in result.stderr
    for hint in ("train_teacher.py --model wrn_40_2", str(desk.target("resnet56")), "TEACHER_URL=", "--path_t"):
        assert hint in result.stderr


def test_server_error_is_tried_again_but_not_for_ever(desk):
    desk.publish("resnet56", *[500] * 9)
    result = desk.run(RETRIES="2")
    assert result.returncode == 1
    assert "resnet56: FAILED, the server answered 500" in result.stdout
    assert len(desk.server.requests) == 3


def test_no_server(desk):
    content = desk.publish("vgg13")
    desk.put("vgg13", content)
    desk.put("resnet56", b"half", ".part")
    desk.server.close()
    result = desk.run(TEACHERS="resnet56 wrn_40_2 vgg13", RETRIES="1")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"resnet56: FAILED, no answer from {desk.server.url} (")
    assert lines[1] == "wrn_40_2: FAILED, not tried since the server does not answer"
    assert lines[2].startswith("vgg13: already there")
    assert "Not fetched: resnet56 wrn_40_2." in result.stderr
    assert desk.target("resnet56", ".part").read_bytes() == b"half"


def test_bad_target_stays_until_there_is_a_better_one(desk):
    desk.put("resnet56", b"broken")
    result = desk.run()
    assert result.returncode == 1
    assert "answered 404; and what is there is bad: the file is not a torch checkpoint" in result.stdout
    assert desk.target("resnet56").read_bytes() == b"broken"

    content = desk.publish("resnet56")
    result = desk.run()
    assert result.returncode == 0
    assert result.stdout.startswith("resnet56: replaced a bad file (kept as ")
    assert desk.target("resnet56").read_bytes() == content
    assert desk.target("resnet56", ".bad").read_bytes() == b"broken"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk(desk):
    desk.publish("resnet56")
    part = desk.target("resnet56", ".part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    result = desk.run()
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == f"error: cannot write {part}: the disk is full or the folder is not writable\n"


def test_folder_that_cannot_be_made(any_desk):
    any_desk.save.write_text("a file where the folder should be")
    result = any_desk.run()
    assert result.returncode == 3
    assert result.stderr == f"error: cannot write into {any_desk.target('resnet56').parent}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False], ids=["group", "shell only"])
def test_signal_stops_at_once_and_keeps_the_part(desk, number, group):
    content = desk.publish("resnet56", "stall")
    part = desk.target("resnet56", ".part")
    # A shell cannot trap what its parent ignores, as some runners in the background do with SIGINT.
    reset = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", reset, "sh", desk.script],
        env=desk.settings() | {"PATH": f"{desk.path}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.02)
    begin = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=20)  # returns only when the downloader, too, has let go of the pipe
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number
    # Where the downloader got the signal too, the shell may say so first.
    assert errors.removeprefix("Terminated\n") == "stopped; run it again to go on\n"
    kept = part.read_bytes()  # less than was sent, by what the downloader had not written yet
    assert len(kept) > 0
    assert content.startswith(kept)
    assert not desk.target("resnet56").exists()


def test_no_downloader(tmp_path, server):
    desk = Desk(tmp_path, server)
    result = desk.run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: neither curl nor wget is installed; install one of them\n"


def test_check_that_cannot_run_keeps_the_files(any_desk):
    content = any_desk.publish("resnet56")
    any_desk.put("resnet56", content)
    python = any_desk.folder / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\n[ \"$1\" = -c ] && exit 0\necho 'ImportError: libtorch' >&2\nexit 1\n")
    result = any_desk.run()
    assert result.returncode == 3
    assert result.stderr.startswith("error: cannot check ")
    assert result.stderr.endswith("ImportError: libtorch\n")
    assert any_desk.target("resnet56").read_bytes() == content

    python.write_text("#!/bin/sh\nexit 1\n")
    result = any_desk.run()
    assert result.returncode == 2
    assert "no torch" in result.stderr
    python.unlink()
    result = any_desk.run(PYTHON="no-such-python")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no-such-python cannot check the files")
    assert not any_desk.server.requests


def test_usage_and_bad_settings(any_desk):
    for flag in ("-h", "--help"):
        result = any_desk.run(flag)
        assert (result.returncode, result.stderr) == (0, "")
        assert "TEACHER_URL" in result.stdout
    for arguments, settings, message in (
        (["resnet56"], {}, "unknown argument 'resnet56'"),
        ([], {"TEACHERS": "resnet56 resnet57"}, "no published teacher 'resnet57'; known: wrn_40_2 resnet56"),
        ([], {"TEACHERS": "*"}, "no published teacher '*'"),
        ([], {"RETRIES": "many"}, "whole numbers, not 'many'"),
    ):
        result = any_desk.run(*arguments, **settings)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.skipif(not (shutil.which("curl") or shutil.which("wget")), reason="neither curl nor wget is installed")
def test_real_check(tmp_path, server):
    save, canary = tmp_path / "save", tmp_path / "canary"
    folder = {name: save / "models" / f"{name}_vanilla" for name in ("resnet56", "wrn_40_2", "vgg13")}
    torch.save(
        {"epoch": 240, "model": model_dict["resnet56"](num_classes=100).state_dict(), "accuracy": 1.0},
        tmp_path / "good",
    )
    torch.save({"epoch": 240, "model": Evil(canary)}, tmp_path / "evil")
    good = (tmp_path / "good").read_bytes()
    server.files = {"resnet56": good, "wrn_40_2": good, "vgg13": (tmp_path / "evil").read_bytes()}
    folder["resnet56"].mkdir(parents=True)
    (folder["resnet56"] / "ckpt_epoch_240.pth").write_bytes(good[: len(good) // 2])

    names = "resnet56 wrn_40_2 vgg13"
    settings = environment(save, server.url, TEACHERS=names, PYTHON=sys.executable, OMP_NUM_THREADS="1")
    result = subprocess.run(["sh", SCRIPT], cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    replaced, other, evil = result.stdout.splitlines()
    assert replaced.startswith("resnet56: replaced a bad file")
    assert other.startswith(
        "wrn_40_2: FAILED, rejected what the server sent: the weights in the file do not fit wrn_40_2"
    )
    assert "resnet56" in other
    assert evil.startswith("vgg13: FAILED, rejected what the server sent: the file holds objects that could run code")
    assert not canary.exists()
    assert (folder["resnet56"] / "ckpt_epoch_240.pth").read_bytes() == good
    assert not [*folder["wrn_40_2"].iterdir(), *folder["vgg13"].iterdir()]
    assert "Not fetched: wrn_40_2 vgg13." in result.stderr
