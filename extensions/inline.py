"""Several of our modules as one file that needs only torch."""

import ast
import re
import sys
from collections import defaultdict

_MARK = re.compile(r"(?:(?<=\n)\n *# --8<-- .*\n(?=\n)|^ *# --8<-- .*\n)", re.MULTILINE)
_Names = dict[str, dict[str, str]]  # by path: what a name is called in the one file


def inlined(files: dict[str, str], own: str, about: str) -> str:
    """One module.

    Args:
        files: The texts by path, each after those that it imports.
        own: The path of the one whose names stay as they are.
        about: The docstring.

    Raises:
        ValueError: If two of them use a name for different things, and it is not one
            that can be renamed, or if one imports a module instead of its names.
    """
    trees = {path: ast.parse(text) for path, text in files.items()}
    names, outside, bodies = _named(trees, own), defaultdict[str, set[str]](set), []
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.Import):
                outside[ast.unparse(node)] = set()
            elif isinstance(node, ast.ImportFrom) and not _ours(node):
                for alias in node.names:
                    start = f"from {node.module} import "
                    outside[start + (f"{alias.name} " if alias.asname else "")].add(
                        ast.unparse(alias)
                    )
        body = _body(_MARK.sub("", files[path]), names[path])
        bodies += [f"# {path.removeprefix('snippets/')}\n{body}"] if body else []
    groups: dict[bool, list[str]] = {True: [], False: []}
    for line in sorted(outside, key=lambda line: (line[0] == "f", line)):
        imported = ", ".join(sorted(outside[line], key=_order))
        start = line if not outside[line] else f"{' '.join(line.split()[:3])} "
        known = line.split()[1].split(".")[0] in sys.stdlib_module_names
        groups[known].append(start + imported)
    imports = "\n\n".join("\n".join(group) for group in groups.values() if group)
    return "\n\n\n".join([f'"""{about}\n"""\n\n{imports}', *bodies]) + "\n"


def _ours(node: ast.ImportFrom) -> bool:
    return str(node.module).startswith("snippets")


def _order(name: str) -> tuple[int, str]:
    """As ruff sorts: constants, classes, functions."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name


def _named(trees: dict[str, ast.Module], own: str) -> _Names:
    names: _Names = {path: {} for path in trees}
    meaning: dict[str, str] = {}  # of each name in the one file
    for path in sorted(trees, key=lambda path: path != own):
        stem = path.rpartition("/")[2].removesuffix(".py")
        for node in trees[path].body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined = [node.name]
            else:
                defined = [
                    name.id
                    for name in ast.walk(node)
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
                ]
            for name in defined:
                new = name
                if meaning.setdefault(name, path) != path:
                    words = stem.title().replace("_", "")
                    new = f"{name}{words}" if name[0].isupper() else f"{name}_{stem}"
                    if meaning.setdefault(new, path) != path:
                        raise ValueError(f"{path}: {name} stands in another module too")
                names[path][name] = new
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and _ours(node):
                home = f"{str(node.module).replace('.', '/')}.py"
                for alias in node.names:
                    if home not in names or alias.name not in names[home]:
                        raise ValueError(f"{path}: import names, not {alias.name}")
                    names[path][alias.asname or alias.name] = names[home][alias.name]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    name = alias.asname or alias.name
                    origin = f"{getattr(node, 'module', '')}.{alias.name}"
                    if meaning.setdefault(name, origin) != origin:
                        raise ValueError(f"{path}: {name} is another thing elsewhere")
    return names


def _body(text: str, names: dict[str, str]) -> str:
    """What a module defines, in the names of the one file."""
    lines = text.split("\n")
    new = {old: name for old, name in names.items() if old != name}
    tree = ast.parse(text)
    edits = []
    for part in ast.walk(tree):
        if isinstance(part, ast.arg | ast.keyword) and part.arg in new:
            raise ValueError(f"{part.arg} is also the name of an argument")
        if isinstance(part, ast.Name) and part.id in new:
            edits.append((part.lineno, part.col_offset, part.id))
        elif isinstance(part, ast.FunctionDef | ast.ClassDef) and part.name in new:
            start = lines[part.lineno - 1].index(f" {part.name}") + 1
            edits.append((part.lineno, start, part.name))
    for number, start, old in sorted(edits, reverse=True):
        line = lines[number - 1].encode()
        changed = line[:start] + new[old].encode() + line[start + len(old.encode()) :]
        lines[number - 1] = changed.decode()
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            for number in range(node.lineno - 1, node.end_lineno or 0):
                lines[number] = ""
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines).strip("\n"))
