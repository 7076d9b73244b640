"""The resources of a worker on a cluster, beside endpoints and other jobs."""

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from aecore.config import Scale
from jobs.train import placement, ray_trainer
from jobs.train.placement import Holding, describe_holdings, worker_capacity, worker_resources
from jobs.train.ray_trainer import NodeError, StoreAccessError, UnfitNodeError


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes `nodes` the connected cluster, of which `held` is held."""

    def connect(nodes: list[dict[str, float]], *held: Holding) -> None:
        described = [{"Alive": True, "NodeID": str(i), "Resources": node} for i, node in enumerate(nodes)]
        monkeypatch.setattr("ray.nodes", lambda: described)
        monkeypatch.setattr(placement, "has_gpu", lambda: any("GPU" in node for node in nodes))
        monkeypatch.setattr(placement, "holdings", lambda: list(held))
        monkeypatch.setattr("ray.util.list_named_actors", lambda all_namespaces: [{"namespace": "serve"}])

    return connect


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the warnings that reach the driver, until a test's end."""
    texts: list[str] = []
    monkeypatch.setattr(ray_trainer, "publish_warning", lambda run, text: texts.append(text))
    return texts


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Callable[[], None]]]:
    """Return the delay and the function of each timer that is started; none runs by itself."""
    started: list[tuple[float, Callable[[], None]]] = []

    def make_timer(delay_s: float, function: Callable[[], None]) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: started.append((delay_s, function)))

    monkeypatch.setattr("threading.Timer", make_timer)
    return started


def endpoint(node: int, **resources: float) -> Holding:
    return Holding("endpoint zpoint", str(node), resources)


@pytest.mark.parametrize(
    ("nodes", "held", "workers", "expected"),
    [
        ([{"CPU": 2}], [], 1, {"CPU": 2}),
        ([{"CPU": 2}], [endpoint(0, CPU=1)], 1, {"CPU": 1}),
        ([{"CPU": 4}, {"CPU": 4}], [endpoint(1, CPU=1)], 2, {"CPU": 3}),
        ([{"CPU": 8}, {"CPU": 8}], [], 3, {"CPU": 4}),  # no worker straddles two nodes
        ([{"CPU": 4}] * 3, [], 4, {"CPU": 2}),
        ([{"CPU": 64}] * 3, [], 4, {"CPU": 32}),
        ([{"CPU": 2}, {"CPU": 32}, {"CPU": 32}], [], 2, {"CPU": 32}),
        ([{"CPU": 4}], [Holding("train-1", "0", {"CPU": 3})], 1, {"CPU": 4}),  # a job ends; an endpoint does not
        ([{"CPU": 8, "GPU": 1}], [endpoint(0, CPU=1, GPU=0.1)], 1, {"GPU": 0.9, "CPU": 1}),
        ([{"CPU": 8, "GPU": 4}], [endpoint(0, CPU=1, GPU=0.1)], 3, {"GPU": 1, "CPU": 1}),
        ([{"CPU": 8, "GPU": 4}], [endpoint(0, CPU=1, GPU=0.1)], 4, {"GPU": 0.9, "CPU": 1}),
        ([{"CPU": 8, "GPU": 4}], [endpoint(0, CPU=1, GPU=0.1)] * 2, 4, {"GPU": 0.8, "CPU": 1}),
        ([{"CPU": 8, "GPU": 1}], [endpoint(0, CPU=1, GPU=0.1)], 5, {"GPU": 0.9, "CPU": 1}),  # trials, one by one
    ],
)
def test_a_worker_gets_what_an_endpoint_leaves(cluster, nodes, held, workers: int, expected: dict[str, float]):
    cluster(nodes, *held)
    resources = worker_resources(Scale(workers=workers))
    assert resources == expected
    if workers <= 4:
        assert worker_capacity(resources) >= workers


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ({"cpus_per_worker": 0.5}, {"GPU": 1, "CPU": 0.5}),
        ({"gpus_per_worker": 0.25}, {"GPU": 0.25, "CPU": 1}),
        ({"gpus_per_worker": 0}, {"CPU": 16}),
        ({"gpus_per_worker": 0, "cpus_per_worker": 3}, {"CPU": 3}),
    ],
)
def test_the_recipe_sets_a_workers_resources(cluster, scale: dict, expected: dict[str, float]):
    cluster([{"CPU": 16, "GPU": 2}])
    assert worker_resources(Scale(**scale)) == expected


def test_left_out_nodes_have_no_capacity(cluster):
    cluster([{"CPU": 2}, {"CPU": 3}])
    assert worker_capacity({"CPU": 1}) == 5
    assert worker_capacity({"CPU": 1}, without={"1"}) == 2


@pytest.mark.parametrize(
    ("node", "worker", "expected"),
    [
        ({"CPU": 0.3}, {"CPU": 0.1}, 3),  # 0.3 // 0.1 is 2 in floating point
        ({"CPU": 1}, {"CPU": 0.1}, 10),
        ({"CPU": 8, "GPU": 0.9}, {"CPU": 1, "GPU": 0.3}, 3),
        ({"CPU": 8, "GPU": 0.8999}, {"CPU": 1, "GPU": 0.3}, 2),
        ({"CPU": 3}, {"CPU": 1.00004}, 3),  # Ray rounds to 1e-4
        ({"CPU": 3}, {"CPU": 0.00001}, 30_000),
    ],
)
def test_fractions_of_resources_are_divided_exactly(cluster, node, worker, expected: int):
    cluster([node])
    assert worker_capacity(worker) == expected


def test_a_wait_names_who_holds_the_resources():
    held = [endpoint(0, CPU=1, GPU=0.1), endpoint(1, CPU=1), Holding("train-1", "0", {"CPU": 2})]
    assert describe_holdings(held) == "endpoint zpoint 2 CPU and 0.1 GPU, train-1 2 CPU"
    many = [Holding(f"train-{i}", "0", {"CPU": 1}) for i in range(6)]
    assert describe_holdings(many).endswith("train-3 1 CPU and 2 more")
    assert "too small" in describe_holdings([])


@pytest.mark.parametrize(("error_type", "base"), [(UnfitNodeError, ValueError), (StoreAccessError, RuntimeError)])
def test_an_error_of_a_node_is_known_after_the_way_to_the_controller(error_type: type[NodeError], base: type):
    error = pickle.loads(pickle.dumps(error_type("on host w2: full", "abc")))
    assert (str(error), error.node_id, isinstance(error, base)) == ("on host w2: full", "abc", True)


@pytest.mark.parametrize(
    ("min_workers", "error", "left_out", "raised"),
    [
        (1, UnfitNodeError("full", "1"), {"1"}, False),
        (2, UnfitNodeError("full", "1"), set(), True),  # too few remain
        (None, UnfitNodeError("full", "1"), set(), True),  # not elastic
        (1, StoreAccessError("no answer", "1"), {"1"}, False),
        (2, StoreAccessError("no answer", "1"), set(), False),  # the store may answer the next attempt
        (None, StoreAccessError("no answer", "1"), set(), False),
        (1, ValueError("optim.lr"), set(), True),
        (1, OSError("no space"), set(), False),
    ],
)
def test_an_elastic_training_leaves_out_a_node_that_fails(
    cluster, warnings, timers, min_workers: int | None, error: Exception, left_out: set[str], raised: bool
):
    cluster([{"CPU": 1}, {"CPU": 1}])
    scale = Scale(workers=(min_workers, 2) if min_workers else 2)
    callback = ray_trainer.FailureCallback("run", {"CPU": 1}, scale)
    with pytest.raises(type(error)) if raised else nullcontext():
        callback.after_exception(None, {0: error})
    assert callback.left_out == left_out
    expected = [f"{error}; the training goes on without this node"] * len(left_out)
    assert warnings == expected + [f"1 of the workers failed: {error}"] * (not raised)


@pytest.mark.parametrize(("workers", "nodes", "missing"), [(2, 2, False), (2, 1, True), ((1, 2), 1, False)])
def test_a_failed_training_names_the_resources_it_waits_for(
    cluster, warnings, timers, workers: int | tuple[int, int], nodes: int, missing: bool
):
    cluster([{"CPU": 1}] * nodes)
    callback = ray_trainer.FailureCallback("run", {"CPU": 1}, Scale(workers=workers))
    callback.after_exception(None, {0: RuntimeError("connection closed")})
    [(delay_s, warn)] = timers
    assert delay_s == placement.WARN_AFTER_S
    warn()
    text = "waiting for resources for 2 workers with 1 CPU each; the cluster has resources for 1"
    assert warnings == ["1 of the workers failed: connection closed", *[text] * missing]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_worker_that_died_is_named_before_those_that_lost_it(cluster, warnings, timers, dead: int):
    cluster([{"CPU": 2}])
    callback = ray_trainer.FailureCallback("run", {"CPU": 1}, Scale(workers=2))
    died = WorkerHealthCheckFailedError("A worker health check failed. Worker info: ...", ActorDiedError())
    callback.after_exception(None, {r: died if r == dead else RuntimeError("connection closed") for r in (0, 1)})
    [warning] = warnings
    assert warning.startswith("2 of the workers failed: The actor died unexpectedly")


@pytest.mark.parametrize(("offset_s", "warned"), [(0.0, False), (20.0, False), (600.0, True), (-600.0, True)])
def test_a_clock_that_differs_from_the_first_workers_is_warned_of(monkeypatch, warnings, offset_s: float, warned: bool):
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    monkeypatch.setattr("torch.distributed.broadcast", lambda clock, source: clock.sub_(offset_s))
    ray_trainer._check_clock("run", torch.device("cpu"))
    assert [f"is {offset_s:+.0f} s off rank 0's" in text for text in warnings] == [True] * warned
