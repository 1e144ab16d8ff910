"""ImageNet-1K (ILSVRC 2012), or a part of its classes: `train/WNID/*.JPEG` and `val/WNID/*.JPEG`.

A flat `val/*.JPEG`, as its archive unpacks, is labelled by one of these files in the data set's folder, in `val/` or in
the development kit's `data/`, looked for in this order:

1. `LOC_val_solution.csv`, Kaggle's: lines `name,wnid ...` after a header;
2. `val_annotations.txt`: lines of a file's name and its WordNet number, separated by white space;
3. `ILSVRC2012_validation_ground_truth.txt`, the development kit's: a number on each line, for the images in the order
   of their names. The numbers are ILSVRC's own and not positions among the sorted WordNet numbers, so that a table is
   needed: `meta.mat` of the same kit, or `map_clsloc.txt` of later kits, with lines `wnid number name`.
"""

from __future__ import annotations

from pathlib import Path

from .listing import ENDINGS, ImageFiles, class_names, folders, images_below, list_classes, list_labelled, read_lines
from .loader import DataError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIDE = (224, 224)
FOLDER = "imagenet"
KITS = (".", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
RECIPE = {
    "epochs": 100,
    "batch_size": 256,
    "learning_rate": 0.1,
    "lr_decay_epochs": (30, 60, 90),
    "lr_decay_rate": 0.1,
    "weight_decay": 1e-4,
}


def locate(root: Path) -> Path:
    """The folder with `train/` and `val/`: `root` itself, or `imagenet` in it.

    Raises:
        DataError: it is neither.
    """
    found = next((folder for folder in (root, root / FOLDER) if (folder / "train").is_dir()), None)
    if found is None:
        raise DataError(
            f"ImageNet is in neither {root} nor {root / FOLDER} (no folder train); its archives, from "
            "https://image-net.org after registration, unpack to train/WNID/*.JPEG and val/*.JPEG; name their folder "
            "with --data_folder"
        )
    return found


def classes(root: Path) -> list[str]:
    """The classes' WordNet numbers, from the folders in `train/`."""
    return class_names(root / "train")


def splits(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Training and test files; the validation images are the test set, as everywhere in the field.

    Raises:
        DataError: a part is absent or malformed, or the classes of `val/` are not those of `train/`.
    """
    names = classes(root)
    train = list_classes(root, "train", names)
    if not (root / "val").is_dir():
        raise DataError(f"{root} has no folder val; unpack ILSVRC2012_img_val.tar into it")
    if folders(root / "val"):
        test = list_classes(root, "val", names)
        if test.loose:
            raise DataError(
                f"{root / 'val'} has class folders and {len(test.loose)} images beside them, {test.loose[0]} for "
                "instance: sort these into the folders, too"
            )
        return train, test
    source, wnid_of = _validation_classes(root)
    label_of = {name: label for label, name in enumerate(names)}
    unknown = {wnid for wnid in wnid_of.values() if wnid not in label_of}
    lacking = label_of.keys() - set(wnid_of.values())
    if unknown or lacking:
        raise DataError(
            f"{source} has not the classes of {root / 'train'}: {len(lacking)} of them are missing, {len(unknown)} are "
            f"unknown, {min(lacking or unknown)} for instance"
        )
    return train, list_labelled(root, "val", {name: label_of[wnid] for name, wnid in wnid_of.items()}, source)


def _find(root: Path, name: str) -> Path | None:
    return next((root / kit / name for kit in KITS if (root / kit / name).is_file()), None)


def _validation_classes(root: Path) -> tuple[Path, dict[str, str]]:
    """The file that labels a flat `val/`, and the WordNet number of each image by its name."""
    for name, separator in (("LOC_val_solution.csv", ","), ("val_annotations.txt", None)):
        path = _find(root, name)
        if path:
            return path, _named_classes(path, separator)
    path = _find(root, TRUTH)
    if path is None:
        raise DataError(
            f"{root / 'val'} has no class folders, and nothing tells the classes of its images: put {TRUTH} with "
            f"meta.mat or map_clsloc.txt, or LOC_val_solution.csv, into {root}"
        )
    wnids = _synsets(root)
    images = sorted(entry.name for entry in images_below(root / "val"))
    lines = [line.strip() for line in read_lines(path)]
    if len(lines) != len(images):
        raise DataError(f"{path} has {len(lines)} lines for {len(images)} images in {root / 'val'}")
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) not in wnids:
            raise DataError(
                f"{path}, line {number}, is not the number of a class, 1 to {max(wnids)}, but '{line[:40]}'"
            )
    return path, {name: wnids[int(line)] for name, line in zip(images, lines, strict=True)}


def _named_classes(path: Path, separator: str | None) -> dict[str, str]:
    """Lines of a name and a WordNet number; names without an image's ending get ImageNet's."""
    found = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, *rest = line.split(separator, 1)
        words = " ".join(rest).split()
        if not words:
            raise DataError(f"{path}, line {number}, is not the name of an image and its class")
        if name != "ImageId":
            found[name if name.lower().endswith(ENDINGS) else f"{name}.JPEG"] = words[0]
    return found


def _synsets(root: Path) -> dict[int, str]:
    """WordNet number of each of ILSVRC's own numbers.

    Raises:
        DataError: no file tells it, or it is malformed.
    """
    path = _find(root, "map_clsloc.txt")
    if path:
        rows = [line.split() for line in read_lines(path)]
        if not rows or any(len(row) < 2 or not row[1].isdecimal() for row in rows):
            raise DataError(f"{path} should have lines 'wnid number name'; fetch it again")
        return {int(row[1]): row[0] for row in rows}
    path = _find(root, "meta.mat")
    if path is None:
        raise DataError(
            f"{TRUTH} needs a table of its numbers: put meta.mat, of the same development kit, or map_clsloc.txt into "
            f"{root}, or use LOC_val_solution.csv"
        )
    try:
        from scipy.io import loadmat  # only here, where it is needed

        rows = loadmat(path, simplify_cells=True)["synsets"]
        leaves = [row for row in rows if int(row["num_children"]) == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]).strip() for row in leaves}
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{path} is malformed ({type(error).__name__}); fetch it again") from None
