"""Tags of an MLflow run for the lineage of its model: code, image, packages and job.

`zpoint submit` and a process that joins a cluster send the commit of their code along, since the nodes get no .git.
"""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from cluster.settings import settings

COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's own
JOB_TAG, IMAGE_TAG = "zpoint.job", "zpoint.image"
PACKAGES = ("zpoint", "torch", "ray", "pyarrow")
REPO = Path(__file__).resolve().parent.parent


def lineage_tags() -> dict[str, str]:
    """Return the commit of this code, its image, the versions of packages and the job that runs it, as far as known."""
    versions = {f"zpoint.version.{name}": version(name) for name in PACKAGES}
    tags = {COMMIT_TAG: code_commit(), JOB_TAG: submitted_job(), IMAGE_TAG: settings().image}
    return versions | {name: text for name, text in tags.items() if text}


def code_commit() -> str:
    """Return the commit of this code, with "-dirty" if files differ from it; "" if it is not in a git repository."""
    if commit := settings().commit:
        return commit
    if not (REPO / ".git").exists():
        return ""
    command = ["git", "-C", str(REPO), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or the repository is another user's
        return ""


def submitted_job() -> str:
    """Return the id of the submitted job that this process is a driver of, "" if it is none."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return job.get("metadata", {}).get("job_submission_id", "")
