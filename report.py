"""Compare runs: a table, a page, figures; `python report.py --help` lists the flags."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dataset import dataset_dict
from helper.checkpoint import nearest, write_file
from helper.errors import UserError, run_command
from helper.flags import OneLineParser, without_training
from helper.gallery import EACH, KINDS, NETWORKS, TOGETHER, Drawn, draw_all, draw_curves
from helper.network_figures import Laboratory, check_classes
from helper.page import render_page
from helper.results import SELECTIONS, Runs, read_runs
from helper.tables import FORMATS, table, unfinished_lines
from helper.teacher import check_teacher_file

WATCH_SECONDS = 10.0
OVER = "kd"  # method that gains are measured from
FIGURES = (
    "curves: test accuracy by epoch. parameters, seconds: accuracy against the student's size and the time of "
    "training. temperature, label_in_topk, sort_changed: what runs recorded under these names, by epoch. weights: "
    "constant matrices of the loss. tsne: pooled test features of some classes. correlation: how far correlations of "
    "logits differ from the teacher's. similarity: cosines between rows of the classifier. reliability: accuracy by "
    "confidence. strength: sum of alpha of right and wrong answers, where the run has a log prior. moved: how far a "
    "transform that permutes the teacher's logits moves the label. Those from networks are of each setting's first "
    "trial."
)
CLEAR = "\033[H\033[J"  # a terminal's screen


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of classes such as 0,10,20") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="report.py", description="Compare the runs of a save folder.", allow_abbrev=False)
    group = parser.add_argument_group("runs")
    group.add_argument("--save_folder", type=Path, default=Path("save"), metavar="DIR", help="where runs are (save)")
    group.add_argument("--dataset", default="cifar100", choices=list(dataset_dict), help="only runs on this one")
    group.add_argument(
        "--runs", type=_words, metavar="A,B", help="only runs whose folder's name fits a pattern such as '*_kd_*'"
    )
    group.add_argument("--select", default="last", choices=list(SELECTIONS), help="accuracy of which epoch (last)")
    group.add_argument("--over", metavar="METHOD", help=f"method that gains are measured from ({OVER})")
    group = parser.add_argument_group("table")
    group.add_argument(
        "--format", default="text", choices=[*FORMATS, "html"], help="html: one page with curves and all runs (text)"
    )
    group.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of the terminal")
    group.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"do it again and again, with runs that are at work; Ctrl-C ends it ({WATCH_SECONDS:g})",
    )
    _add_figures(parser)
    return parser


def _add_figures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("figures", FIGURES)
    group.add_argument("--figure", type=Path, metavar="FILE", help="draw the learning curves (.png, .pdf or .svg)")
    group.add_argument(
        "--figures", type=Path, metavar="DIR", help="draw all figures that apply there, as PNG and PDF; html shows them"
    )
    group.add_argument(
        "--draw",
        type=_words,
        metavar="A,B",
        help=f"which ones (all): {', '.join([*TOGETHER, *EACH])}; from checkpoints and data: {', '.join(NETWORKS)}",
    )
    group.add_argument("--classes", type=_numbers, metavar="N,N", help="of tsne (ten that are spread over all)")
    group.add_argument("--path_t", metavar="FILE", help="the teacher's checkpoint (where each run had it)")
    group.add_argument(
        "--data_folder", default=os.environ.get("KD_DATA", "./data"), metavar="DIR", help="where data sets lie"
    )
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    without_training(parser)
    # and of the flags of data sets, which are those of each run
    of_data = ("image_size", "mean", "std", "memory_budget", "skip_bad_images", "num_workers")
    parser.set_defaults(**dict.fromkeys(of_data), precision="auto", quiet=True, seed=0, notes=[])


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Args:
        arguments: without the script's name.

    Raises:
        UserError: the first thing that is wrong.
    """
    opt = _parser().parse_args(arguments)
    opt.page = opt.format == "html"
    if opt.page and not opt.out:
        raise UserError("--format html needs --out FILE")
    if opt.watch is not None and not 0.1 <= opt.watch < float("inf"):
        raise UserError(f"--watch {opt.watch} must be at least 0.1 seconds")
    if opt.watch is not None and (opt.figure or opt.figures):
        raise UserError("--watch goes without --figure and --figures")
    for flag in ("draw", "classes", "path_t"):
        if getattr(opt, flag) is not None and not opt.figures:
            raise UserError(f"--{flag} has no effect without --figures")
    for kind in opt.draw or ():
        if kind not in KINDS:
            raise UserError(f"unknown figure {kind} (--draw); {nearest(kind, list(KINDS))}")
    if opt.classes:
        check_classes(opt.classes, opt.dataset, opt.data_folder)
    if opt.path_t is not None:
        check_teacher_file(opt.path_t)
    if not opt.save_folder.is_dir() and opt.watch is None:
        raise UserError(f"{opt.save_folder} is no folder; name the one with the runs with --save_folder")
    return opt


def render(opt: argparse.Namespace, runs: Runs, drawn: Sequence[Drawn]) -> str:
    """The table or page of the options.

    Args:
        opt: of `read_options`.
        runs: at least one finished or running.
        drawn: figures for the page.
    """
    lines, notes = table(runs.cells, opt.select, opt.over or OVER)
    if opt.page:
        return render_page(runs, lines, notes, drawn)
    if opt.watch is not None:
        notes = [*notes, *unfinished_lines(runs.running), *runs.notes]
    return FORMATS[opt.format](lines, notes)


def put(opt: argparse.Namespace, text: str) -> None:
    """Print the text, or write it to the file of the options.

    Raises:
        UserError: the file's folder cannot be made.
        RunError: the file cannot be written.
    """
    if not opt.out:
        print(text, end="", flush=True)
        return
    try:
        opt.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {opt.out} ({error.strerror}); name another file with --out") from None
    write_file(opt.out, text.encode())


def watch(opt: argparse.Namespace) -> None:
    """Read the runs and show them, until a signal ends it or nobody reads on."""
    screen = CLEAR if sys.stdout.isatty() else ""
    while True:
        try:
            runs = read_runs(opt.save_folder, opt.dataset, opt.runs or ("*",))
            found = bool(runs.cells or runs.running)
            text = render(opt, runs, ()) if found else f"no run on {opt.dataset} below {opt.save_folder} yet\n"
            state = f"{len(runs.cells)} settings, {len(runs.running)} unfinished runs"
        except UserError as error:  # a run that is being deleted, for instance
            found, text, state = False, f"{error}\n", str(error)
        now = f"{datetime.now():%H:%M:%S}"
        if opt.out:
            if found:
                put(opt, text)
            print(f"{now} {opt.out}: {state}", flush=True)
        else:
            print(f"{screen}{now}, every {opt.watch:g} s, Ctrl-C ends it\n{text}", end="", flush=True)
        time.sleep(opt.watch)


def main() -> None:
    """Read the command line, draw the figures, print or write the table or the page."""
    opt = read_options(sys.argv[1:])
    if opt.watch is not None:
        watch(opt)
    runs = read_runs(opt.save_folder, opt.dataset, opt.runs or ("*",))
    if runs.running and not opt.page:
        example = runs.running[0].folder
        print(f"note: unfinished runs, left out: {len(runs.running)}, {example} for instance", file=sys.stderr)
    if not runs.cells:
        raise UserError(
            f"no finished run on {opt.dataset} below {opt.save_folder}; see --save_folder, --dataset and --runs"
        )
    methods = {cell.method for cell in runs.cells}
    if opt.over and opt.over not in methods:
        raise UserError(f"--over {opt.over}: no finished run there has this method; there are {', '.join(methods)}")
    drawn: list[Drawn] = []
    if opt.figures:
        laboratory = Laboratory(opt, best=opt.select == "best")
        drawn, notes = draw_all(runs.cells, opt.draw or KINDS, opt.figures, laboratory, opt.select)
        opt.notes += notes
    for note in [*runs.notes, *opt.notes]:
        print(f"note: {note}", file=sys.stderr)
    if opt.figure:
        draw_curves(runs.cells, opt.figure)
    put(opt, render(opt, runs, drawn))
    for what, where in (("page" if opt.page else "table", opt.out), ("learning curves", opt.figure)):
        if where:
            print(f"{what} in {where}")
    if opt.figures:
        print(f"{len(drawn)} figures in {opt.figures}")


if __name__ == "__main__":
    sys.exit(run_command(main))
