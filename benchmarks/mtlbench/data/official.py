"""The official data sets, read from the folders in which people keep them. Whatever is wrong there is named.

A folder comes from the task's option ``root`` or is ``$MTLCORE_DATA/NAME``. Nothing is downloaded, unpickled
or written.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mtlbench.data.sources import DataError, data_folder


def folder_of(name: str, root: str, layout: str) -> Path:
    """The folder of a data set.

    Args:
        layout: what must be in it, for the message.

    Raises:
        DataError: there is none.
    """
    base = data_folder()
    place = Path(root).expanduser() if root else None if base is None else base / name
    way_out = f"Give the task option root, or put the folder {name} into one that MTLCORE_DATA names. Layout: {layout}."
    if place is None:
        raise DataError(f"{name}: no folder is known. {way_out}")
    if not place.is_dir():
        raise DataError(f"{name}: there is no folder {str(place)!r}. {way_out}")
    return place


def first_there(places: list[Path], name: str) -> Path:
    """The first of several accepted layouts that is there. Raises DataError if none is."""
    for place in places:
        if place.exists():
            return place
    raise DataError(f"{name}: none of {', '.join(map(str, places))} is there.")


def numbered(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... a folder has.

    Raises:
        DataError: none, or one is missing.
    """
    found = len(list(folder.glob("*.npy"))) if folder.is_dir() else 0
    if not found:
        raise DataError(f"{folder} has no files 0.npy, 1.npy, ...")
    missing = next((i for i in range(found) if not (folder / f"{i}.npy").is_file()), None)
    if missing is not None:
        raise DataError(f"{folder} has {found} files, but no {missing}.npy.")
    return found


def array(path: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """The numbers of one .npy file, float32.

    Args:
        shapes: what is accepted; -1 stands for any size.

    Raises:
        DataError: it is not there, is damaged, holds objects (a pickle, which could run code), has another shape, or a
            number in it is not finite.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except ValueError as error:
        why = "it holds pickled objects, which could run code" if "pickle" in str(error).lower() else str(error)
        raise DataError(f"{path} is not read: {why}. A plain array of numbers is needed.") from error
    except (OSError, EOFError, MemoryError) as error:  # a damaged header may announce more than any memory holds
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise DataError(f"{path} is not a plain array of numbers.")
    fits = any(len(s) == found.ndim and all(w in (-1, n) for w, n in zip(s, found.shape)) for s in shapes)
    if not fits:
        wanted = " or ".join(" x ".join("?" if n == -1 else str(n) for n in s) for s in shapes)
        raise DataError(f"{path} has shape {' x '.join(map(str, found.shape))}; expected {wanted}.")
    numbers = found.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{path} has numbers that are not finite.")
    return numbers


def image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) float32 in [0, 1] of a picture, resized to ``size`` = (H, W) if it is larger or smaller.

    Raises:
        DataError: it is not there or is not a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not a picture that can be read: {error}") from error
    if picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)) / 255.0


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError if it is not there or no text."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def inside(root: Path, relative: str, where: str) -> Path:
    """A file that a list names, below ``root``. Raises DataError if it leads out of it."""
    path = root / relative
    if os.path.isabs(relative) or ".." in Path(relative).parts:
        raise DataError(f"{where} names {relative!r}, which leads out of {root}.")
    return path
