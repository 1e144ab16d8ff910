"""A data set in arrays, written as PNG files and read back."""

import sys

import numpy as np
import pytest
import torch

from dataset import DataError, Reading, export, get_dataset, read_arrays


@pytest.mark.usefixtures("small_data")
def test_written_and_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", "shapes100", str(tmp_path / "png")])
    assert export.main() == 0
    assert "--dataset folder --data_folder" in capsys.readouterr().out
    look = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    data = get_dataset("folder", tmp_path / "png", 8, torch.device("cpu"), reading=Reading(**look))
    train, test, _ = read_arrays("shapes100", "")
    for loader, arrays in ((data.train.plain(), train), (data.test, test)):
        order = np.argsort(arrays.labels, kind="stable")
        padding = loader.padding
        height, width = loader.side
        found = loader.images[:, padding : padding + height, padding : padding + width]
        assert np.array_equal(found.numpy(), arrays.images[order])
        assert loader.labels.tolist() == arrays.labels[order].tolist()

    assert export.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(DataError, match="exists"):
        export.export("shapes100", "", tmp_path / "png")


def test_an_interrupt_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "export", interrupted)
    monkeypatch.setattr(sys, "argv", ["export", "shapes100", str(tmp_path / "new")])
    assert export.main() == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
    assert not (tmp_path / "new").exists()
