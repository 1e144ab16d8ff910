"""Reading and writing checkpoints: safe to load, never half-written, in RepDistiller's format."""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distiller_zoo import ReusedClassifierStudent
from models import FeatureNetwork, UnknownNetwork, build, build_pretrained, is_pretrained, model_dict, project_name

from .errors import RunError, UserError, uninterrupted

COUNTER = "num_batches_tracked"
_reconstruct, _scalar = (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0])
# what pickled numpy numbers and arrays are made of, under the names that either major version of numpy gives them
_NUMPY = [
    *(np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}),
    *(
        (function, f"{module}.multiarray.{function.__name__}")
        for function in (_reconstruct, _scalar)
        for module in ("numpy.core", "numpy._core")
    ),
]


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: whoever reads it finds the old content or the new, never a part.

    Raises:
        RunError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with uninterrupted():
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):  # on a disk that has become read-only for instance, where there may be no file
                temporary.unlink()
            raise RunError(f"cannot write {path}: {error.strerror}; what was there before is kept") from None


def write_json(path: Path, content: Any) -> None:
    """`write_file` of `content` as indented JSON."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """`write_file` of `content` by torch.save: tensors, numbers and strings only, so that `weights_only=True` loads it.

    It is serialised in memory first, since torch's own file writer hides which system error stopped it.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    RepDistiller stores its `argparse.Namespace` beside the weights, mdistiller a numpy number; these are let through,
    being plain data.

    Args:
        path: a file written by torch.save, in the old or the zip format.

    Raises:
        UserError: no such file, a folder, truncated, not a checkpoint, or one that holds more than plain data.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.pth"))
        raise UserError(f"{path} is a folder; name the file" + (f", for instance {found[-1]}" if found else ""))
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    plain_data = torch.serialization.safe_globals([argparse.Namespace, *_NUMPY])
    try:
        with plain_data, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of what is no checkpoint
            content = torch.load(path, map_location="cpu", weights_only=True)
        damaged = _damaged_part(path)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds objects that could run code when loaded, so it was not read; "
                "save it again with its state dict only: torch.save({'model': model.state_dict()}, FILE)"
            ) from None
        raise UserError(f"{path} is not a torch checkpoint") from None
    except PermissionError:
        raise UserError(f"{path} may not be read (permission denied)") from None
    except Exception:  # a damaged file can raise nearly anything; the text speaks of zip archives and pickle opcodes
        raise UserError(f"{path} is truncated or not a torch checkpoint; fetch or copy it again") from None
    if damaged:
        raise UserError(f"{path} is damaged (the checksum of its part {damaged} is wrong); fetch or copy it again")
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__}, not a dictionary)")
    return content


def _damaged_part(path: Path) -> str | None:
    """The first part of a checkpoint in the zip format that its checksum does not fit.

    The old format has none, and torch can be told to leave them out, whereupon they fit no part.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as parts:
        wrong = [name for name in parts.namelist() if not _fits_checksum(parts, name)]
        return wrong[0] if 0 < len(wrong) < len(parts.namelist()) else None


def _fits_checksum(parts: zipfile.ZipFile, name: str) -> bool:
    try:
        parts.read(name)
    except zipfile.BadZipFile:
        return False
    return True


def weights_of(content: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Tensor]:
    """The network's state dict in a checkpoint of RepDistiller, mdistiller or their descendants.

    Args:
        content: what `load_checkpoint` returned: the state dict itself or a dictionary with it under `model` or
            `state_dict`. Of mdistiller's whole distillers it is the student's alone; a student that keeps the teacher's
            classifier needs all.
        path: for the message.

    Raises:
        UserError: there is no state dict in it.
    """
    state = content.get("model", content.get("state_dict", content))
    plain = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain or not state:
        raise UserError(f"{path} holds no network weights (expected a state dict or one under the key 'model')")
    weights = {key.removeprefix("_orig_mod.").removeprefix("module."): value for key, value in state.items()}
    return weights if ReusedClassifierStudent.has_weights(weights) else _students_part(weights)


def _students_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a module's `student`; all where it has none."""
    students = {key.removeprefix("student."): weights[key] for key in weights if key.startswith("student.")}
    return students or dict(weights)


def _check_numbers(network: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Refuse weights that are no real numbers, or not finite; other buffers may hold anything.

    Raises:
        UserError: it names the first.
    """
    trained = {name for name, _ in network.named_parameters()}
    for key, value in state.items():
        if key not in trained and not key.endswith(("running_mean", "running_var")):
            continue
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {key} is of {kind} numbers, and weights are of real ones")
        if not value.isfinite().all():
            raise UserError(f"{path}: {key} has values that are not finite: the weights are damaged")


@functools.cache
def expected_shapes(model: str, classes: int, size: int | None = None) -> dict[str, torch.Size]:
    """The names and shapes of the weights of a network of `model_dict`, but for counters that old files lack.

    Raises:
        ValueError: it cannot be built for images of this size.
    """
    with torch.device("meta"):
        state = build(model, classes, size).state_dict()
    return {key: value.shape for key, value in state.items() if not key.endswith(COUNTER)}


def classes_of(model: str, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes in the weights of a network: the rows of its last matrix, None where there is none."""
    head = [key for key, shape in expected_shapes(model, 1).items() if len(shape) == 2][-1]
    return state[head].shape[0] if head in state and state[head].ndim == 2 else None


def fits(model: str, state: Mapping[str, Tensor], size: int | None = None) -> bool:
    """Whether the weights have the names and shapes of `model` with the class count that they show.

    Args:
        model: a name in `model_dict`.
        state: the weights.
        size: of the images; None for the network's own.

    Raises:
        ValueError: the network cannot be built for images of this size.
    """
    classes = classes_of(model, state)
    shapes = {key: value.shape for key, value in state.items() if not key.endswith(COUNTER)}
    return bool(classes) and expected_shapes(model, classes, size) == shapes


def check_model(name: str, flag: str = "") -> None:
    """Refuse the name of a network that is none of `model_dict` nor of the form of another package's.

    Raises:
        UserError: it names the flag and the names that are near.
    """
    if name not in model_dict and ":" not in name:
        raise UserError(f"unknown model {name}{f' ({flag})' if flag else ''}; {nearest(name, model_dict)}")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the errors of `models.build` into `UserError`s."""
    try:
        yield
    except UnknownNetwork as error:
        raise UserError(f"{error}; {nearest(error.name, error.known)}") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def new_network(
    model: str,
    num_classes: int,
    size: int | None = None,
    taps: Sequence[str] = (),
    drop_path: float | None = None,
) -> FeatureNetwork:
    """A network with random weights; arguments as for `models.build`.

    Raises:
        UserError: there is none of this name, or it cannot be built so.
    """
    with _one_line_errors():
        return build(model, num_classes, size, taps, drop_path)


def load_network(
    model: str,
    path: str | os.PathLike,
    num_classes: int | None = None,
    size: int | None = None,
    taps: Sequence[str] = (),
) -> FeatureNetwork:
    """Build a network and load weights into it: a checkpoint's, or those that its package publishes.

    Args:
        model: as for `models.build`.
        path: the checkpoint, timm:NAME or torchvision:NAME.
        num_classes: refuse another class count; None takes the checkpoint's.
        size: side of its images; None for what the checkpoint says, or the network's own.
        taps: see `models.build`.

    Raises:
        UserError: as `load_checkpoint`; or the weights belong to another architecture or class count, cannot be had, or
            are not finite.
    """
    if is_pretrained(str(path)):
        with _one_line_errors():
            network = build_pretrained(str(path), size, taps)
        _check_classes(path, _rows_of_last_matrix(network.state_dict()), num_classes)
        return network
    content = load_checkpoint(path)
    state = weights_of(content, path)
    stored = content.get("input_size")
    size = stored if size is None and type(stored) is int else size
    model = project_name(model)
    if model in model_dict:
        backbone = _students_part(state)
        _check_fit(model, backbone, path, size)
        _check_classes(path, classes_of(model, backbone), num_classes)
    classes = num_classes or _rows_of_last_matrix(state)
    network = new_network(model, classes, size, taps)
    if ReusedClassifierStudent.has_weights(state):
        try:
            network = ReusedClassifierStudent.restored(network, state)
        except ValueError as error:
            raise UserError(f"{path} cannot be built again: {error}; train that student anew") from None
    inner = getattr(network, "deployed", network)
    _check_numbers(inner, state, path)
    try:
        inner.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the weights in {path} do not fit {model} with {classes} classes: {reason}") from None
    return network


def _rows_of_last_matrix(state: Mapping[str, Tensor]) -> int:
    return next((value.shape[0] for value in reversed(list(state.values())) if value.ndim == 2), 1)


def _check_fit(model: str, state: Mapping[str, Tensor], path: str | os.PathLike, size: int | None) -> None:
    with _one_line_errors():
        if fits(model, state, size):
            return
    others = [name for name in model_dict if fits(name, state)]
    hint = f"they fit {' or '.join(others)}" if others else "they fit no network of models/"
    at = f" for images of side {size}" if size else ""
    raise UserError(f"the weights in {path} do not fit {model}{at}; {hint}")


def _check_classes(path: str | os.PathLike, found: int, wanted: int | None) -> None:
    if wanted not in (None, found):
        raise UserError(f"{path} is a network for {found} classes, but the data set has {wanted}")


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of a state dict, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for key, value in state.items():
        array = value.detach().cpu().contiguous()
        sha.update(f"{key} {tuple(array.shape)} {array.dtype}".encode())
        sha.update(array.numpy().tobytes())
    return sha.hexdigest()


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """The known names that look like `name`, or all of them, as text for a message."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5) or difflib.get_close_matches(
        name.lower(), list(names), n=3, cutoff=0.5
    )
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names))}"


def main(arguments: list[str]) -> None:
    """`python -m helper.checkpoint MODEL FILE`: say whether FILE loads safely into MODEL (exit code 0 or 2)."""
    if len(arguments) != 2:
        raise UserError("usage: python -m helper.checkpoint MODEL FILE")
    model, path = arguments
    check_model(model)
    load_network(model, path)
    print(f"{path} is a good checkpoint of {model}")


if __name__ == "__main__":
    from .errors import run_command

    sys.exit(run_command(lambda: main(sys.argv[1:])))
