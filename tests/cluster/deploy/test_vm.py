"""Check the files of Ray's cluster launcher by its own validator, and the commands in them."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = sorted((Path(__file__).parents[3] / "cluster" / "deploy" / "vm").glob("*.yaml"))
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults and validate, as `ray up` does before it asks the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(config)
    validate_config(config)
    return config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_up_accepts_the_file_and_refuses_a_typo(path: Path):
    import jsonschema

    config = yaml.safe_load(path.read_text())
    types = prepared(copy.deepcopy(config))["available_node_types"]
    workers = [node for name, node in types.items() if name != config.get("head_node_type", name)]
    assert all(node["max_workers"] > 0 for node in workers)
    for section in ([], ["auth"], *([["docker"], ["available_node_types", "gpu"]] if "docker" in config else [])):
        damaged = copy.deepcopy(config)
        values = damaged
        for key in section:
            values = values[key]
        values["max_wrokers"] = 1
        with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
            prepared(damaged)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_host_has_access_to_the_registry_of_its_image(path: Path):
    config = yaml.safe_load(path.read_text())
    if "docker" in config:
        registry = config["docker"]["image"].partition("/")[0]
        [login] = [command for command in config["initialization_commands"] if registry in command]
        assert re.search(r"docker login|configure-docker", login)


def test_the_head_on_compute_engine_gets_the_client_of_its_autoscaler():
    config = prepared(yaml.safe_load(next(path for path in FILES if path.stem == "gcp").read_text()))
    installs = [command for command in config["head_setup_commands"] if "google-api" in command]
    assert installs == ["pip install 'google-api-python-client>=2.190,<3'"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_are_bash_and_ray_knows_their_options(path: Path):
    from ray.scripts.scripts import start

    config = yaml.safe_load(path.read_text())
    keys = (*STARTS, "initialization_commands", "head_setup_commands")
    commands = [command for key in keys for command in config.get(key, [])]
    for command in commands:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    options = {option for parameter in start.params for option in parameter.opts}
    started = [command for command in commands if " start " in command]
    assert len(started) == 2
    assert set(re.findall(r"--[\w-]+", " ".join(started))) <= options
    head, worker = started
    assert "--num-cpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert all(". ~/zpoint.env" in command for command in started)
    # HAProxy's admin socket is there, open to whoever may enter; `install` fails if another user made the folder.
    assert all("install -d -m 700 /tmp/haproxy-serve && " in command for command in started)
    if "docker" not in config:  # a submitted job runs `python`, which an image has in PATH
        assert all("export PATH=/opt/zpoint/.venv/bin:$PATH;" in text.partition("ray start")[0] for text in started)
    assert all("chmod 600 ~/.ray/auth_token ~/zpoint.env; set -a; . ~/zpoint.env" in command for command in started)
