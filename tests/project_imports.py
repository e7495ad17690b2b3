"""The imports of the project's own code, read from its sources: what a stage stands on, and which room needs which."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = re.compile(r"(quant|stages)(\.\w+)+")


def file_of(module: str, root: Path = ROOT) -> Path | None:
    """The file of a module, relative to the project; None for a name that is no module of it."""
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / candidate).is_file():
            return candidate
    return None


@cache
def imports_of(path: Path, root: Path = ROOT) -> frozenset[str]:
    """Modules of the project that a file imports, anywhere in it, or names in a string (to run or to import by name).

    `quant.methods.*` stands for import_module(f"quant.methods.{name}"): any module of that package.
    """
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node):
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if file_of(inner, root) else node.module)

        def visit_JoinedStr(self, node):
            first = node.values[0]
            if isinstance(first, ast.Constant) and MODULE.fullmatch(str(first.value).rstrip(".")):
                found.add(f"{first.value}*")

        def visit_Constant(self, node):
            if isinstance(node.value, str) and MODULE.fullmatch(node.value):
                found.add(node.value)

    Visitor().visit(ast.parse((root / path).read_text(encoding="utf-8")))
    return frozenset(name for name in found if name.endswith(".*") or file_of(name, root))


def closure(start: Path, method: str | None = None, root: Path = ROOT) -> set[str]:
    """Every file of the project that a script imports, transitively. method: the only one of quant.methods that it loads."""
    reached: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in reached:
            continue
        reached.add(path)
        todo += [parent / "__init__.py" for parent in path.parents if (root / parent / "__init__.py").is_file()]
        for name in imports_of(path, root):
            if name == "quant.methods.*" and method:
                name = f"quant.methods.{method}"
            if name.endswith(".*"):
                folder = Path(*name.removesuffix(".*").split("."))
                found = (file for pattern in ("*.py", "*/__init__.py") for file in (root / folder).glob(pattern))
                todo += [file.relative_to(root) for file in found]
            else:
                todo.append(file_of(name, root))
    return {path.as_posix() for path in reached}
