"""Several hosts on one Linux machine: network namespaces, joined by a switch that nothing outside reaches.

A host has its own address, name, processes, /tmp, HOME, /dev/shm and, at /tmp/disk, a small disk; it shares the
machine's other files. Its link can be unplugged and its power cut. Needs root, iproute2 and util-linux.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[2]
SUBNET = "10.77.0"
TMP = Path("/tmp")
# Run by the first process of a host. Orphans are reaped by the kernel, since the process ignores SIGCHLD.
BOOT = """
set -e
hostname "$NAME"
mount --make-rprivate /
for path in $SHARED; do mkdir -p "$ROOT$path"; mount --bind "$path" "$ROOT$path"; done
mkdir -p "$ROOT/tmp/disk" "$ROOT/tmp/home"
mount -t tmpfs -o "size=$DISK" disk "$ROOT/tmp/disk"
mount -t tmpfs -o size=512m shm /dev/shm
mount --bind "$ROOT/hosts" /etc/hosts
mount --bind "$ROOT/resolv.conf" "$(realpath /etc/resolv.conf)"
mount --rbind "$ROOT/tmp" /tmp
trap "" CHLD
echo booted
exec sleep infinity
"""


def missing_requirement() -> str:
    """Return why no hosts can be made here, "" if they can."""
    if os.geteuid() != 0:
        return "hosts need root, to make network namespaces"
    if missing := [command for command in ("ip", "unshare", "nsenter") if not shutil.which(command)]:
        return f"hosts need {', '.join(missing)}: on Debian, apt-get install iproute2 util-linux"
    namespace = f"zpoint-{os.getpid()}-probe"
    probe = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
    return f"this machine makes no network namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class Host:
    """One host. `loopback_name`: its own name resolves to 127.0.1.1, as Debian's installer has it."""

    def __init__(
        self, folder: Path, name: str, addresses: Mapping[str, str], switch: str, *, disk: str = "256m",
        loopback_name: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.name, self.address, self.switch, self.disk = folder, name, addresses[name], switch, disk
        self.namespace = f"{switch}-{name}"
        self.processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in addresses.items() if host != name)]
        lines.append(f"127.0.1.1 {name}" if loopback_name else f"{self.address} {name}")
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refused at once
        self.boot()

    def boot(self) -> None:
        """Start the host; the files that it wrote before a power cut are there, except those on /tmp/disk."""
        ip("netns", "add", self.namespace)
        ip("-n", self.switch, "link", "add", f"v-{self.name}", "type", "veth", "peer", "eth0", "netns", self.namespace)
        ip("-n", self.switch, "link", "set", f"v-{self.name}", "master", "br0", "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")
        ip("-n", self.namespace, "route", "add", "default", "via", f"{SUBNET}.1")  # programs ask which way is out
        shared = [str(path) for path in (REPO, Path(sys.prefix)) if path.is_relative_to(TMP)]
        variables = {"NAME": self.name, "ROOT": str(self.folder), "DISK": self.disk, "SHARED": " ".join(shared)}
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *unshare, "bash", "-c", BOOT],
            env=os.environ | variables, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.init.stdout is not None
        assert self.init.stdout.readline() == b"booted\n", f"host {self.name} did not boot"
        self.pid = int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text())

    def power_off(self) -> None:
        """End all processes at once; nobody on the network is told."""
        self.unplug()
        self.init.kill()
        self.init.wait()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()
        ip("-n", self.switch, "link", "del", f"v-{self.name}")  # the kernel would take seconds to end it
        ip("netns", "del", self.namespace)

    def unplug(self) -> None:
        ip("-n", self.switch, "link", "set", f"v-{self.name}", "down")

    def plug(self) -> None:
        ip("-n", self.switch, "link", "set", f"v-{self.name}", "up")

    def command(self, argv: Sequence[object], env: Mapping[str, str]) -> list[str]:
        """Return the machine's command that runs `argv` on this host with the variables `env` and few others."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        base = {"PATH": path, "HOME": "/tmp/home", "PYTHONPATH": str(REPO), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        assignments = [f"{name}={value}" for name, value in {**base, **env}.items()]
        enter = ["nsenter", "-t", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "env", "--chdir=/tmp/home", "-i", *assignments, *map(str, argv)]

    def start(self, *argv: object, env: Mapping[str, str] = {}, log: str = "") -> subprocess.Popen[bytes]:
        """Start a process; its output goes to the file `log` in the host's folder, by default the command's name."""
        with open(self.folder / f"{log or Path(str(argv[0])).name}.log", "ab") as file:
            process = subprocess.Popen(self.command(argv, env), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.processes.append(process)
        return process

    def run(
        self, *argv: object, env: Mapping[str, str] = {}, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command to its end; return its status and output."""
        command = self.command(argv, env)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)


@contextmanager
def make_hosts(
    folder: Path, names: Sequence[str], loopback_names: Collection[str] = ()
) -> Iterator[dict[str, Host]]:  # fmt: skip
    """Boot hosts with these names at 10.77.0.10, .11, ...; end them, and their network, with the block."""
    switch = f"zpoint-{os.getpid()}"
    addresses = {name: f"{SUBNET}.{10 + index}" for index, name in enumerate(names)}
    hosts: dict[str, Host] = {}
    ip("netns", "add", switch)
    try:
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for name in names:
            hosts[name] = Host(folder / name, name, addresses, switch, loopback_name=name in loopback_names)
        yield hosts
    finally:
        for host in hosts.values():
            if host.init.poll() is None:
                host.power_off()
        ip("netns", "del", switch)


def ip(*argv: str) -> None:
    process = subprocess.run(["ip", *argv], capture_output=True, text=True)
    assert process.returncode == 0, f"ip {' '.join(argv)}: {process.stderr}"
