"""Run folders as training leaves them, without training."""

import json
from pathlib import Path


def make_run(folder: Path, trial: str, accuracies: list[float], finished: bool = True, **options) -> Path:
    """A run with one test accuracy per epoch; returns its folder."""
    folder.mkdir(parents=True)
    known = {"dataset": "cifar100", "epochs": len(accuracies), "trial": trial, "seed": int(trial), "device": "cpu"}
    (folder / "options.json").write_text(json.dumps({**known, **options}))
    rows = [{"epoch": i, "train_loss": 1 / i, "test_acc": acc} for i, acc in enumerate(accuracies, start=1)]
    write_rows(folder, rows)
    if finished:
        summary = {"test_acc": accuracies[-1], "best_acc": max(accuracies), "images_per_second": 100.0}
        add_to_summary(folder, {**summary, "teacher_acc": 72.3, "params": 78000, "seconds": 60.0})
    return folder


def write_rows(folder: Path, rows: list[dict]) -> None:
    """Put these rows into metrics.jsonl."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_to_summary(folder: Path, figures: dict) -> None:
    """Add figures to summary.json, and make it where there is none."""
    path = folder / "summary.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **figures}))


def three_methods(folder: Path) -> None:
    """kd, ldrld and labels, three trials each, of resnet56 -> resnet20."""
    pair = {"model_t": "resnet56", "model_s": "resnet20", "r": 1.0, "a": 1.0}
    for trial, (kd, ldrld, labels) in enumerate([(60, 62, 50), (61, 64, 52), (62, 63, 51)], start=1):
        make_run(folder / "student_model" / f"kd{trial}", str(trial), [kd + 1.0, kd], distill="kd", b=None, **pair)
        make_run(folder / "student_model" / f"ld{trial}", str(trial), [1.0, ldrld], distill="ldrld", b=7.0, **pair)
        make_run(folder / "models" / f"plain{trial}", str(trial), [2.0, labels], model="resnet20")
