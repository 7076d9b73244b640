"""Allow private names of other packages, and changes to their modules, in cluster/ray_compat.py alone.

A private name may change in any release of its package. What must stay is listed in that one module with its reason.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGES = ("aecore", "cluster", "jobs", "serving")
FILES = [path for name in PACKAGES for path in sorted((REPO / name).rglob("*.py"))]
ALLOWED = "cluster/ray_compat.py"
PRIVATE_MODULES = ("ray.core.generated", "ray.experimental.internal_kv")
SETTINGS = ("torch.backends", "torch._dynamo.config", "torch._inductor.config")  # documented as torch's options


def private_names(tree: ast.AST) -> set[str]:
    """Return the private names of other packages that the module `tree` uses or changes."""
    names = set()
    imported = _imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {name for name in _imports(node) if _is_foreign(name) and _is_private(name)}
        elif isinstance(node, ast.Attribute):
            name = _dotted(node, imported)
            if name and _is_private(name):
                names.add(name)
            if name and isinstance(node.ctx, ast.Store | ast.Del):
                names.add(f"{name} =")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__":
            names.add("object.__setattr__")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            name = _dotted(node.args[0], imported)
            names |= {f"setattr({name})"} if name else set()
    return {name for name in names if not name.startswith(SETTINGS)}


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        yield f"{node.module or ''}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Return the names that the imports anywhere in `tree` bind, with the dotted names of other packages they mean."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias, name in zip(node.names, _imports(node), strict=True):
                plain_import = isinstance(node, ast.Import) and not alias.asname
                if _is_foreign(name):
                    bound[name.partition(".")[0] if plain_import else alias.asname or alias.name] = (
                        name.partition(".")[0] if plain_import else name
                    )
    return bound


def _dotted(node: ast.AST, imported: dict[str, str]) -> str:
    """Return the dotted name that `node` means if it starts with an imported name, else an empty string."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, "")
    if isinstance(node, ast.Attribute) and (parent := _dotted(node.value, imported)):
        return f"{parent}.{node.attr}"
    return ""


def _is_foreign(name: str) -> bool:
    return name.partition(".")[0] not in {*PACKAGES, *sys.stdlib_module_names, ""}


def _is_private(name: str) -> bool:
    private = any(word.startswith("_") and not word.endswith("__") for word in name.split("."))
    return private or name.startswith(PRIVATE_MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_no_private_names_of_other_packages(path: Path):
    file = path.relative_to(REPO).as_posix()
    names = private_names(ast.parse(path.read_text()))
    if file != ALLOWED:
        assert names == set()


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from ray._private import worker", {"ray._private.worker"}),
        ("import ray.train.v2._internal.constants as c", {"ray.train.v2._internal.constants"}),
        ("from ray.core.generated import gcs_pb2", {"ray.core.generated.gcs_pb2"}),
        ("from x import y\ny._z()", {"x.y._z"}),
        ("import x.y\nx.y.z = 1", {"x.y.z ="}),
        ("import x\nsetattr(x, 'y', 1)", {"setattr(x)"}),
        ("object.__setattr__(a, 'b', 1)", {"object.__setattr__"}),
        ("import torch, os\ntorch.backends.cudnn.benchmark = True\nos._exit(1)\nself._x = y.__version__", set()),
    ],
)
def test_the_check_finds_private_names(code: str, names: set[str]):
    assert private_names(ast.parse(code)) == names


def test_each_private_name_that_stays_says_why_which_test_fails_and_when_it_goes():
    functions = [node for node in ast.parse((REPO / ALLOWED).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        docstring = ast.get_docstring(function) or ""
        assert "Without it:" in docstring, function.name
        assert "Goes when:" in docstring, function.name
        tests = re.findall(r"(tests/\S+\.py)(?:::(\w+))?", docstring)
        assert tests, f"{function.name} names no test"
        for file, test in tests:
            assert f"def {test}" in (REPO / file).read_text(), f"{function.name}: no {file}::{test}"
