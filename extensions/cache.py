"""What the blocks of a page printed, kept between builds, one file for each block.

A file's name is the digest of all that its block depends on: the page's blocks up to
it, our modules that they import, the files that they declare, Python and packages.
"""

import ast
import hashlib
import logging
import os
import platform
import sys
import time
from functools import cache, lru_cache
from pathlib import Path

from extensions.pages import Block, declared
from extensions.sessions import Session

FOLDER = Path(".cache/blocks")
OFF = "KL_CACHE"  # set it to "off" to execute every block

_DAYS = 30  # after which an entry that no build asked for is forgotten
_VARIABLES = ("TORCH", "PYTHON", "OMP_", "MKL_", "CUDA", "LANG", "LC_", "TZ", "SITE_")
_HERE = Path(__file__).parent


class Cache:
    """The blocks of one page, in order."""

    def __init__(self, session: Session) -> None:
        """Begin before the page's first block."""
        self._session = session
        self._skipped: list[Block] = []
        self._modules: set[str] = set()
        self._key = _digest(session.file, _environment())

    def printed(self, block: Block) -> str:
        """What a block prints; it is executed only if that is not known.

        Raises:
            Exception: Whatever the block raises. Nothing is kept of it.
        """
        modules = closure(block.source)
        files = [f"{path}\0{path.read_bytes()!r}" for path in declared(block.source)]
        texts = (block.source, *files, *modules, *modules.values())
        self._key = _digest(self._key, *texts)
        self._modules |= {_module(path) for path in modules}
        self._skipped.append(block)
        printed = _load(self._key)
        if printed is None:
            for waiting in self._skipped:  # their names and random state are needed
                printed = self._session.run(waiting)
            self._skipped.clear()
            if hidden := set(self._session.loaded) - self._modules:
                raise ImportError(f"{sorted(hidden)} imported by no import statement")
            _store(self._key, printed or "")
        return printed or ""


def closure(source: str) -> dict[str, str]:
    """The files of our modules that a source imports, each after those it needs."""
    found: dict[str, str] = {}
    seen: set[str] = set()

    def follow(text: str) -> None:
        for module in _imported(text):
            name = f"{module.replace('.', '/')}.py"
            path = _HERE.parent / name if module.startswith("ext") else Path(name)
            if name not in seen and path.is_file():
                seen.add(name)
                follow(inside := path.read_text("utf-8"))
                found[name] = inside

    follow(source)
    return found


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


@lru_cache(maxsize=2000)
def _imported(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # it is named when the block runs
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{x.name}" for x in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return sorted({x for x in names if x.startswith(("snippets.", "extensions."))})


def _digest(*texts: str) -> str:
    return hashlib.sha256(repr(texts).encode()).hexdigest()


@cache
def _environment() -> str:
    """Python, the installed packages, and the machinery that runs a block."""
    installed = [Path(path) for path in sys.path if path.endswith("-packages")]
    infos = {info.name for path in installed for info in path.glob("*-info")}
    values = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(_VARIABLES)]
    ours = [(_HERE / f"{x}.py").read_text() for x in ("cache", "pages", "sessions")]
    known = (sys.version, platform.machine(), *sorted(infos), *sorted(values))
    return _digest(*known, *ours)


def _load(key: str) -> str | None:
    file = FOLDER / key
    try:
        digest, _, text = file.read_bytes().decode().partition("\n")
        if os.environ.get(OFF) == "off" or digest != _digest(key, text):
            return None
        os.utime(file)
    except (OSError, ValueError):
        return None
    return text


def _store(key: str, text: str) -> None:
    """Keep an entry: all of it, or nothing."""
    try:
        if os.environ.get(OFF) != "off":
            FOLDER.mkdir(parents=True, exist_ok=True)
            _sweep()
            part = FOLDER / f"{key}.{os.getpid()}"
            part.write_bytes(f"{_digest(key, text)}\n{text}".encode())
            part.replace(FOLDER / key)
    except OSError as error:
        _say(f"the cache of blocks is not used: {FOLDER}: {error.strerror}")


@cache
def _sweep() -> None:
    """Once in a process: forget what no build has asked for in a month."""
    for file in FOLDER.iterdir():
        if file.stat().st_mtime < time.time() - _DAYS * 86400:
            file.unlink(missing_ok=True)


@cache
def _say(text: str) -> None:
    logging.getLogger("kl.cache").warning(text)  # not MkDocs': strict builds go on
