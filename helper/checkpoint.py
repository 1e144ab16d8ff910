"""Reading and writing checkpoints: safe to load, never half-written, in RepDistiller's format."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import io
import json
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import model_dict

from .errors import RunError, UserError, uninterrupted

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
            temporary.unlink(missing_ok=True)
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
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__}, not a dictionary)")
    return content


def weights_of(content: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Tensor]:
    """The network's state dict in a checkpoint of RepDistiller, mdistiller or their descendants.

    Args:
        content: what `load_checkpoint` returned: the state dict itself or a dictionary with it under `model`.
        path: for the message.

    Raises:
        UserError: there is no state dict in it.
    """
    state = content.get("model", content)
    plain = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain or not state:
        raise UserError(f"{path} holds no network weights (expected a state dict or one under the key 'model')")
    return {key.removeprefix("module."): value for key, value in state.items()}


def classes_of(model: str, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes in the weights of a network: the rows of its last matrix, None where there is none."""
    with torch.device("meta"):
        head = [key for key, value in model_dict[model]().state_dict().items() if value.ndim == 2][-1]
    return state[head].shape[0] if head in state and state[head].ndim == 2 else None


def fits(model: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the weights have the names and shapes of `model` with the class count that they show."""
    classes = classes_of(model, state)
    if not classes:
        return False
    with torch.device("meta"):
        expected = model_dict[model](num_classes=classes).state_dict()
    return {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in state.items()}


def load_network(model: str, path: str | os.PathLike, num_classes: int | None = None) -> nn.Module:
    """Build a network and load a checkpoint's weights into it.

    Args:
        model: a name in `model_dict`.
        path: the checkpoint.
        num_classes: refuse another class count; None takes the checkpoint's.

    Raises:
        UserError: as `load_checkpoint`; or the weights belong to another architecture or class count.
    """
    state = weights_of(load_checkpoint(path), path)
    if not fits(model, state):
        others = [name for name in model_dict if fits(name, state)]
        hint = f"they fit {' or '.join(others)}" if others else "they fit no network of models/"
        raise UserError(f"the weights in {path} do not fit {model}; {hint}")
    found = classes_of(model, state)
    if num_classes not in (None, found):
        raise UserError(f"{path} is a network for {found} classes, but the data set has {num_classes}")
    network = model_dict[model](num_classes=found)
    network.load_state_dict(state)
    return network


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
    if model not in model_dict:
        raise UserError(f"unknown model {model}; {nearest(model, model_dict)}")
    load_network(model, path)
    print(f"{path} is a good checkpoint of {model}")


if __name__ == "__main__":
    from .errors import run_command

    sys.exit(run_command(lambda: main(sys.argv[1:])))
