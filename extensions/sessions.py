"""A page's blocks run in order in a process of its own, on the site and in tests.

Nothing that a page leaves behind reaches another one, and a block that ends or blocks
its process is an error of that block.
"""

import builtins
import faulthandler
import gc
import importlib
import io
import linecache
import os
import random
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType
from typing import Any

from extensions.pages import Block, declared

# Before torch is imported: on a busy machine its threads spin, and sums that are
# split over threads differ in the last digits.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
SECONDS = int(os.environ.get("KL_SECONDS", "300"))  # what a block may take
CHARACTERS = 1_000_000  # what it may print

_SYSTEM = (sys.prefix, sys.base_prefix, "/dev", "/proc", "/sys")  # read by libraries
_parent: Any = None  # in the process of a page: the pipe to the one that started it


class BlockError(Exception):
    """What a block raised, with its traceback."""


def draw(chart: dict[str, Any]) -> str:
    """A Vega-Lite chart as SVG. One process draws for all pages: it starts slowly."""
    if _parent:
        _parent.send(("draw", chart, []))
        return str(_parent.recv())
    import vl_convert

    return vl_convert.vegalite_to_svg(chart, show_warnings=False)


class Session:
    """A page's names and random state. A new one knows nothing of any other page."""

    def __init__(self, file: str) -> None:
        """Start a page that stands in `file`."""
        self.file = file
        self.loaded: list[str] = []  # the snippets that it has imported
        self._process = self._owner = 0

    def run(self, block: Block) -> str:
        """Execute a block and return what it prints, also on standard error.

        Raises:
            BlockError: If it raises or warns, takes more than `SECONDS`, ends its
                process, prints what is no text, or opens what it does not declare.
        """
        if not self._process:
            self._start(block.source)
        try:
            self._pipe.send(block)
            while (answer := self._pipe.recv())[0] == "draw":
                self._pipe.send(draw(answer[1]))
        except (EOFError, OSError):
            self._output.seek(0)
            said = self._output.read().decode(errors="replace")
            last = said.split(f'  File "{__file__}"')[0][-2000:]
            answer = "failed", f"the process ended, or took {SECONDS} s\n{last}", []
            self.close()
        except BaseException:
            self.close()
            raise
        kind, text, self.loaded = answer
        if kind == "failed":
            raise BlockError(text)
        return str(text)

    def close(self) -> None:
        """End the process of the page."""
        if self._process and self._owner == os.getpid():
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._pipe.close()
            self._output.close()
        self._process = 0

    __del__ = close

    def _start(self, source: str) -> None:
        self._pipe, pipe = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._owner = os.getpid()
        page = Path(self.file)
        text = source + (page.read_text("utf-8") if page.exists() else "")
        with warnings.catch_warnings():  # of a missing NumPy, and of other threads
            warnings.simplefilter("ignore")
            if "torch" in text or "snippets" in text:  # what printing a tensor imports
                importlib.import_module("torch.distributed.tensor")  # once
            if "altair" in text or "figures" in text:
                importlib.import_module("extensions.figures")
            sys.stdout.flush()
            self._process = os.fork()
        if not self._process:
            try:
                self._pipe.close()  # so that it hears when the other end is gone
                _Page(self.file, pipe, self._output).serve()
            finally:
                os._exit(1)
        pipe.close()


class _Page:
    """The process of a page."""

    def __init__(self, file: str, pipe: Any, output: Any) -> None:
        global _parent
        _parent = self.pipe = pipe
        self.file, self.output, self.root = file, output, Path.cwd()
        self.declared: set[Path] = set()
        self.later: list[Any] = []  # what was raised where nobody could catch it
        gc.freeze()  # what others left is not this page's
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", 1, "utf-8", closefd=False)
        sys.unraisablehook = threading.excepthook = self.later.append
        self.opened = open
        builtins.open = io.open = self.open
        faulthandler.enable(2)
        warnings.simplefilter("error")
        self.module = sys.modules[f"page:{file}"] = ModuleType(f"page:{file}")
        random.seed(0)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(0)
        if torch := sys.modules.get("torch"):
            torch.set_rng_state(torch.Generator().get_state())

    def serve(self) -> None:
        """Run blocks for as long as the other process asks for it."""
        while True:
            block = self.pipe.recv()
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
            try:
                answer = "printed", self.run(block)
            except BaseException as error:
                inside = error.__traceback__ and error.__traceback__.tb_next
                error.__traceback__ = inside and inside.tb_next
                trace = "".join(traceback.format_exception(error))
                answer = "failed", f"{error!r}\n{trace}"
            faulthandler.cancel_dump_traceback_later()
            ours = [
                name
                for name, module in list(sys.modules.items())
                if name.startswith("snippets.") and not hasattr(module, "__path__")
            ]
            self.pipe.send((*answer, ours))

    def run(self, block: Block) -> str:
        self.output.seek(0)
        self.output.truncate()
        self.declared |= {path.resolve() for path in declared(block.source)}
        if block.source == block.written:
            code = compile("\n" * block.line + block.source, self.file, "exec")
        else:  # so that a traceback shows the line that is included
            name = f"{self.file}:{block.line} with its includes"
            lines = block.source.splitlines(keepends=True)
            linecache.cache[name] = (len(block.source), None, lines, name)
            code = compile(block.source, name, "exec")
        exec(code, self.module.__dict__)
        sys.stdout.flush()
        self.output.seek(0)
        printed: str = self.output.read().decode()
        if len(printed) > CHARACTERS:
            raise ValueError(f"it prints more than {CHARACTERS} characters")
        if self.later:
            raise RuntimeError(f"a thread or destructor: {self.later[0].exc_value!r}")
        return printed

    def open(self, file: Any, *more: Any, **options: Any) -> Any:
        """What `open` does in a block: what it reads decides how long it is kept."""
        if not isinstance(file, int):
            path = Path(os.fsdecode(file)).resolve()
            scratch = not path.is_relative_to(self.root)
            free = (*_SYSTEM, tempfile.gettempdir()) if scratch else _SYSTEM
            known = path in self.declared or any(map(path.is_relative_to, free))
            if not known:
                raise PermissionError(f"{file} is opened without `# reads: {file}`")
        return self.opened(file, *more, **options)
