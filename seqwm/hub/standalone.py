"""A method's code as files that run without seqwm: what `trust_remote_code` loads from a published folder.

A model of transformers has its code beside its weights, for the Auto classes; one of diffusers is a component of a
pipeline (`seqwm.nn.video_pipeline`) and has it in a folder of its own.

The model's class, and what it needs of the modules of seqwm, are copied flat, seqwm/nn/leaves.py as seqwm_nn_leaves.py.
The text stays as it is, so that each file can be read beside its original, but for this:

- definitions that the model's class does not lead to are left out, those that build and train it among them;
- imports of seqwm become relative ones, which transformers and diffusers follow from file to file;
- imports for type checkers are left out;
- registration with the Auto classes is left out, for the folder's `auto_map` does that, and a second registration, in a
  process that has seqwm or another revision too, would be an error.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import seqwm
from seqwm.hub.load import WORLD, find_class

_PIPELINE = "seqwm.nn.video_pipeline"


def write_standalone(method: str, folder: Path) -> dict[str, str]:
    """Write the code of a model of transformers into `folder`; returns the `auto_map` that config.json needs."""
    root, model_class = f"seqwm.methods.{method}", find_class(method)
    names = {"AutoModel": model_class.__name__, "AutoConfig": model_class.config_class.__name__}
    for module, kept in _reach(root, list(names.values())).items():
        (folder / f"{_flat(module)}.py").write_text(f"{_origin(module)}\n{kept.text()}\n")
    return {auto: f"{_flat(root)}.{name}" for auto, name in names.items()}


def write_standalone_world(method: str, folder: Path) -> None:
    """Write a pipeline of diffusers around a world: model_index.json, pipeline.py, and the world's code in world/.

    Of a component's folder diffusers fetches one file of code, so all that the world's class leads to is in that file.
    """
    root, name, file = f"seqwm.methods.{method}", find_class(method).__name__, f"seqwm_{method}"
    modules = _reach(root, [name])
    taken: dict[str, str] = {}
    for module in modules.values():
        for bound, statement in module.definitions():
            clash = f"{module.name}: {bound} is something else in another module of {method}; rename one of them"
            assert taken.setdefault(bound, statement) == statement, clash
    texts = [module.text(merged=True) for module in _imported_first(root, modules)]
    whole = "\n\n".join([_origin(root), "from __future__ import annotations", *texts])
    (folder / WORLD / f"{file}.py").write_text(re.sub(r"\n{4,}", "\n\n\n", whole).rstrip() + "\n")
    (folder / "pipeline.py").write_text(f"{_origin(_PIPELINE)}\n{_source(_PIPELINE)}")
    index = {
        "_class_name": ["pipeline", "VideoWorldPipeline"],
        "_diffusers_version": importlib.metadata.version("diffusers"),
        WORLD: [file, name],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _reach(root: str, names: list[str]) -> dict[str, _Module]:
    """The modules that have a part of what the names in a module lead to, with those parts kept."""
    modules: dict[str, _Module] = {}
    waiting = [(root, name) for name in names]
    while waiting:
        module, name = waiting.pop()
        if module not in modules:
            modules[module] = _Module(module)
            waiting += modules[module].keep_unnamed()
        waiting += modules[module].keep(name)
    return modules


def _imported_first(root: str, modules: dict[str, _Module]) -> list[_Module]:
    """The modules in an order in which each comes behind those that it imports."""
    order: dict[str, _Module] = {}

    def visit(name: str) -> None:
        for imported in modules[name].imported():
            if imported in modules and imported not in order:
                visit(imported)
        order[name] = modules[name]

    visit(root)
    return list(order.values())


class _Module:
    """A module of seqwm and the statements of it that are needed so far."""

    def __init__(self, name: str) -> None:
        self.name, self._source = name, _source(name)
        self._tree = ast.parse(self._source)
        self._left_out = {node for node in self._tree.body if _is_for_type_checkers(node) or _is_registration(node)}
        self._bound = {name: node for node in self._tree.body for name in _names_bound(node)}
        self._needed: set[str] = set()
        self._kept: set[ast.stmt] = set()

    def keep_unnamed(self) -> list[tuple[str, str]]:
        """Keep what binds no name but does something; see `keep`."""
        return [
            need
            for node in self._tree.body
            if not (node in self._left_out or _names_bound(node) or _is_text(node) or _is_future(node))
            for need in self._keep(node)
        ]

    def keep(self, name: str) -> list[tuple[str, str]]:
        """Keep the statement that binds a name; (module, name) of what else is needed then."""
        if name in self._needed or name not in self._bound:  # a name of Python, or of a function's own
            return []
        self._needed.add(name)
        node = self._bound[name]
        if _is_ours(node):
            return [(node.module or "", alias.name) for alias in node.names if (alias.asname or alias.name) == name]
        return self._keep(node)

    def imported(self) -> list[str]:
        """The modules of seqwm that what is needed is imported from."""
        return [
            node.module or ""
            for node in ast.walk(self._tree)
            if _is_ours(node) and (node not in self._tree.body or self._names(node))
        ]

    def definitions(self) -> list[tuple[str, str]]:
        """The names that what is needed binds, each with what it is."""
        found = []
        for node in self._kept:
            for name in _names_bound(node):
                meaning = ast.unparse(node)
                if isinstance(node, ast.Import | ast.ImportFrom):
                    alias = next(each for each in node.names if (each.asname or each.name).split(".")[0] == name)
                    meaning = f"{getattr(node, 'module', '')} {ast.unparse(alias)}"
                found.append((name, meaning))
        return found

    def text(self, *, merged: bool = False) -> str:
        """The module with what is needed; `merged` with those it imports into one file, it imports nothing of them."""
        lines = self._source.splitlines()
        for node in ast.walk(self._tree):
            if _is_ours(node) and node not in self._tree.body:  # within a function
                before, after = f"from {node.module} import", f"from .{_flat(node.module or '')} import"
                number = node.lineno - 1
                lines[number] = f"{' ' * node.col_offset}pass" if merged else lines[number].replace(before, after, 1)
        kept = True
        for node in self._tree.body:
            if _is_ours(node):
                names = self._names(node)
                _replace(lines, node, _relative(node.module or "", names) if names and not merged else "")
                continue
            if not _is_text(node):  # a text belongs to what stands before it
                kept = node in self._kept or (_is_future(node) and not merged)
            if not kept:
                _replace(lines, node, "")
        return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip()

    def _names(self, node: ast.ImportFrom) -> list[ast.alias]:
        return [each for each in node.names if (each.asname or each.name) in self._needed]

    def _keep(self, node: ast.stmt) -> list[tuple[str, str]]:
        if node in self._kept:
            return []
        self._kept.add(node)
        found = []
        for inner in _reached(node):
            if isinstance(inner, ast.Name):
                found.append((self.name, inner.id))
            elif _is_ours(inner):
                found += [(inner.module or "", alias.name) for alias in inner.names]
            elif isinstance(inner, ast.Import) and any(alias.name.split(".")[0] == "seqwm" for alias in inner.names):
                raise AssertionError(f"{self.name}:{inner.lineno}: `import seqwm` cannot become relative")
        return found


def _source(module: str) -> str:
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None or specification.submodule_search_locations:
        raise AssertionError(f"{module}: a package cannot stand alone; import from the module that has the name")
    return Path(specification.origin).read_text()


def _origin(module: str) -> str:
    return f"# From seqwm {seqwm.__version__} (Apache-2.0), {module.replace('.', '/')}.py; see README.md."


def _names_bound(node: ast.stmt) -> list[str]:
    """The names that a statement gives to the module."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [] if _is_future(node) else [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)]


def _reached(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what is in it, but not what stands under one for type checkers."""
    yield node
    for inner in ast.iter_child_nodes(node):
        if not _is_for_type_checkers(inner):
            yield from _reached(inner)


def _is_ours(node: ast.AST) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "seqwm"


def _is_future(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_registration(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith(("AutoConfig.register(", "AutoModel.register("))


def _relative(module: str, names: list[ast.alias]) -> str:
    return f"from .{_flat(module)} import {', '.join(ast.unparse(name) for name in names)}"


def _replace(lines: list[str], node: ast.stmt, text: str) -> None:
    """Put `text` in the place of a statement, or nothing in that of it, its decorators and the comments above."""
    assert node.end_lineno is not None
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
    while not text and first and lines[first - 1].startswith("#"):
        first -= 1
    for number in range(first, node.end_lineno):
        lines[number] = ""
    lines[first] = text


def _flat(module: str) -> str:
    return module.replace(".", "_")
