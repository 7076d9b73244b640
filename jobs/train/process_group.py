"""One torch process group of all workers of a training, joined from within their loops.

Ray's TorchTrainer has its controller do it, and so the driver, the controller and the workers import torch one after
the other. Here the workers alone import it, all at once: seconds of every start (tests/benchmarks/startup.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aecore.data.shuffle import World


def worker_device() -> Any:
    """This worker's torch.device: the GPU that Ray gave it, made the current one, else the CPU."""
    import ray
    import torch

    if not ray.get_gpu_ids():
        return torch.device("cpu")
    from ray.train.torch import get_device

    device = get_device()
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(world: "World", device: Any) -> Iterator[None]:
    """While inside, the process group is there: NCCL's between GPUs, else gloo's. A single worker needs none."""
    if world.size == 1:
        yield
        return
    import ray
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    # One node may fill its cache long after the others: they wait here for it, and Ray sees to those that die.
    patience, mine = timedelta(hours=6), None
    if world.rank == 0:  # where all meet; on a port that the system chooses
        mine = TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False, timeout=patience)
    place: Any = broadcast_from_rank_zero((mine.host, mine.port) if mine else None)
    host, port = place
    store = mine or TCPStore(host, port, is_master=False, timeout=patience)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for workers that may hang, and Ray ends them all
