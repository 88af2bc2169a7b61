"""What moved in the libraries, row by row: the report of the weekly job.

    python -m tests.peers.moved peers.xml

It reads what pytest found in `tests/peers` with the newest libraries installed, and
compares the lines that were read in a repository with those of its main branch.
"""

import ast
import hashlib
import sys
import urllib.request
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from xml.etree import ElementTree

from tests.peers.records import OPTIONS, RECORD, ROOT


def digest(lines):
    """Of lines of code, whatever stands before and after each of them."""
    return hashlib.sha256("\n".join(map(str.strip, lines)).encode()).hexdigest()[:12]


def stands(text, lines, known):
    """Whether lines with this digest stand in a text, here or elsewhere in it."""
    first, last = map(int, lines.split("-"))
    every, count = text.split("\n"), last - first + 1
    return any(
        digest(every[i : i + count]) == known for i in range(len(every) - count + 1)
    )


def failures(report):
    """The name and the first line of the message of each test that failed."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                file = case.get("classname", "").replace(".", "/")
                message = (found.get("message") or "").split("\n")[0]
                yield f"{file}.py::{case.get('name')}", message


def rows(test):
    """The options whose row a test contradicts: by its id, its name, or its text."""
    name, _, case = test.removesuffix("]").partition("[")
    found = [x for x in OPTIONS if f"{case}-".startswith(f"{x}-")]
    if found:
        return [max(found, key=len)]
    file, _, function = name.partition("::")
    path = ROOT / file
    tree = ast.parse(path.read_text("utf-8") if path.exists() else "")
    text = "".join(
        ast.unparse(x) for x in tree.body if getattr(x, "name", "") == function
    )
    named = [x for x, o in OPTIONS.items() if name.endswith(o.get("test", "no test"))]
    return [x for x in OPTIONS if x in named or f"'{x}'" in text]


def fetch(library, path, branch="main"):
    """A file of a library's repository as it is now."""
    address = f"https://raw.githubusercontent.com/{library['repo']}/{branch}/{path}"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read().decode()
    except OSError:
        return fetch(library, path, "master") if branch == "main" else ""


def installed(library):
    """The version that is installed, if any."""
    try:
        return version(library["package"])
    except (KeyError, PackageNotFoundError):
        return "not installed"


def report(tests: str, read: Callable[..., str] = fetch) -> list[str]:
    """The lines of a Markdown table, one for each row that moved."""
    found = []
    for test, message in failures(tests):
        for name in rows(test) or [""]:
            library = OPTIONS.get(name, {}).get("library", test.split("::")[0])
            before = RECORD["library"].get(library, {})
            versions = f"{before.get('version', '')} → {installed(before)}"
            option = OPTIONS.get(name, {}).get("option", test.split("::")[1])
            found.append(f"| {library} | `{option}` | {versions} | {message} |")
    for option in OPTIONS.values():
        library = RECORD["library"][option["library"]]
        for place in (option[x] for x in ("source", "set") if x in option):
            text = read(library, place["path"])
            if not stands(text, place["lines"], place["digest"]):
                what = "other lines than" if text else "no such file, or no answer:"
                what = f"{place['path']}: {what} at {library['commit'][:8]}"
                found.append(
                    f"| {option['library']} | `{option['option']}` | main | {what} |"
                )
    return found


def main():
    """Print the report; fail if something moved."""
    found = report(sys.argv[1])
    print("| library | option | version | what moved |\n| --- | --- | --- | --- |")
    print("\n".join(dict.fromkeys(found)) or "| none | | | |")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
