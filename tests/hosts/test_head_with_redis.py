"""A head that keeps its state in Redis (Ray's GCS fault tolerance) loses power: what goes on, and what is lost.

The tests run in their order: each uses what those before left on the cluster.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.hosts.cluster import (
    BUCKET,
    Cluster,
    make_cluster,
    train_workers,
    wait_for_epoch,
    wait_until,
    worker_processes,
)
from tests.hosts.machines import missing_requirement

MISSING = missing_requirement() or ("" if shutil.which("redis-server") else "no redis-server: make install-servers")
pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
DATA = f"data.uri={BUCKET}/faces"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("hosts"), {"w1": 2, "w2": 1}, redis=True) as cluster:
        argv = ("ingest", "generated", "--to", f"{BUCKET}/faces", "--size", 16, "--limit", 300, "--shard-rows", 64)
        cluster.submit(*argv)
        yield cluster


def test_a_training_whose_driver_is_on_a_worker_goes_on_through_a_power_cut_of_the_head(cluster: Cluster):
    argv = ("--cpus", 1, "train", "tiny.yaml", DATA, "scale.workers=1", "scale.cpus_per_worker=1", "name=steady")
    training, log = cluster.start_job(*argv, "optim.epochs=600", log="steady")
    wait_for_epoch(log, "", 600, "the first steps")
    workers = train_workers(cluster)
    assert workers
    cluster.hosts["head"].power_off()
    wait_until(lambda: "lost the connection to" in log.read_text(), "the head off: noticed")
    cluster.hosts["head"].boot()
    cluster.start_head()
    wait_until(lambda: "connected again; job" in log.read_text(), "the head on: connected again")
    wait_for_epoch(log, log.read_text(), 600, "the head on: progress again")
    assert train_workers(cluster) == workers
    assert training.wait(300) == 0, log.read_text()
    assert "goes on as train-" not in log.read_text()


def test_an_endpoint_answers_again_without_a_deployment(cluster: Cluster):
    cluster.submit("promote", "steady")
    assert cluster.zpoint("deploy").returncode == 0
    sample = ("sample", "--url", f"http://{cluster.hosts['head'].address}:8000", "--n", 1)
    assert cluster.zpoint(*sample).returncode == 0
    replica = worker_processes(cluster, "ray::ServeReplica")
    cluster.hosts["head"].power_off()
    assert cluster.zpoint(*sample, timeout_s=300).returncode != 0
    cluster.hosts["head"].boot()
    cluster.start_head()
    wait_until(lambda: cluster.zpoint(*sample).returncode == 0, "the head on: the endpoint answers", interval_s=0)
    assert worker_processes(cluster, "ray::ServeReplica") == replica
