"""A Ray cluster of several nodes on this machine, in a process of its own: one command a line on stdin, one answer.

`add CPUS` starts a node and says its id, `kill ID` ends one as a power cut does, `drain ID SECONDS` announces its end.
Prints the cluster's address first; ends with its stdin.
"""

import sys
import time

import ray.cluster_utils
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2

# A lost node is known in 5 s, not 30.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 5000}


def main() -> None:
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster = ray.cluster_utils.Cluster(True, head_node_args=head | {"_system_config": HEALTH})
    nodes = {}
    answer(cluster.address)
    try:
        for line in sys.stdin:
            what, *words = line.split()
            if what == "add":
                node = cluster.add_node(num_cpus=int(words[0]), node_ip_address=f"127.0.0.{len(nodes) + 2}")
                nodes[node.node_id] = node
                answer(node.node_id)
            elif what == "kill":
                cluster.remove_node(nodes[words[0]], allow_graceful=False)
                answer("killed")
            else:
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                deadline = int((time.time() + float(words[1])) * 1000)
                answer(GcsClient(address=cluster.address).drain_node(words[0], reason, "a test", deadline))
    finally:
        cluster.shutdown()


def answer(words: object) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    main()
