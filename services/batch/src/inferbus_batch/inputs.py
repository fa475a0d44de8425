"""A job's input beside its runner: the file and its index on disk, lines by their place in the run order."""

import mmap
from collections.abc import AsyncIterable
from pathlib import Path

from inferbus_batch.core.index import Place, place_at
from inferbus_batch.core.lines import Fault, Line, read_line

SOURCE, INDEX = "input", "index"


async def fetch(content: AsyncIterable[bytes], path: Path) -> None:
    """Raises OSError where there is no room, and whatever ``content`` raises."""
    with path.open("wb") as out:
        async for part in content:
            out.write(part)


class Input:
    """Lines are read from ``folder``; close it."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._endpoint = endpoint
        self._source = (folder / SOURCE).open("rb")
        with (folder / INDEX).open("rb") as index:
            self._index = mmap.mmap(index.fileno(), 0, access=mmap.ACCESS_READ)

    def place(self, line: int) -> Place:
        return place_at(memoryview(self._index), line)

    def line(self, line: int) -> tuple[int, Line]:
        """(its number in the file, what it says) of a line of a validated input."""
        place = self.place(line)
        self._source.seek(place.offset)
        said = read_line(place.number, self._source.read(place.size), self._endpoint)
        if isinstance(said, Fault):
            raise ValueError(f"line {place.number} of a validated input: {said.code}")
        return place.number, said

    def close(self) -> None:
        self._source.close()
        self._index.close()
