"""Check the alert rules, the dashboard and the service stack as text; test_services.py runs them."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[3] / "cluster" / "deploy"
DASHBOARD = json.loads((DEPLOY / "observability" / "dashboard.json").read_text())


def test_promtool_accepts_rules_and_configuration(executable: Callable[[str, str], str]):
    promtool = executable("promtool", "apt-get install prometheus")
    for command, file in {"config": "prometheus.yml", "rules": "rules.yaml"}.items():
        checked = subprocess.run(
            [promtool, "check", command, DEPLOY / "observability" / file], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stderr


ALERT_TESTS = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series: # no request has ever succeeded
      - {{series: 'ray_zpoint_requests_total{{status="500"}}', values: 0+60x60}}
    alert_rule_test:
      - {{eval_time: 30m, alertname: ZpointEndpointFails, exp_alerts: [{{
          exp_labels: {{severity: critical}}, exp_annotations: {{summary: the endpoint fails 100% of its requests}}}}]}}
  - interval: 1m
    input_series:
      - {{series: 'ray_zpoint_requests_total{{status="200"}}', values: 0+60x60}}
      - {{series: 'ray_zpoint_requests_total{{status="503"}}', values: 0+3x20 60x40}}
      - {{series: 'ray_zpoint_refused_versions_total{{replica="a"}}', values: 0x10 1+1x10 11x40}}
    alert_rule_test:
      - {{eval_time: 5m, alertname: ZpointVersionRefused, exp_alerts: []}}
      - {{eval_time: 15m, alertname: ZpointVersionRefused, exp_alerts: [{{
          exp_labels: {{severity: warning}},
          exp_annotations: {{summary: a promoted version does not load; /v1/model names it and the reason}}}}]}}
      - {{eval_time: 40m, alertname: ZpointVersionRefused, exp_alerts: []}} # another version serves
      - {{eval_time: 15m, alertname: ZpointEndpointFails, exp_alerts: [{{
          exp_labels: {{severity: critical}},
          exp_annotations: {{summary: the endpoint fails 4.762% of its requests}}}}]}}
      - {{eval_time: 50m, alertname: ZpointEndpointFails, exp_alerts: []}}
"""


def test_alerts_fire_and_resolve(executable: Callable[[str, str], str], tmp_path: Path):
    promtool = executable("promtool", "apt-get install prometheus")
    file = tmp_path / "tests.yaml"
    file.write_text(ALERT_TESTS.format(rules=DEPLOY / "observability" / "rules.yaml"))
    checked = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_panels_do_not_overlap_and_say_what_they_show():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["description"] and panel["title"] for panel in DASHBOARD["panels"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_compose_names_files_volumes_and_variables_that_exist(tmp_path: Path):
    folder = DEPLOY / "services"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    subprocess.run(["sh", DEPLOY / "secrets.sh", tmp_path / "secrets"], check=True)
    readers: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            named = re.fullmatch(r"[a-z]\w*", source)
            # Docker makes a missing source, for root alone: a path outside the repository has to be on every host.
            exists = source == "/tmp" or (source.startswith(".") and (folder / source).exists())
            assert source in compose["volumes"] if named else exists, name
        for file in service.get("env_file", []):
            assert (tmp_path / file).is_file()
            readers.setdefault(file, set()).add(name)
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        assert service["image"].count(":") == 1
    assert readers == {
        "secrets/s3-root.env": {"s3"}, "secrets/postgres.env": {"postgres", "mlflow"}, "secrets/mlflow.env": {"mlflow"},
        "secrets/s3.env": {"mlflow"}, "secrets/grafana.env": {"grafana"},
    }  # fmt: skip
    assert "password" not in (folder / "compose.yaml").read_text().replace("PASSWORD", "").replace("passwords", "")


def test_secrets_are_random_private_and_never_overwritten(tmp_path: Path):
    command = ["sh", DEPLOY / "secrets.sh", tmp_path / "secrets"]
    subprocess.run(command, check=True)
    files = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert all((tmp_path / "secrets" / name).stat().st_mode & 0o777 == 0o600 for name in files)
    assert subprocess.run(command, capture_output=True).returncode != 0
    assert files == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    values = dict(line.split("=", 1) for text in files.values() for line in text.splitlines())
    assert values["MLFLOW_TRACKING_PASSWORD"] == values["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert (values["ROOT_ACCESS_KEY"], values["ROOT_SECRET_KEY"]) == (
        values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"]
    )  # fmt: skip
    assert all(len(value) >= 20 for name, value in values.items() if not name.endswith("USERNAME"))
