"""Write a data set that is kept in arrays as a folder of PNG files: `python -m dataset.export cifar100 DIR`.

The result is read back with `--dataset folder --data_folder DIR`. A file's name is its position in its split, so that
the order within a class is kept; the order of classes is that of their labels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from . import dataset_dict, read_arrays
from .loader import DataError, ImageData


def write_split(data: ImageData, folder: Path) -> None:
    """Write `folder/CLASS/POSITION.png`, with as many digits in every name as the longest has.

    Args:
        data: images and labels.
        folder: is made.
    """
    from PIL import Image

    label_digits, digits = len(str(int(data.labels.max()))), len(str(len(data) - 1))
    for position, (pixels, label) in enumerate(zip(tqdm(data.images, disable=None), data.labels, strict=True)):
        below = folder / f"{label:0{label_digits}d}"
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(below / f"{position:0{digits}d}.png")


def export(name: str, source: str, target: Path) -> None:
    """Write both splits, the test images as `val`; the folder appears when all is in it.

    Args:
        name: a key of `dataset_dict`.
        source: where data sets lie.
        target: the folder to be made.

    Raises:
        DataError: the data set cannot be had, or the target exists or cannot be written.
    """
    if target.exists():
        raise DataError(f"{target} exists; name another folder or delete it")
    train, test, _ = read_arrays(name, source)
    made = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write_split(train, made / "train")
        write_split(test, made / "val")
        made.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    """Read the command line, write the folder."""
    parser = argparse.ArgumentParser(prog="python -m dataset.export", description="Write a data set as PNG files.")
    arrays = [name for name, entry in dataset_dict.items() if entry.layout is None]
    parser.add_argument("name", choices=arrays)
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--data_folder", default=os.environ.get("KD_DATA", "./data"), help="where data sets lie")
    opt = parser.parse_args()
    try:
        export(opt.name, opt.data_folder, opt.folder)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 130
    print(f"written: --dataset folder --data_folder {opt.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
