"""What the blocks of a page printed, and its HTML, kept between builds in `.cache/`.

An entry is found by everything that a block could depend on: its source and that of
the blocks before it, all snippets and extensions, Python and the installed packages.
It also names the files that the block read, and is of no use once one has changed.
"""

import hashlib
import json
import logging
import os
import platform
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from extensions.pages import Block
from extensions.sessions import Session

FILE = Path(".cache/blocks.sqlite")
OFF = "KL_CACHE"  # set it to "off" to execute every block

_log = logging.getLogger("kl.cache")  # not MkDocs' logger: strict builds go on
_ours = (Path(__file__).parent, Path("snippets"))
_reads: set[str] | None = None  # what the running block opens


class Cache:
    """The blocks of one page, in order."""

    def __init__(self, session: Session) -> None:
        """Begin before the page's first block."""
        self._session = session
        self._skipped: list[Block] = []
        self._environment = _environment()
        self._key = _digest(session.file, self._environment)

    def printed(self, block: Block) -> str:
        """What a block prints; it is executed only if that is not known.

        Raises:
            Exception: Whatever the block raises. Nothing is kept of it.
        """
        self._key = _digest(self._key, block.source)
        entry = _storage.load(self._key)
        if entry is None or entry["reads"] != _contents(entry["reads"]):
            while self._skipped:  # their names and random state are needed now
                self._session.run(self._skipped[0])
                del self._skipped[0]
            with _recorded() as reads:
                printed = self._session.run(block)
            reads.discard(self._session.file)  # Python shows its lines in tracebacks
            entry = {"printed": printed, "reads": _contents(reads)}
            _storage.store(self._key, entry)
        else:
            self._skipped.append(block)
        self._key = _digest(self._key, json.dumps(entry["reads"], sort_keys=True))
        return str(entry["printed"])

    def rendered(self, render: Callable[[], str], *made_of: str) -> str:
        """What `render` returns, which depends on these texts and on the settings."""
        settings = _content("mkdocs.yml")
        key = _digest("rendered", self._environment, settings, *made_of)
        entry = _storage.load(key)
        if entry is None:
            entry = {"html": render()}
            _storage.store(key, entry)
        return str(entry["html"])


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@cache
def _packages() -> str:
    infos = {info.name for path in sys.path for info in Path(path).glob("*-info")}
    return _digest(sys.version, platform.machine(), *sorted(infos))


def _environment() -> str:
    files = [file for folder in _ours for file in sorted(folder.rglob("*.py"))]
    return _digest(
        _packages(), *(_source(file, file.stat().st_mtime_ns) for file in files)
    )


@cache
def _source(file: Path, changed: int) -> str:
    return f"{file}\0{_content(str(file))}"


def _contents(paths: Iterable[str]) -> dict[str, str]:
    return {path: _content(path) for path in paths}


def _content(path: str) -> str:
    """The digest of a file, or of the names in a folder."""
    file = Path(path)
    try:
        if file.is_dir():
            return _digest(*sorted(str(inside) for inside in file.iterdir()))
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


@cache
def _listen() -> None:
    """Hear of every file that is opened. An audit hook can never be removed."""
    root = f"{Path.cwd()}{os.sep}"

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if _reads is None or event not in {"open", "os.listdir", "os.scandir"}:
            return
        if isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.join(root, os.fsdecode(arguments[0]))  # noqa: PTH118
            inside = os.path.normpath(path).removeprefix(root)
            imported = inside.endswith(".py") or "__pycache__" in inside
            if event != "open":  # Python lists a folder when it imports from it
                imported |= Path(inside).is_relative_to("snippets")
            if not (imported or inside.startswith(".") or os.path.isabs(inside)):  # noqa: PTH117
                _reads.add(inside)

    sys.addaudithook(hear)


@contextmanager
def _recorded() -> Iterator[set[str]]:
    global _reads
    _listen()
    reads: set[str] = set()
    _reads = reads
    try:
        yield reads
    finally:
        _reads = None


class _Storage:
    """A table of entries. Without one, blocks are executed; that is said once."""

    def __init__(self) -> None:
        self._table: sqlite3.Connection | None = None
        self._works = os.environ.get(OFF) != "off"

    def load(self, key: str) -> dict[str, Any] | None:
        """The entry of a key."""
        row = self._query("SELECT entry FROM blocks WHERE key = ?", key)
        try:
            return json.loads(row[0]) if row else None
        except ValueError:
            return None  # a damaged entry is written again

    def store(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry."""
        text = json.dumps(entry)
        self._query(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, unixepoch())", key, text
        )

    def _query(self, query: str, *values: str) -> Any:
        if not self._works:
            return None
        try:
            return self._open().execute(query, values).fetchone()
        except (sqlite3.Error, OSError) as error:
            self._works = False
            _log.warning("the cache of blocks is not used: %s: %s", FILE, error)
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(
                error
            ):
                FILE.unlink()
            return None

    def _open(self) -> sqlite3.Connection:
        if self._table is None:
            FILE.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(
                FILE, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._table.execute("PRAGMA synchronous = OFF")
            self._table.execute(
                "CREATE TABLE IF NOT EXISTS blocks (key PRIMARY KEY, entry, stored)"
            )
            month = "DELETE FROM blocks WHERE stored < unixepoch() - 30 * 86400"
            self._table.execute(month)
        return self._table


_storage = _Storage()
