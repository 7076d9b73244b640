"""Who may import whom, how long files get, and what `zpoint --help` must not load."""

import ast
import subprocess
import sys
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
MAY_IMPORT_SERVING = {"jobs/commands/client.py", "jobs/commands/serve.py", "jobs/commands/demo.py", "jobs/cli.py"}
HEAVY = ("ray", "mlflow", "torch", "torchvision", "fastapi", "pyarrow", "boto3")


def imports(tree: ast.AST) -> set[str]:
    """The top-level names of all modules imported anywhere below `tree`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_imports_keep_their_direction(path: Path):
    name = path.relative_to(REPO).as_posix()
    forbidden = FORBIDDEN[path.relative_to(REPO).parts[0]]
    if name in MAY_IMPORT_SERVING:
        forbidden = forbidden - {"serving"}
    assert not imports(ast.parse(path.read_text())) & forbidden


def test_no_file_is_over_350_lines():
    every = [*FILES, *(REPO / "tests").rglob("*.py")]
    long = {str(path.relative_to(REPO)): n for path in every if (n := path.read_text().count("\n")) > 350}
    assert not long


LIGHT = ("jobs.cli", "jobs.commands.submit", "jobs.commands.doctor", "cluster.ray_connection")


@pytest.mark.parametrize("module", [*PACKAGES, *LIGHT])
def test_importing_loads_nothing_heavy(module: str):
    light = HEAVY if not module.startswith("jobs.") else tuple(n for n in HEAVY if n != "pyarrow")
    code = f"import sys, {module}; print(*sorted(set({light!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_a_training_and_its_driver_load_no_more_than_they_need():
    """A start waits for each import."""
    for code, needless in {
        "import sys, jobs.cli; jobs.cli.make_parser().format_help()": {*HEAVY, "pydantic", "numpy"},
        "import sys, jobs.train.job": {"ray", "torch", "mlflow"},
        "import sys, aecore.training.loop": {"ray", "mlflow", "cv2"},
    }.items():
        asked = f"{code}; print(*sorted({needless!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", asked], cwd=REPO, capture_output=True, text=True, check=True)
        assert done.stdout.split() == []
