"""Imports go one way: from what knows little to what knows much, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest
from places import ROOT

PACKAGE = ROOT / "src" / "spikegpt"
ORDER = (
    {"errors", "lazy"},
    {"files", "task"},
    {"config"},
    {"tokenizer", "ops"},
    {"data", "model"},
    {"hub"},
    {"checkpoint"},
    {"evaluation", "label_report", "baselines"},
    {"generation", "profiling"},
    {"engine", "hf", "label_eval"},
    {"loading", "convert", "export"},
    {"training", "lm_eval_adapter"},
    {"serve", "estimator"},
    {"cli"},
    {"__main__"},
)
"""What each part may import: itself and everything above it in this list. `__init__` names all, lazily."""
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def imports(path) -> Iterator[tuple[int, list[str]]]:
    """Every import of the package's own modules in a file, wherever it stands: line and dotted path below spikegpt."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield node.lineno, [*base, alias.name]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spikegpt":
            for alias in node.names:
                yield node.lineno, [*node.module.split(".")[1:], alias.name]


def module_of(path) -> str:
    """The dotted name of a file, or of a package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_part_has_its_place():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, (target, *_) in imports(path):
        if target in RANK and target != own:
            assert RANK[target] < RANK[own], f"{path}:{line}: {own} must not import {target}"


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_of(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        for _, parts in imports(path):
            longest = next(
                ".".join(parts[:n]) for n in range(len(parts), -1, -1) if ".".join(parts[:n]) in {*modules, ""}
            )
            if longest and longest != module_of(path):
                graph.setdefault(module_of(path), set()).add(longest)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
