"""Run a command in a network namespace whose only route leads to an interface that records where packets go."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SET_UP = """
set -e
ip link set lo up
ip link add out type veth peer name sink
ip link set sink up
ip addr add 10.99.0.2/24 dev out
ip link set out up
ip route add default via 10.99.0.1
ip neigh add 10.99.0.1 lladdr 02:00:00:00:00:01 dev out nud permanent
exec "$@"
"""
RECORD = """
import ipaddress, re, socket, subprocess, sys, threading
capture, destinations = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)), set()
capture.bind(("out", 0))
def watch():
    while True:
        packet = capture.recv(2048)
        if packet[0] >> 4 == 4:
            port = int.from_bytes(packet[22:24])  # 53 is DNS, whose packets hold the name that is looked up
            name = b".".join(re.findall(rb"[\\w-]+", packet[40:])).decode() if port == 53 else ""
            destinations.add(f"{ipaddress.ip_address(packet[16:20])} port {port} {name}".rstrip())
threading.Thread(target=watch, daemon=True).start()
subprocess.run(["bash", "-c", "exec 3<>/dev/udp/192.0.2.9/9; echo >&3"], check=True)  # shows that the watch works
status = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write("\\n".join(destinations))
sys.exit(status)
"""


def watch_destinations(command: list[str], timeout_s: float) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `command` in the repository; return its end, and the addresses and ports that it sent packets to.

    Skips the test if this machine allows no network namespace.
    """
    namespace = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", SET_UP, "bash"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace: needs unshare, ip and the permission for a veth")
    with tempfile.NamedTemporaryFile("r") as record:
        process = subprocess.run(
            [*namespace, sys.executable, "-c", RECORD, record.name, *command],
            capture_output=True, text=True, timeout=timeout_s, cwd=REPO,
        )  # fmt: skip
        destinations = set(record.read().splitlines())
    assert "192.0.2.9 port 9" in destinations, process.stderr
    return process, destinations - {"192.0.2.9 port 9"}
