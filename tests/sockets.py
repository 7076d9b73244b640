"""Read from /proc which sockets a process and its descendants listen on."""

import os
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

LISTEN = "0A"  # the state's code in /proc/net/tcp


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`, itself excluded."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # the process has exited meanwhile
                parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    pids = list(children.get(pid, []))
    for child in pids:
        pids += children.get(child, [])
    return pids


def command_line(pid: int) -> str:
    """Return the command line of a process, "" if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def listening_addresses(pids: list[int]) -> list[str]:
    """Return the IP address of each TCP socket that the processes `pids` listen on; IPv4 in IPv6 as IPv4."""
    listeners: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTEN:
                listeners[f"socket:[{inode}]"] = _decode_address(local.partition(":")[0])
    addresses = []
    for pid in pids:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    target = os.readlink(link)
                    addresses += [listeners[target]] if target in listeners else []
    return addresses


def _decode_address(text: str) -> str:
    """Decode 32-bit words in the machine's (little-endian) byte order, as in 0100007F."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    address = ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)
