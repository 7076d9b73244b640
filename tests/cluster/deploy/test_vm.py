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
def test_commands_are_bash_and_ray_knows_their_options(path: Path):
    from ray.scripts.scripts import start

    config = yaml.safe_load(path.read_text())
    commands = [command for key in (*STARTS, "initialization_commands") for command in config.get(key, [])]
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
