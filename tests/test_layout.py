"""Check the import directions between packages, and which modules a light command must not load."""

import ast
import re
import subprocess
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGES = ("aecore", "cluster", "jobs", "serving")
FILES = sorted(path for name in PACKAGES for path in (REPO / name).rglob("*.py"))
FORBIDDEN = {
    "aecore": {"ray", "mlflow", "fastapi", "starlette", "boto3", "cluster", "jobs", "serving"},
    "cluster": {"aecore", "jobs", "serving"},
    "jobs": {"serving"},
    "serving": {"jobs"},
}
MAY_IMPORT_SERVING = {
    *(f"jobs/commands/{name}.py" for name in ("client", "demo", "deploy", "export", "models", "serve")), "jobs/cli.py",
}  # fmt: skip
HEAVY = ("ray", "mlflow", "torch", "torchvision", "fastapi", "pyarrow", "boto3")


def imports(tree: ast.AST) -> set[str]:
    """Return the top-level names of all modules imported anywhere below `tree`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_imports_keep_their_direction(path: Path):
    file = path.relative_to(REPO).as_posix()
    forbidden = FORBIDDEN[path.relative_to(REPO).parts[0]]
    if file in MAY_IMPORT_SERVING:
        forbidden = forbidden - {"serving"}
    assert not imports(ast.parse(path.read_text())) & forbidden


LIGHT_MODULES = ("jobs.cli", "jobs.commands.submit", "jobs.commands.doctor", "cluster.ray_connection")


@pytest.mark.parametrize("module", [*PACKAGES, *LIGHT_MODULES])
def test_importing_a_package_or_light_module_loads_nothing_heavy(module: str):
    allowed = {"pyarrow"} if module.startswith("jobs.") else set()
    assert loaded(f"import {module}", set(HEAVY) - allowed) == []


@pytest.mark.parametrize("package", ["torch", "ray", "mlflow"])
def test_installed_packages_have_bytecode(package: str):
    """Without it and with PYTHONDONTWRITEBYTECODE each process compiles its imports: Ray starts half as fast."""
    source = find_spec(package).origin  # pyright: ignore[reportOptionalMemberAccess]
    modules = list(Path(str(source)).parent.rglob("*.py"))  # of which the tests import a part, and so compile it
    assert sum(Path(cache_from_source(str(module))).exists() for module in modules) > 0.95 * len(modules)


def test_the_gpu_script_takes_eight_minutes_at_most():
    script = (REPO / "tests/benchmarks/gpu.sh").read_text()
    limits = [int(limit) for limit in re.findall(r'^ +part "[^"]+" (\d+) ', script, re.MULTILINE)]
    assert len(limits) == 7
    assert sum(limits) + limits[-1] <= 480  # the last part, a campaign, runs twice


def test_help_and_the_start_of_a_training_load_no_more_than_they_need():
    """A start waits for each import; and Ray reads at import the variables that `connect` sets."""
    for code, needless in {
        "import jobs.cli; jobs.cli.make_parser().format_help()": {*HEAVY, "pydantic", "numpy"},
        "import jobs.train.job": {"ray", "torch", "mlflow"},
        "import jobs.ingest.job, jobs.tune.job, jobs.study.job, jobs.claims.job, jobs.commands.serve": {"ray"},
        "import aecore.training.loop": {"ray", "mlflow", "cv2", "scipy"},
    }.items():
        assert loaded(code, needless) == []


def loaded(code: str, modules: set[str]) -> list[str]:
    """Return those of `modules` that a new Python process has loaded after `code`."""
    command = f"{code}; import sys; print(*sorted({modules!r} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", command], cwd=REPO, capture_output=True, text=True, check=True)
    return process.stdout.split()
