"""helper.probe: what is learned, from what, and which data are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import ImageData, MemoryLoader
from helper.errors import RunError, UserError
from helper.precision import Precision
from helper.probe import Split, Task, pooled_features, probe_accuracy, read_task, train_linear
from models import model_dict

CPU = torch.device("cpu")
PLAIN = Precision(CPU, torch.float32, plain=True)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_dict["resnet8"](num_classes=100).eval()


@pytest.fixture(scope="module")
def loader():
    data = ImageData(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64))
    return MemoryLoader(data, (0.5,) * 3, (0.25,) * 3, 7, CPU, train=False)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_features_are_what_the_classifier_takes(network, loader):
    pixels = images(10)
    features = pooled_features(network, pixels, loader, PLAIN)
    assert features.shape == (10, 64)
    with torch.no_grad():
        expected = network((pixels.float() / 255 - 0.5) / 0.25)
        torch.testing.assert_close(network.get_classifier()(features), expected, rtol=1e-4, atol=1e-4)


def test_learns_what_is_separable_and_depends_on_the_seed_alone():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(300) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(300, 3, generator=generator)
    first, second, other = (train_linear(features, labels, 3, epochs=20, seed=seed) for seed in (0, 0, 1))
    assert (first(features).argmax(1) == labels).all()
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("epochs", [1, 2])
def test_few_epochs_train_before_the_rate_drops(epochs):
    labels = torch.arange(4) % 2
    linear = train_linear(torch.eye(2)[labels], labels, 2, epochs=epochs)
    assert (linear(torch.eye(2)).argmax(1) == torch.arange(2)).all()


def test_the_rate_drops_after_30_60_and_90_percent_of_the_epochs(monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def noted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    train_linear(torch.eye(2), torch.arange(2), 2, epochs=10, lr=1.0)
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001])


def test_divergence_is_told():
    with pytest.raises(RunError, match="--probe_lr"):
        train_linear(1e30 * torch.eye(2), torch.arange(2), 2, epochs=5, lr=1e30)


def test_accuracy_on_the_test_split(network, loader):
    dark, bright = torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.full((6, 3, 32, 32), 255, dtype=torch.uint8)
    train = Split(torch.cat([dark, bright]), torch.tensor([0] * 6 + [1] * 6))
    test = Split(torch.stack([dark[0], bright[0], bright[1], dark[1]]), torch.tensor([0, 1, 1, 1]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert probe_accuracy(network, Task(train, test, 2), loader, PLAIN, epochs=20) == 0.75
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.fixture
def folder(tmp_path):
    """Two classes in both splits, and an unreadable file before an image."""
    for split in ("train", "val"):
        for name, value in (("bird", 10), ("cat", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 7), (value,) * 3).save(tmp_path / split / name / "b.png")
    (tmp_path / "train" / "bird" / "a.txt").write_text("no image")
    return tmp_path


def test_folder_with_classes(folder):
    notes = []
    task = read_task(str(folder), "", (32, 32), notes)
    assert task.classes == 2
    for split in (task.train, task.test):
        assert split.labels.tolist() == [0, 1]
        assert split.pixels[:, 0, 0, 0].tolist() == [10, 200]
    assert len(notes) == 1
    assert "a.txt" in notes[0]


def test_data_set_by_name(small_data):
    task = read_task("shapes100", "", (32, 32), [])
    assert task.classes == 100
    assert task.train.pixels.shape == task.test.pixels.shape == (100, 3, 32, 32)


def test_folders_that_are_no_task(folder):
    def refuse(match):
        with pytest.raises(UserError, match=match):
            read_task(str(folder), "", (32, 32), [])

    (folder / "val" / "dog").mkdir()
    refuse("dog .* is a class that is not in")
    (folder / "val" / "dog").rmdir()
    for name in ("bird", "cat"):
        (folder / "val" / name / "b.png").unlink()
    refuse("no readable image below .*val")
    (folder / "train" / "cat").rename(folder / "cat")
    refuse("at least two classes")
    (folder / "train").rename(folder / "training")
    refuse("expected are images in train/CLASS/")
