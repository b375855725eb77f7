"""A method's code as files that run without seqwm: what `trust_remote_code` loads from a published folder.

The module of the method and every module of seqwm that it imports are copied flat, seqwm/nn/leaves.py as
seqwm_nn_leaves.py, and changed in three places only, so that each can be read beside its original:

- imports of seqwm become relative ones, which transformers follows from file to file;
- imports for type checkers are left out, as is what only they led to;
- registration with the Auto classes is left out, for the folder's `auto_map` does that, and a second registration, in a
  process that has seqwm or another revision too, would be an error.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import seqwm
from seqwm.hub.load import find_class


def write_standalone(method: str, folder: Path) -> dict[str, str]:
    """Write a method's code into `folder`; returns the `auto_map` that config.json needs."""
    root = f"seqwm.methods.{method}"
    waiting, done = [root], set[str]()
    while waiting:
        module = waiting.pop()
        if module not in done:
            done.add(module)
            text, imported = _standing_alone(module)
            (folder / f"{_flat(module)}.py").write_text(text)
            waiting += imported
    model_class = find_class(method)
    names = {"AutoConfig": model_class.config_class.__name__, "AutoModel": model_class.__name__}
    return {auto: f"{_flat(root)}.{name}" for auto, name in names.items()}


def _standing_alone(module: str) -> tuple[str, list[str]]:
    """The changed text of a module and the modules of seqwm that it imports."""
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None or specification.submodule_search_locations:
        raise AssertionError(f"{module}: a package cannot stand alone; import from the module that has the name")
    text = Path(specification.origin).read_text()
    lines, imported = text.splitlines(), list[str]()
    for node in _reached(ast.parse(text)):
        if _is_for_type_checkers(node) or _is_registration(node):
            _blank(lines, node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "seqwm":
            assert node.module is not None
            before, after = f"from {node.module} import", f"from .{_flat(node.module)} import"
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(before, after, 1)
            imported.append(node.module)
        elif isinstance(node, ast.Import) and any(name.name.split(".")[0] == "seqwm" for name in node.names):
            raise AssertionError(f"{module}:{node.lineno}: `import seqwm` cannot become relative; import names from it")
    origin = f"# From seqwm {seqwm.__version__} (Apache-2.0), {module.replace('.', '/')}.py; see README.md.\n"
    return origin + "\n".join(lines).rstrip() + "\n", imported


def _reached(tree: ast.AST) -> list[ast.stmt]:
    """Every statement, but not what stands under one for type checkers."""
    found: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            found.append(node)
        if not _is_for_type_checkers(node):
            found += _reached(node)
    return found


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_registration(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith(("AutoConfig.register(", "AutoModel.register("))


def _blank(lines: list[str], node: ast.stmt) -> None:
    assert node.end_lineno is not None
    for number in range(node.lineno - 1, node.end_lineno):
        lines[number] = ""


def _flat(module: str) -> str:
    return module.replace(".", "_")
