"""Names of files in a few bytes each: a list of strings takes 80 bytes and more for each, a dict 200."""

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import overload

ENCODING = sys.getfilesystemencoding()
BLOCK = 10_000  # names that are sorted at a time


class Names(Sequence[str]):
    """A sequence of names that shares the bytes of all of them with its slices; only `append` changes it."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Append the names."""
        self._bytes, self._bounds = bytearray(), array("Q", [0])  # name k is bytes [bounds[k], bounds[k + 1])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Append a name."""
        self._bytes += os.fsencode(name)
        self._bounds.append(len(self._bytes))

    def __len__(self) -> int:
        """Return their number."""
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Names": ...

    def __getitem__(self, index: "int | slice") -> "str | Names":
        """Return a name, or contiguous names."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            names = Names()
            names._bytes, names._bounds = self._bytes, self._bounds[start : max(start, stop) + 1]
            return names
        index = range(len(self))[index]
        return _decode(self._bytes[self._bounds[index] : self._bounds[index + 1]])

    def __iter__(self) -> Iterator[str]:
        """Yield the names, without the checks of each position."""
        start = self._bounds[0]
        for stop in islice(self._bounds, 1, None):
            yield _decode(self._bytes[start:stop])
            start = stop


def _decode(name: bytearray) -> str:
    return name.decode(ENCODING, "surrogateescape")  # as os.fsdecode, which takes no bytearray


def sort_names(names: Iterable[str]) -> Iterator[str]:
    """Return names in order; no more than BLOCK of them are strings at a time."""
    rest, blocks = iter(names), list[Names]()
    while len(block := sorted(islice(rest, BLOCK))) == BLOCK:
        blocks.append(Names(block))
    return merge(block, *blocks)
