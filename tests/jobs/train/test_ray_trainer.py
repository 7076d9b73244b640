"""The driver and the workers of a training around Ray Train, without a Ray."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from ray.exceptions import RayTaskError

from aecore.config import Recipe, check_recipe
from aecore.data.cache_eviction import CacheSpaceError
from aecore.data.dataset import Dataset
from jobs.run_store import RunStore
from jobs.train import ray_trainer
from jobs.train.ray_trainer import NodeTorchConfig, bind_gloo
from jobs.train.worker import Worker


class DeadWorker(Exception):
    """As Ray Train's WorkerHealthCheckFailedError."""

    def __init__(self, actor_id: str) -> None:
        super().__init__(f"actor {actor_id} died")
        self.health_check_failure = SimpleNamespace(actor_id=actor_id)


def failed(*failures: Exception) -> Any:
    return SimpleNamespace(worker_failures=dict(enumerate(failures)))


def test_gloo_takes_the_interface_of_rays_address_unless_the_user_names_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    bind_gloo()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    bind_gloo()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_each_worker_sets_the_interface_before_the_process_group_is_made(monkeypatch: pytest.MonkeyPatch):
    calls = []
    config = NodeTorchConfig(timeout_s=7)
    base = config.backend_cls.__mro__[1]
    monkeypatch.setattr(base, "on_start", lambda self, group, config: calls.append(("process group", config.timeout_s)))
    group = SimpleNamespace(execute=lambda function: calls.append(function))
    config.backend_cls().on_start(group, config)
    assert calls == [bind_gloo, ("process group", 7)]


def test_the_error_is_that_of_the_worker_that_died_and_not_of_those_that_lost_it():
    error = ray_trainer.training_error(failed(RuntimeError("Connection reset by peer"), DeadWorker("abc")))
    assert str(error) == "training failed: actor abc died"


def test_the_error_of_a_trial_is_its_message_without_the_traceback():
    for cause, expected in (
        (CacheSpaceError("no space"), ValueError("no space")),
        (OSError("503"), RuntimeError("training failed: 503")),
    ):
        error = ray_trainer.training_error(RayTaskError("train", "Traceback ...", cause).as_instanceof_cause())
        assert (type(error), str(error)) == (type(expected), str(expected))


def test_store_that_fails_as_a_worker_opens_the_dataset_is_retried(monkeypatch: pytest.MonkeyPatch):
    """The driver has checked it; before, it ended a training with a fixed number of workers as a user's mistake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(RunStore, "check_visible", lambda self: None)
    monkeypatch.setattr("ray.train.get_context", lambda: None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    with pytest.raises(ray_trainer.StoreAccessError, match="no answer from the S3 endpoint"):
        ray_trainer.train_loop_per_worker(
            recipe=check_recipe({"data": {"uri": "s3://bucket/faces"}}), run_store=RunStore("x", "/x", run_id=""),
            env={}, torch_version=ray_trainer.version("torch"), report=False,
            gpu_share=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(("resources", "gpu_share"), [({"GPU": 0.25, "CPU": 1}, 0.25), ({"CPU": 2}, 1.0)])
def test_a_worker_knows_its_fraction_of_a_gpu(monkeypatch: pytest.MonkeyPatch, resources: dict, gpu_share: float):
    workers: list[Worker] = []

    def record(recipe: Recipe, dataset: Any, run_store: RunStore, worker: Worker) -> Iterator[dict[str, float]]:
        workers.append(worker)
        yield from ()

    for name, function in {
        "worker_resources": lambda *_, **__: resources,
        "wait_for_resources": lambda *_: None,
        "uses_local_ray": lambda: False,
        "TorchTrainer": lambda loop, **_: loop,
        "set_run_id": lambda *_: None,
        "get_device": lambda: torch.device("cpu"),
    }.items():
        monkeypatch.setattr(ray_trainer, name, function)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr(RunStore, "check_visible", lambda self: None)
    monkeypatch.setattr(Dataset, "open", lambda *_: None)
    monkeypatch.setattr("jobs.train.metrics.TrainingMetrics", MagicMock())
    monkeypatch.setattr("jobs.train.worker.train_loop", record)
    dataset: Any = SimpleNamespace(manifest=None)
    ray_trainer.make_trainer(check_recipe({"data": {"uri": "/x"}}), dataset, RunStore("x", "/x", run_id=""), ())()
    assert [worker.gpu_share for worker in workers] == [gpu_share]


def test_the_last_lines_of_a_worker_that_died_are_logged(monkeypatch: pytest.MonkeyPatch, caplog):
    def get_log(actor_id: str, suffix: str, tail: int) -> list[str]:
        if actor_id == "away":
            raise ConnectionError
        return ["Fatal Python error: Segmentation fault\n", f"{'x' * 500}\n"]

    monkeypatch.setattr(ray_trainer, "get_log", get_log)
    ray_trainer._log_last_lines(failed(RuntimeError("reset"), DeadWorker("away"), DeadWorker("abc")))
    [message] = caplog.messages
    first, fault, line = message.splitlines()
    assert (first, fault) == ("a worker died; its last lines:", "  Fatal Python error: Segmentation fault")
    assert len(line) <= ray_trainer.LINE_WIDTH + 2


def test_a_node_with_another_torch_is_refused_and_another_build_of_it_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_trainer, "version", lambda package: "2.14.0+cu128")
    ray_trainer._check_torch("2.14.0+cpu")
    with pytest.raises(ValueError, match=r"torch 2\.14\.0\+cu128, but the driver has 2\.14\.1"):
        ray_trainer._check_torch("2.14.1")
