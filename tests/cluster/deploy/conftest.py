"""Fixtures of the tests of the deployment: the commands that check its files."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def executable() -> Callable[[str, str], str]:
    """Return a function that gives the path of a command, the environment's own first; it skips the test without."""

    def find(command: str, package: str) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        binary = shutil.which(command, path=path)
        if binary is None and os.environ.get("CI") != "true":  # .ci/run installs it
            pytest.skip(f"no {command} ({package})")
        assert binary, f"no {command}"
        return binary

    return find
