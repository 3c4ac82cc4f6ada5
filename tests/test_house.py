"""The rules of the house that no tool checks: sizes, import circles, complete layer lists, one test per module, words."""

import ast
import functools
import itertools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("contracts", "beam_jobs", "trainer", "predictor", "orchestration")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module


@functools.cache
def modules() -> dict[str, Module]:
    """The modules of the product, by name; a package stands for its `__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(name, path, ast.parse(path.read_text()))
    return found


def imports(module: Module) -> set[str]:
    """The modules of the product that a module imports, also inside functions and for type checking only."""
    named: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.name}: imports are absolute, got a relative one in line {node.lineno}"
            # `from package import module` imports the module; `from module import name` only the module.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if name in modules() else str(node.module) for name in names}
    return (named & modules().keys()) - {module.name}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports(module) for name, module in modules().items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(edges[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = list(itertools.takewhile(lambda one: one != node, reversed(stack)))
            del stack[-len(group) - 1 :]
            if group:
                found.append(sorted([node, *group]))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert list(circles(graph())) == []


def containers() -> dict[str, set[str]]:
    """Packages with more than one module or sub-package below them, and the names of those."""
    children: dict[str, set[str]] = {}
    for name in modules():
        parent, _, child = name.rpartition(".")
        if parent:
            children.setdefault(parent, set()).add(child)
    return {parent: names for parent, names in children.items() if len(names) > 1}


def listed() -> dict[str, list[str]]:
    """The children of each package in the layer lists of pyproject.toml that are declared exhaustive."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    lists: dict[str, list[str]] = {}
    for contract in settings["contracts"]:
        if contract["type"] == "layers" and contract.get("exhaustive"):
            names = [name for layer in contract["layers"] for name in re.split(r"[|:]", layer)]
            for container in contract["containers"]:
                lists.setdefault(container, []).extend(name.strip() for name in names)
    return lists


def test_every_module_stands_in_one_layer_list() -> None:
    expected = {package: sorted(names) for package, names in containers().items()}
    assert {package: sorted(names) for package, names in listed().items()} == expected


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method, with a name such as `trainer.task.Class.method`."""

    def below(prefix: str, node: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}.{child.name}" if hasattr(child, "name") and not isinstance(child, ast.alias) else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, child
            yield from below(name, child)

    for module in modules().values():
        yield from below(module.name, module.tree)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    taken = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([one for one in taken if one.arg not in ("self", "cls")])


def oversized() -> dict[str, str]:
    """What is larger than the limits, with its size."""
    found = {}
    for module in modules().values():
        if (lines := len(module.path.read_text().splitlines())) > MAX_MODULE_LINES:
            found[module.name] = f"{lines} lines"
    for name, function in functions():
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        if lines > MAX_FUNCTION_LINES or parameters(function) > MAX_PARAMETERS:
            found[name] = f"{lines} lines, {parameters(function)} parameters"
    return found


def test_modules_and_functions_are_small() -> None:
    assert oversized() == {}


def test_the_limits_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = {
        "wide": "def f(self, a, b, c, d, e, f, g, h, *, i): ...\n",
        "long": "class C:\n    def g(self):\n" + "        pass\n" * MAX_FUNCTION_LINES,
        "huge": "pass\n" * (MAX_MODULE_LINES + 1),
        "fine": "def f(self, a, b, c, d, e, f, g, h): ...\n" + "pass\n" * (MAX_MODULE_LINES - 1),
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    made = {name: Module(name, tmp_path / name, ast.parse(source)) for name, source in sources.items()}
    monkeypatch.setattr(f"{__name__}.modules", lambda: made)
    assert oversized() == {
        "wide.f": "1 lines, 9 parameters",
        "long.C.g": f"{MAX_FUNCTION_LINES + 1} lines, 0 parameters",
        "huge": f"{MAX_MODULE_LINES + 1} lines",
    }


def mirror(module: Module) -> Path:
    """Where the tests of a module are: tests/<its package>/test_<its name>.py, `test_main.py` for a `__main__`."""
    path = module.path.relative_to(ROOT)
    return ROOT / "tests" / path.parent / f"test_{path.stem.strip('_')}.py"


def test_every_module_has_its_tests() -> None:
    missing = {
        module.name
        for module in modules().values()
        if module.path.name != "__init__.py" and not mirror(module).is_file()
    }
    assert missing == set()


def test_there_is_one_flag_parser() -> None:
    bases = {"ArgumentParser", "FlagParser", "JobParser"}
    made = {
        f"{module.name}.{node.name}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and {ast.unparse(base).rpartition(".")[2] for base in node.bases} & bases
    }
    assert made <= {"contracts.command_line.FlagParser", "beam_jobs.options.JobParser"}


def reports(node: ast.ExceptHandler) -> bool:
    """Whether a handler of InputError or OperationError prints."""
    caught = {one.id for one in ast.walk(node.type) if isinstance(one, ast.Name)} if node.type else set()
    calls = {ast.unparse(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
    return bool(caught & {"InputError", "OperationError"} and calls & {"print", "sys.stderr.write", "report_error"})


def test_errors_are_reported_in_one_place() -> None:
    found = {
        module.name
        for module in modules().values()
        if any(isinstance(node, ast.ExceptHandler) and reports(node) for node in ast.walk(module.tree))
    }
    assert found <= {"contracts.command_line"}


PHRASES = re.compile(
    r"\b(?:is|are|was|were|be|been)\s+told\b(?!\s+apart)|\btold\s+the\s+same\b"
    r"|\b(?:nobody|somebody|whoever)\b|\bthat\s+there\s+(?:is|are)\s+not\b",
    re.IGNORECASE,
)


def prose() -> list[str]:
    """The project's files of code and text, from the root."""
    listed_files = subprocess.run(
        ["git", "ls-files", "--", "*.py", "*.md", "*.html", "*.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed_files.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "text", ["it is told the\nsame", "Nobody listens", "a flag that there is not", "Whoever reads"]
)
def test_phrases_to_avoid_are_found(text: str) -> None:
    assert PHRASES.search(text)


def test_phrases_that_are_fine_are_left() -> None:
    assert not PHRASES.search("They are told apart by name. The flag says that there is no file.")


def test_the_words_of_the_style_guide() -> None:
    found = {
        f"{name}: {' '.join(hit[0].split())}"
        for name in prose()
        if name != "tests/test_house.py"
        for hit in PHRASES.finditer((ROOT / name).read_text())
    }
    assert found == set()
