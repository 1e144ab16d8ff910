"""What the README says of the code is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from image_trees import make_folder

from distiller_zoo.__main__ import method_table, transform_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_method_table_is_what_the_registry_gives():
    for table in (method_table(), transform_table()):
        assert table in README, "paste the output of: python -m distiller_zoo"


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"^[A-Z_]+$", README, re.MULTILINE)


def test_example_method_works_as_one_new_file(tmp_path, make_teacher):
    """The README's method, put into a copy of the project, is found, has its flags, trains and leaves no adapters."""
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    for name in ("crd", "dataset", "distiller_zoo", "helper", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_student.py", tmp_path)
    (tmp_path / "distiller_zoo" / "Cosine.py").write_text(example, encoding="utf-8")
    data = ["--dataset", "folder", "--data_folder", str(make_folder(tmp_path / "images")), "--num_workers", "0"]
    networks = ["--path_t", str(make_teacher(classes=3)), "--model_s", "resnet8", "--epochs", "1"]
    command = [sys.executable, "train_student.py", *data, *networks, "--distill", "cosine", "--power", "2", "-b", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "loss = 1·cls + 0·div + 1·kd" in done.stdout
    assert len(list(tmp_path.glob("save/student_model/*cosine_*power-2.0*/summary.json"))) == 1

    refused = subprocess.run([*command, "--power", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("cosine: --power 0.0 must be above 0")
