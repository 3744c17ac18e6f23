"""Arrays that are kept for later, on disk where they are large, so that many samples take no more memory than one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Row = tuple[Array, ...]

# Bytes from which on an array goes to disk.
LARGE = 1 << 20


class _OnDisk:
    """An array in a file of its own, which goes when this goes."""

    __slots__ = ("__weakref__", "path")

    def __init__(self, array: Array) -> None:
        descriptor, name = tempfile.mkstemp(prefix="normfold-", suffix=".npy")
        self.path = Path(name)
        weakref.finalize(self, _remove, name)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array, allow_pickle=False)


class Folder:
    """A folder for files that go when this goes."""

    __slots__ = ("__weakref__", "path")

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="normfold-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def _put(array: Array) -> Array | _OnDisk:
    if array.nbytes < LARGE or array.dtype.hasobject:
        return array
    try:
        return _OnDisk(array)
    except OSError:  # no room there either
        return array


def _got(kept: Array | _OnDisk) -> Array:
    return np.load(kept.path, allow_pickle=False) if isinstance(kept, _OnDisk) else kept


class Feeds(Mapping[str, Array]):
    """Inputs by name; an array is read when it is asked for."""

    __slots__ = ("_kept",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._kept = {name: _put(array) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> Array:
        return _got(self._kept[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class Rows(Sequence[Row]):
    """A tuple of arrays for every sample, in order; they are read when they are asked for."""

    __slots__ = ("_kept",)

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._kept: list[tuple[Array | _OnDisk, ...]] = []
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Keep the arrays of one more sample."""
        self._kept.append(tuple(map(_put, row)))

    def only(self, numbers: Sequence[int]) -> Rows:
        """These samples alone."""
        found = Rows()
        found._kept = [self._kept[number] for number in numbers]
        return found

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> Rows: ...
    def __getitem__(self, number: int | slice) -> Row | Rows:
        if isinstance(number, slice):
            return self.only(range(len(self._kept))[number])
        return tuple(map(_got, self._kept[number]))

    def __len__(self) -> int:
        return len(self._kept)
