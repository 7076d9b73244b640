"""A Ray cluster of several nodes on this machine: a process that answers each command on stdin with a line on stdout.

`add CPUS` starts a node and returns its id, `kill ID` ends one as a power cut does, `drain ID SECONDS` announces its
end. The first line is the cluster's address; the process ends with its stdin.
"""

import sys
import time

import ray.cluster_utils
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2

# A lost node is noticed after 5 s instead of 30.
HEALTH_CHECK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
}


def main() -> None:
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster = ray.cluster_utils.Cluster(True, head_node_args=head | {"_system_config": HEALTH_CHECK})
    nodes = {}
    reply(cluster.address)
    try:
        for line in sys.stdin:
            command, *args = line.split()
            if command == "add":
                node = cluster.add_node(num_cpus=int(args[0]), node_ip_address=f"127.0.0.{len(nodes) + 2}")
                nodes[node.node_id] = node
                reply(node.node_id)
            elif command == "kill":
                cluster.remove_node(nodes[args[0]], allow_graceful=False)
                reply("killed")
            else:
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                deadline_ms = int((time.time() + float(args[1])) * 1000)
                reply(GcsClient(address=cluster.address).drain_node(args[0], reason, "a test", deadline_ms))
    finally:
        cluster.shutdown()


def reply(message: object) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    main()
