"""Several of our modules as one file that needs only torch."""

import ast
import re

_MARK = re.compile(r"^ *# --8<-- .*\n", re.MULTILINE)


def inlined(files: dict[str, str], about: str) -> str:
    """One module, which ruff has still to sort and to format.

    Args:
        files: The texts by path, each after those that it imports.
        about: The docstring.

    Raises:
        ValueError: If two of them use a name for different things, or one imports a
            module of ours, or a name of it under another name.
    """
    imports: set[str] = set()
    bodies: list[str] = []
    meaning: dict[str, str] = {}
    for path, text in files.items():
        lines = text.split("\n")
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                origin = getattr(node, "module", "")
                ours = ast.unparse(node).split()[1].startswith("snippets")
                for alias in node.names:
                    if ours and meaning.get(alias.asname or alias.name) is None:
                        raise ValueError(f"{path}: import names, not {alias.name}")
                    if not ours:
                        name = alias.asname or alias.name
                        _settle(meaning, name, f"{origin}.{alias.name}", path)
                imports |= set() if ours else {ast.unparse(node)}
            elif not (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            ):
                for name in _defined(node):
                    _settle(meaning, name, path, path)
                continue
            for number in range(node.lineno - 1, node.end_lineno or 0):
                lines[number] = ""
        body = _MARK.sub("", "\n".join(lines)).strip("\n")
        bodies += [f"# {path.removeprefix('snippets/')}\n{body}"] if body else []
    return "\n\n\n".join([f'"""{about}\n"""', "\n".join(sorted(imports)), *bodies])


def _settle(meaning: dict[str, str], name: str, origin: str, path: str) -> None:
    if meaning.setdefault(name, origin) != origin:
        raise ValueError(f"{path}: {name} is another thing in {meaning[name]}")


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    stored = (x for x in ast.walk(node) if isinstance(x, ast.Name))
    return {name.id for name in stored if isinstance(name.ctx, ast.Store)}
