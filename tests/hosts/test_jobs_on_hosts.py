"""Every job, submitted from a laptop to a cluster of several hosts that share an S3 server and MLflow alone.

The tests run in their order: each uses what those before left on the cluster.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts.cluster import BUCKET, Cluster, make_cluster
from tests.hosts.machines import missing_requirement

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement())]
DATA = f"data.uri={BUCKET}/faces"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("hosts"), {"w1": 1, "w2": 1}) as cluster:
        yield cluster


def submit(cluster: Cluster, *argv: object, status: int = 0) -> tuple[dict[str, Any], str]:
    """Submit a job and wait for it; return the command's result and the job's log."""
    process = cluster.zpoint("submit", "--wait", "--json", *argv)
    assert process.returncode == status, process.stderr
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


def cache_entries(cluster: Cluster, worker: str) -> list[str]:
    return cluster.hosts[worker].run("ls", "/tmp/disk/cache").stdout.split()


def test_ingest(cluster: Cluster):
    argv = ("ingest", "generated", "--to", f"{BUCKET}/faces", "--size", 16, "--limit", 300, "--shard-rows", 64)
    result, log = submit(cluster, *argv)
    assert result["status"] == "SUCCEEDED"
    assert "300/300 images" in log


def test_ddp_over_two_hosts_fills_the_cache_of_each_once(cluster: Cluster):
    submit(cluster, "train", "tiny.yaml", DATA, "scale.workers=2", "name=two")
    for worker in ("w1", "w2"):
        assert len([name for name in cache_entries(cluster, worker) if name.endswith("-train")]) == 1


def test_an_elastic_training_leaves_out_a_host_with_a_full_disk(cluster: Cluster):
    w2 = cluster.hosts["w2"]
    w2.run("bash", "-c", "rm -rf /tmp/disk/cache; cat /dev/zero > /tmp/disk/filler")
    _, log = submit(cluster, "train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=elastic")
    assert "on host w2: " in log
    assert "the training goes on without this node" in log
    w2.run("rm", "/tmp/disk/filler")
