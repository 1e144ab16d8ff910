"""Image files of any kind as RGB pixels of one size, and what is wrong with those that are none."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Side = tuple[int, int]  # height and width
SMALLEST = 8  # pixels of a side: what is smaller is no picture of anything
MOST_PIXELS = 100_000_000  # of an image: what is larger is an attack on the memory, or a mistake
CHUNK = 64  # files that a thread takes at a time
NAMED = 3  # bad files that a message names


class BadImage(Exception):
    """A file that cannot be used; the text is what it is or has, to be put after its name."""


@cache
def _pil() -> ModuleType:
    from PIL import Image  # only here: data sets that are no image files run without it

    # rare EXIF entries and palettes, and sizes, which are checked here; process-wide, since threads share the filters
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _open(path: str) -> Image.Image:
    """An image of which only the header is read."""
    pil = _pil()
    empty = False
    try:
        empty = not os.path.getsize(path)
        image = pil.open(path)
    except pil.UnidentifiedImageError:
        raise BadImage("is empty" if empty else "is not an image") from None
    except OSError as error:  # without a number where it is Pillow's
        raise BadImage(f"cannot be read ({error.strerror})" if error.errno else "is truncated") from None
    except pil.DecompressionBombError:  # of Pillow, whose limit is higher and which keeps the size to itself
        raise BadImage(f"has more than {MOST_PIXELS // 10**6} million pixels") from None
    except Exception as error:  # a damaged header can raise nearly anything
        raise BadImage(f"has a damaged header ({type(error).__name__})") from None
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise BadImage(f"is {width}×{height}, smaller than {SMALLEST}×{SMALLEST}")
    if width * height > MOST_PIXELS:
        raise BadImage(f"is {width}×{height}, more than {MOST_PIXELS // 10**6} million pixels")
    return image


def _decode(image: Image.Image) -> Image.Image:
    try:
        image.load()
        return _rgb(image)
    except BadImage:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = "is truncated" if "truncated" in str(error) else f"is damaged ({type(error).__name__})"
        raise BadImage(reason) from None


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, upright; transparency is dropped, as torchvision's ImageFolder does.

    Raises:
        BadImage: its pixels have no known range.
    """
    from PIL import ImageOps

    if image.mode == "RGB" and not image.getexif():
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, of which PIL's own conversion would keep the wrong ones
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("has grey levels beyond 16 bits")
        image = _pil().fromarray(np.rint(grey / 257).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("has floating-point pixels of unknown range")
    if image.mode == "P":  # what has transparent entries can only be converted this way
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_rgb(path: str) -> Image.Image:
    """Read an image: grey, palette, RGBA, CMYK and 16-bit ones become RGB, EXIF's rotation is carried out.

    Raises:
        BadImage: it is empty, no image, truncated, damaged, too small or too large.
    """
    with _open(path) as image:
        return _decode(image)


def check_image(path: str) -> None:
    """Decode an image for nothing; JPEGs at an eighth of their size, which reads all of the file in less time.

    Raises:
        BadImage: as for `read_rgb`.
    """
    with _open(path) as image:
        if image.format == "JPEG":
            image.draft("RGB", (image.width // 8, image.height // 8))
        _decode(image)


def upright_size(path: str) -> Side:
    """Height and width that an image will have, from its header.

    Raises:
        BadImage: it has none that makes sense.
    """
    with _open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # the orientations that swap the sides
        return (width, height) if turned else (height, width)


def fit_to(image: Image.Image, side: Side) -> Image.Image:
    """The image so that it covers a size, cut around its centre; one that has the size is returned as it is."""
    height, width = side
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    new = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(new, _pil().Resampling.BILINEAR)
    left, top = (new[0] - width) // 2, (new[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def over_files(
    paths: Sequence[str], work: Callable[[str], T], threads: int, label: str
) -> Iterator[tuple[int, T | BadImage]]:
    """Call a function on files, several at a time, with a bar in a terminal.

    Args:
        paths: of the files.
        work: takes a path; what it raises as `BadImage` is returned.
        threads: that work at a time, from 1; Pillow decodes without Python's lock.
        label: of the bar.

    Returns:
        Position and result of every file, in order.
    """

    def chunk(start: int) -> list[T | BadImage]:
        """Results of the files from a position on."""
        found: list[T | BadImage] = []
        for path in paths[start : start + CHUNK]:
            try:
                found.append(work(path))
            except BadImage as bad:
                found.append(bad)
        return found

    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(paths), desc=label, disable=None, leave=False) as bar:
        window = 4 * threads  # chunks that are done or wait, so that results do not pile up
        waiting = [pool.submit(chunk, start) for start in starts[:window]]
        for number, start in enumerate(starts):
            results = waiting.pop(0).result()
            if number + window < len(starts):
                waiting.append(pool.submit(chunk, starts[number + window]))
            bar.update(len(results))
            yield from enumerate(results, start)


def read_pixels(paths: Sequence[str], side: Side, threads: int) -> tuple[np.ndarray, list[tuple[int, str]], int]:
    """Decode files into one array.

    Args:
        paths: of the files.
        side: height and width that they get, see `fit_to`.
        threads: that decode at a time.

    Returns:
        (N, H, W, 3) uint8, of which bad images are 0; positions of the bad ones, with what is wrong; the number of
        images that had another size.
    """

    def work(path: str) -> tuple[np.ndarray, bool]:
        image = read_rgb(path)
        return np.asarray(fit_to(image, side)), image.size != (side[1], side[0])

    pixels, bad, changed = np.zeros((len(paths), *side, 3), np.uint8), [], 0
    for position, found in over_files(paths, work, threads, "reading images"):
        if isinstance(found, BadImage):
            bad.append((position, str(found)))
        else:
            pixels[position] = found[0]
            changed += found[1]
    return pixels, bad, changed


def in_short(names: Sequence[str]) -> str:
    """The first of the names and how many there are more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
