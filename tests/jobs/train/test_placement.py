"""What a worker gets of a cluster, beside endpoints and other jobs."""

import pickle
from contextlib import nullcontext

import pytest
import torch

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


def endpoint(node: int, **resources: float) -> Holding:
    return Holding("endpoint zpoint", str(node), resources)


@pytest.mark.parametrize(
    ("nodes", "held", "workers", "expected"),
    [
        ([{"CPU": 2}], [], 1, {"CPU": 2}),
        ([{"CPU": 2}], [endpoint(0, CPU=1)], 1, {"CPU": 1}),
        ([{"CPU": 4}, {"CPU": 4}], [endpoint(1, CPU=1)], 2, {"CPU": 3}),
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
    cluster, monkeypatch: pytest.MonkeyPatch, min_workers, error: Exception, left_out: set[str], raised: bool
):
    monkeypatch.setattr(ray_trainer, "publish_warning", lambda run, text: warnings.append(text))
    cluster([{"CPU": 1}, {"CPU": 1}])
    warnings: list[str] = []
    callback = ray_trainer.FailOnUserError("run", {"CPU": 1}, min_workers)
    with pytest.raises(type(error)) if raised else nullcontext():
        callback.after_exception(None, {0: error})
    assert callback.left_out == left_out
    assert warnings == [f"{error}; the training goes on without this node"] * len(left_out)


@pytest.mark.parametrize(("offset_s", "warned"), [(0.0, False), (20.0, False), (600.0, True), (-600.0, True)])
def test_a_clock_that_differs_from_the_first_workers_is_warned_of(monkeypatch, offset_s: float, warned: bool):
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    monkeypatch.setattr("torch.distributed.broadcast", lambda clock, source: clock.sub_(offset_s))
    warnings: list[str] = []
    monkeypatch.setattr(ray_trainer, "publish_warning", lambda run, text: warnings.append(text))
    ray_trainer._check_clock("run", torch.device("cpu"))
    assert [f"is {offset_s:+.0f} s off rank 0's" in text for text in warnings] == [True] * warned
