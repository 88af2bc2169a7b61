"""Each formula stands once in `snippets/`."""

import ast
from collections import defaultdict
from pathlib import Path

import snippets

ROOT = Path(snippets.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


class Anonymous(ast.NodeTransformer):
    """Numbers the names of a body in the order in which they occur."""

    def __init__(self, free):
        self.free = free
        self.numbers = {}

    def number(self, name):
        return (
            name
            if name in self.free
            else f"x{self.numbers.setdefault(name, len(self.numbers))}"
        )

    def visit_Name(self, node):
        return ast.copy_location(ast.Name(self.number(node.id), node.ctx), node)

    def visit_keyword(self, node):
        return ast.keyword(None, self.visit(node.value))


def body(function):
    """What a function does after its docstring and its checks."""
    statements = function.body
    if isinstance(statements[0], ast.Expr) and isinstance(
        statements[0].value, ast.Constant
    ):
        statements = statements[1:]
    return [s for s in statements if not is_check(s)] or statements


def is_check(statement):
    called = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(called, ast.Call) and isinstance(called.func, ast.Name):
        return called.func.id.startswith("check_")
    return isinstance(statement, ast.If) and all(
        isinstance(s, ast.Raise) for s in statement.body
    )


def every_function():
    for file in FILES:
        tree = ast.parse(file.read_text("utf-8"))
        known = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                known |= {alias.asname or alias.name for alias in node.names}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                yield file, node, known


def test_no_two_bodies_are_equal_up_to_names():
    found = defaultdict(list)
    for file, function, known in every_function():
        anonymous = Anonymous(known)
        text = "\n".join(
            ast.dump(anonymous.visit(s))
            for s in body(ast.parse(ast.unparse(function)).body[0])
        )
        found[text].append(f"{file.relative_to(ROOT)}:{function.name}")
    assert [names for names in found.values() if len(names) > 1] == []


def test_no_function_only_calls_another_with_its_own_arguments():
    aliases = []
    for file, function, _ in every_function():
        statements = body(function)
        if len(statements) != 1 or not isinstance(statements[0], ast.Return):
            continue
        called = statement_call(statements[0])
        if called is None:
            continue
        given = [*called.args, *(k.value for k in called.keywords)]
        own = {a.arg for a in [*function.args.args, *function.args.kwonlyargs]}
        names = [x.id for x in given if isinstance(x, ast.Name)]
        if (
            len(names) == len(given)
            and set(names) == own
            and not function.name.startswith("_")
        ):
            aliases.append(f"{file.relative_to(ROOT)}:{function.name}")
    assert aliases == []


def statement_call(statement):
    called = statement.value
    known = isinstance(called, ast.Call) and isinstance(called.func, ast.Name)
    return called if known else None


def imports(file):
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("snippets.")
        ):
            yield node.module


def test_nothing_that_trains_imports_the_laboratory():
    for file in FILES:
        if file.relative_to(ROOT).parts[0] != "lab":
            assert not any(m.startswith("snippets.lab") for m in imports(file)), file


def test_algorithms_are_not_imported_by_what_they_stand_on():
    for room in ("foundations", "exact", "estimate"):
        for file in (ROOT / room).rglob("*.py"):
            assert not any(
                m.startswith("snippets.algorithms") for m in imports(file)
            ), file


def test_a_function_is_read_in_one_look():
    for file in FILES:
        lines = file.read_text("utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.FunctionDef):
                continue
            first = node.body[1:2] if ast.get_docstring(node) else node.body[:1]
            if first:
                shown = lines[first[0].lineno - 1 : node.end_lineno]
                code = [
                    x for x in shown if x.strip() and not x.lstrip().startswith("#")
                ]
                assert len(code) <= 20, f"{file.relative_to(ROOT)}:{node.name}"


def test_nothing_mends_a_result():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"nan_to_num", "nan_to_num_"}, file
            if isinstance(node, ast.arg):
                assert node.arg not in {"eps", "epsilon_", "tiny"}, file
