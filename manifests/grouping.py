"""Grouping of a stream that does not fit in memory, on disk."""

import pickle
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, Self

_BUFFERED = 10_000
"""Rows handed to SQLite at once."""


class DiskGroups:
    """A multimap of str to picklable values in a temporary file: filled by `add`, then iterated.

    Memory stays flat: rows live in a private SQLite database that SQLite spills to the temporary folder
    (`SQLITE_TMPDIR` or `TMPDIR`) and that vanishes with its connection, also when the process is killed.
    """

    def __enter__(self) -> Self:
        self._rows: list[tuple[str, bytes]] = []
        self._database = sqlite3.connect("")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE items (key TEXT, value BLOB)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, key: str, value: Any) -> None:
        """One more value of a key."""
        self._rows.append((key, pickle.dumps(value)))
        if len(self._rows) >= _BUFFERED:
            self._flush()

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        """Each key with its values: keys in the order first added, values in the order added."""
        self._flush()
        rows = self._database.execute(
            "SELECT key, value FROM"
            " (SELECT key, value, rowid AS place, min(rowid) OVER (PARTITION BY key) AS first FROM items)"
            " ORDER BY first, place"
        )
        for key, group in groupby(rows, key=itemgetter(0)):
            yield key, [pickle.loads(value) for _, value in group]

    def _flush(self) -> None:
        self._database.executemany("INSERT INTO items VALUES (?, ?)", self._rows)
        self._rows.clear()
