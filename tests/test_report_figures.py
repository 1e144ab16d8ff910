"""report.py --figures: what is drawn, what is left out and why."""

import json
import struct
from argparse import Namespace

import numpy as np
import pytest
import torch
from made_runs import add_to_summary, make_run, write_rows

from distiller_zoo import Shapes, registry
from distiller_zoo.LDRLD import adaptive_decay_weights
from helper import figures, network_figures
from helper.gallery import KINDS
from helper.network_figures import Outputs
from helper.plots import DPI, WIDTH, one_axes, style
from helper.results import Record, read_runs

RECORDED = {"temperature": 3.0, "label_in_topk": 0.5, "sort_changed": 0.25}


@pytest.fixture
def save_folder(tmp_path, make_teacher):
    """A student with all that a figure can show, and a plain run with nothing but accuracies."""
    student, teacher = make_teacher(seed=1), make_teacher(seed=2)
    options = {"dataset": "shapes100", "model_s": "resnet8", "model_t": "resnet8", "path_t": str(teacher), "k": 3}
    options |= {"distill": "ldrld", "r": 1.0, "a": 1.0, "b": 1.0, "kd_T": 4.0, "transforms": {"sort": {}}}
    run = make_run(tmp_path / "student_model" / "all", "1", [10.0, 20.0], **options)
    write_rows(run, [{"epoch": i, "train_loss": 1.0, "test_acc": 10.0 * i, **RECORDED} for i in (1, 2)])
    add_to_summary(run, {"log_prior_s": -1.22})
    (run / "resnet8_last.pth").write_bytes(student.read_bytes())
    make_run(tmp_path / "models" / "plain", "1", [5.0, 6.0], dataset="shapes100", model="resnet8")
    return tmp_path


def pixels(path):
    """Width and height of a PNG."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_all_figures(save_folder, call):
    """Every kind is drawn once as PNG and PDF of a column's width; the plain run has no checkpoint, as a note says."""
    folder = save_folder / "figures"
    words = ["--save_folder", save_folder, "--dataset", "shapes100", "--figures", folder, "--classes", "0,1,2,50,99"]
    done = call("report", *words)
    assert done.code == 0, done.err
    images = sorted(folder.glob("*.png"))
    assert {path.name.split("_resnet8")[0].removesuffix(".png") for path in images} == set(KINDS)
    assert len(images) == len(KINDS)
    assert {pixels(path)[0] for path in images} == {round(WIDTH * DPI)}
    assert all(path.with_suffix(".pdf").read_bytes().startswith(b"%PDF") for path in images)
    assert len(list(folder.iterdir())) == 2 * len(images)
    notes = [line for line in done.err.splitlines() if "left out" in line]
    assert {note.split()[1] for note in notes} == {"tsne", "similarity", "reliability"}
    assert all("resnet8_last.pth does not exist" in note for note in notes)
    assert f"{len(images)} figures in {folder}" in done.out


def test_figures_are_the_same_again(save_folder, call):
    contents = []
    for name in ("first", "second"):
        words = ["--dataset", "shapes100", "--figures", save_folder / name, "--draw", "curves,tsne"]
        assert call("report", "--save_folder", save_folder, *words).code == 0
        contents.append({path.name: path.read_bytes() for path in (save_folder / name).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path_t": "nowhere/resnet8/t.pth"}, "no teacher at nowhere/resnet8/t.pth"),
        ({"teacher_sha256": "0" * 64}, "is not the teacher that the run had"),
    ],
)
def test_without_its_teacher_a_figure_is_left_out(save_folder, call, change, reason):
    path = save_folder / "student_model" / "all" / "options.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    words = ["--dataset", "shapes100", "--figures", save_folder / "f", "--draw", "correlation,moved,weights"]
    done = call("report", "--save_folder", save_folder, *words)
    assert done.code == 0
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("note: ") and reason in line for line in lines)
    assert "1 figures in" in done.out


def test_what_no_run_has_is_left_out(tmp_path, call):
    make_run(tmp_path / "models" / "plain", "1", [5.0], dataset="shapes100", model="resnet8")
    words = ["--dataset", "shapes100", "--figures", tmp_path / "f", "--draw", "curves,temperature,weights,moved"]
    done = call("report", "--save_folder", tmp_path, *words)
    assert done.code == 0
    kinds = ("temperature", "weights", "moved")
    assert done.err.splitlines() == [f"note: {kind} is left out: no run has what it shows" for kind in kinds]
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["curves.pdf", "curves.png"]


def test_a_folder_that_cannot_be_made(save_folder, call, assert_one_line_error):
    (save_folder / "file").touch()
    words = ["--dataset", "shapes100", "--figures", save_folder / "file", "--draw", "curves"]
    assert_one_line_error(call("report", "--save_folder", save_folder, *words), "cannot draw", save_folder / "file")


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--data_folder", "nowhere"], "--draw chooses figures that need no data"), (["--device", "abacus"], "--device")],
)
def test_without_data_or_device_it_ends(save_folder, call, assert_one_line_error, words, reason):
    path = save_folder / "student_model" / "all" / "options.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "cifar100"}))
    words = ["--figures", save_folder / "f", "--draw", "tsne,strength", *words]
    assert_one_line_error(call("report", "--save_folder", save_folder, *words), reason)


def test_curves_are_means_over_trials(tmp_path):
    for trial, values in (("1", [10.0, 20.0]), ("2", [30.0, 60.0])):
        make_run(tmp_path / "models" / trial, trial, values, model="resnet8")
    (cell,) = read_runs(tmp_path, "cifar100").cells
    (line,) = figures.learning_curves([cell]).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 20], [2, 40]]
    assert figures.mean_curve(cell, "temperature") == []
    assert figures.recorded([cell], "temperature") is None


def test_recorded_shares_are_in_percent(save_folder):
    cells = read_runs(save_folder, "shapes100").cells
    (line,) = figures.recorded(cells, "label_in_topk").axes[0].lines
    assert line.get_ydata().tolist() == [50, 50]


def test_points_of_accuracy(save_folder):
    cells = read_runs(save_folder, "shapes100").cells
    add_to_summary(cells[0].runs[0].folder, {"params": 78_000_000})
    cells = read_runs(save_folder, "shapes100").cells
    figure = figures.accuracy_parameters(cells, "best")
    assert figure.axes[0].get_xscale() == "log"  # they differ by a factor of a thousand
    assert sorted(float(line.get_ydata()[0]) for line in figure.axes[0].lines if line.get_label() == "_nolegend_")
    assert figures.accuracy_seconds(cells, "last").axes[0].get_ylabel() == "test accuracy, last epoch (%)"


def test_matrix_is_the_weight_of_each_pair(save_folder):
    cell = next(cell for cell in read_runs(save_folder, "shapes100").cells if cell.method.startswith("ldrld"))
    (image,) = figures.loss_matrices(cell).axes[0].images
    expected = np.zeros((3, 3), dtype=np.float32)
    expected[np.triu_indices(3, 1)] = adaptive_decay_weights(3).float()
    assert image.get_array().filled(0) == pytest.approx(expected + expected.T)


def test_label_among_the_largest_logits_is_recorded():
    method = registry["ldrld"].build(Shapes([], [], classes=4, samples=1), k=2)
    logits = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [1, 2, 3, 4]])
    found = method.test_figures(logits, torch.tensor([1, 2, 3]))
    assert found["label_in_topk"].tolist() == [1, 0, 1]


def subject(outputs, teacher, **options):
    """What a figure of networks reads, without networks."""
    run = Record(None, options, [], {"log_prior": 0.0})
    return Namespace(title="run", run=run, outputs=outputs, teacher=lambda split="test": teacher)


def test_moved_labels_are_counted():
    logits = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]])
    teacher = Outputs(logits, torch.tensor([0, 3, 1, 3]), "")
    moved = network_figures._moved_ranks(subject(None, teacher, transforms={"logit_stand": {}, "sort": {}}), teacher)
    assert moved.tolist() == [0, 3, 1, 0]
    with style():
        figure = network_figures.moved_labels(subject(None, teacher, transforms={"sort": {}}))
    assert "moved in 50.0 % of 4 training images, by 2.0 ranks" in figure.get_label()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [50, 0, 50]


@pytest.mark.parametrize("transforms", [{}, {"logit_stand": {}}, {"ekd": {}}])
def test_transforms_that_keep_the_order_move_nothing(transforms):
    teacher = Outputs(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5, "")
    assert network_figures.moved_labels(subject(None, teacher, transforms=transforms)) is None


def test_correlation_difference_against_numpy():
    student, teacher = np.random.default_rng(0).normal(size=(2, 50, 4))
    pair = [Outputs(torch.from_numpy(logits), torch.zeros(50), "") for logits in (student, teacher)]
    figure = network_figures.correlation(subject(*pair))
    expected = np.corrcoef(student.T) - np.corrcoef(teacher.T)
    assert np.asarray(figure.axes[0].images[0].get_array()) == pytest.approx(expected)
    assert f"{np.abs(expected).mean():.3f}" in figure.get_label()
    assert network_figures.correlation(subject(pair[0], None)) is None


def test_strength_is_the_sum_of_alpha():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    figure = network_figures.dirichlet_strength(subject(Outputs(logits, torch.tensor([0, 1, 0]), ""), None))
    median = np.exp(2) + 1 + 2  # e^z and the prior e^0 of two classes
    text = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert text.count(f"median {median:.3g}") == 2
    assert "right answers (n = 2," in text
    assert "wrong answers (n = 1," in text


def test_similar_classes_are_side_by_side():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    network = Namespace(get_classifier=lambda: Namespace(weight=rows))
    figure = network_figures.class_similarity(Namespace(network=network, title="run"))
    cosines = np.asarray(figure.axes[0].images[0].get_array())
    assert np.diag(cosines) == pytest.approx(np.ones(4))
    assert cosines[0, 1] > 0.9
    assert cosines[2, 3] > 0.9
    assert cosines[1, 2] < 0.3


def test_text_is_large_enough():
    with style():
        figure, axes = one_axes("title\nrun " + "with a long name " * 8)
        axes.set(xlabel="x", ylabel="y")
        axes.plot([1, 2], label="a line")
        figure.draw_without_rendering()
    sizes = {text.get_fontsize() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))}
    assert min(sizes) >= 7
    assert figure.get_figwidth() == 3.3
