"""Jobs, submitted from a laptop to a cluster of several hosts that share an S3 server and MLflow alone.

The tests run in their order: each uses what those before left on the cluster. The name of the host w2 leads to
127.0.1.1, as on Debian.
"""

import json
import re
from collections.abc import Iterator

import pytest

from tests.hosts.cluster import BUCKET, END_S, PYTHON, Cluster, make_cluster, wait_until
from tests.hosts.machines import missing_requirement

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement())]
DATA = f"data.uri={BUCKET}/faces"
TAGS = """
import json
from cluster.tracking import client
print(json.dumps(client().get_model_version_by_alias("zpoint", "champion").tags))
"""
LOAD = """
import json, pathlib, sys, time, urllib.request
answered, failures = 0, []
while not pathlib.Path("stop").exists():
    began = time.time()
    try:
        urllib.request.urlopen(f"{sys.argv[1]}/readyz", timeout=30).close()  # which decodes a z-point
        answered += 1
    except OSError as error:
        failures.append(f"{error} at {began:.1f} after {time.time() - began:.1f} s")
    time.sleep(0.05)
print(json.dumps({"answered": answered, "failures": failures}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("hosts"), {"w1": 1, "w2": 1}, loopback_names=["w2"]) as cluster:
        yield cluster


def cache_entries(cluster: Cluster, worker: str) -> list[str]:
    return cluster.hosts[worker].run("ls", "/tmp/disk/cache").stdout.split()


def test_ingest(cluster: Cluster):
    argv = ("ingest", "generated", "--to", f"{BUCKET}/faces", "--size", 16, "--limit", 300, "--shard-rows", 64)
    result, log = cluster.submit(*argv)
    assert sum(result["counts"].values()) == 300
    assert "300/300 images" in log


def test_the_doctor_checks_every_node_from_the_laptop(cluster: Cluster):
    process = cluster.zpoint("doctor", "--cluster", "--json")
    checks = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    assert checks["nodes"]["finding"] == "3 answered"
    assert [check for check in checks.values() if check["ok"] is False] == []
    assert "MB/s between two nodes" in checks["network"]["finding"]


def test_ddp_over_two_hosts_fills_the_cache_of_each_once(cluster: Cluster):
    result, _ = cluster.submit("train", "tiny.yaml", DATA, "scale.workers=2", "name=two")
    assert result["run"] == "two"
    for worker in ("w1", "w2"):
        assert len([name for name in cache_entries(cluster, worker) if name.endswith("-train")]) == 1
    [training, *_] = json.loads(cluster.zpoint("jobs", "--json").stdout)["jobs"]
    assert 0 < training["core_hours"] < 2 * training["seconds"] / 3600


def test_an_elastic_training_leaves_out_a_host_with_a_full_disk(cluster: Cluster):
    w2 = cluster.hosts["w2"]
    w2.run("bash", "-c", "rm -rf /tmp/disk/cache; cat /dev/zero > /tmp/disk/filler")
    _, log = cluster.submit("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=elastic")
    assert "on host w2: " in log
    assert "the training goes on without this node" in log
    w2.run("rm", "/tmp/disk/filler")


def test_the_champion_is_deployed_from_the_laptop(cluster: Cluster):
    cluster.submit("promote", "two")
    tags = json.loads(cluster.hosts["laptop"].run(PYTHON, "-c", TAGS, env=cluster.env).stdout)
    print(tags)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", tags["mlflow.source.git.commit"])
    assert re.fullmatch(r"train-\d{4}-\d{6}-[0-9a-f]{4}", tags["zpoint.job"])
    assert re.fullmatch(r"[0-9a-f]{16,64}", tags["zpoint.dataset"])
    assert (tags["zpoint.recipe"], tags["zpoint.run"]) == ("tiny", "two")
    deployed = json.loads(cluster.zpoint("deploy", "--json").stdout)
    assert (deployed["status"], deployed["replicas"]) == ("RUNNING", 1)
    head = f"http://{cluster.hosts['head'].address}:8000"
    assert head in deployed["urls"]
    sampled = cluster.zpoint("sample", "--url", head, "--n", 4)
    assert sampled.returncode == 0, sampled.stderr


def test_no_request_fails_while_the_endpoint_is_changed(cluster: Cluster):
    """The new replica starts on the other host before the old one stops."""
    laptop, head = cluster.hosts["laptop"], f"http://{cluster.hosts['head'].address}:8000"
    load = laptop.start(PYTHON, "-c", LOAD, head, log="load")
    changed = cluster.zpoint("deploy", "--access-log", "/tmp/home/access.jsonl", "--json")
    assert json.loads(changed.stdout)["status"] == "RUNNING"
    written = [worker for worker in ("w1", "w2") if cluster.hosts[worker].run("cat", "/tmp/home/access.jsonl").stdout]
    assert written, "no replica has the new option"
    refused = cluster.zpoint("deploy", "--alias", "nobody")
    assert refused.returncode == 1
    assert "the replicas from before go on serving" in refused.stderr
    laptop.run("touch", "stop")
    assert load.wait(60) == 0
    requests = json.loads((laptop.folder / "load.log").read_text())
    assert requests["failures"] == []
    assert requests["answered"] > 20
    print(requests)
    assert cluster.zpoint("deploy", "delete").returncode == 0


def test_a_campaign_ends_with_every_trial_though_a_host_loses_power(cluster: Cluster):
    campaign, log = cluster.start_job("tune", "tiny.yaml", DATA, "name=search", "optim.epochs=40", log="tune")
    wait_until(lambda: re.search(r"search: [1-9]\d/80", log.read_text()), "the tenth epoch")
    cluster.hosts["w2"].power_off()
    assert campaign.wait(END_S) == 0, log.read_text()
    assert "its process died; it resumes from its last checkpoint" in log.read_text()
    result = json.loads(log.read_text().splitlines()[-1])["result"]
    assert [trial["epoch"] for trial in result["trials"] if trial["state"] == "finished"] == [40, 40]
