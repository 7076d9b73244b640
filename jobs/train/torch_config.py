"""Ray Train's configuration of torch's process group. Imported only where a training starts: it needs ray.train."""

import os
from typing import Any

from ray.train.torch import TorchConfig

from cluster.network import find_interface

TorchBackend: Any = TorchConfig().backend_cls


class NodeTorchConfig(TorchConfig):
    """TorchConfig whose gloo, DDP on CPUs, binds to the address by which Ray knows the node.

    gloo itself binds to what the host's name resolves to. On Debian that is 127.0.1.1, which no other host reaches.
    """

    @property
    def backend_cls(self) -> Any:
        return NodeTorchBackend


class NodeTorchBackend(TorchBackend):
    """Ray Train's torch backend, with gloo's interface set in each worker before the process group is made."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)


def bind_gloo() -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, to the interface of this node's Ray address."""
    import ray

    if interface := find_interface(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
