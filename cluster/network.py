"""Configure what the libraries send: no telemetry, nothing for loopback through a proxy.

The proxies are those of the environment, HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case. Other hosts
than loopback go as NO_PROXY says.
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from cluster.settings import hide_credentials

ENDPOINT_URL = "http://127.0.0.1:8000"  # where `zpoint serve` listens by default
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1", "[::1]")  # in the forms that the libraries compare


def is_loopback(host: str) -> bool:
    """Return True if `host`, a name or an IP address, is this machine's loopback interface."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def accepts_connections(host: str, port: int, timeout_s: float) -> bool:
    """Return True if a server accepts TCP connections at `host` and `port` within `timeout_s`."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError:
        return False
    return True


def has_unix_socket(substring: str) -> bool:
    """Return True if a process of this machine has a Unix socket whose path exists and has `substring` in it.

    A container with its own network or file system is another machine. Always False without Linux's /proc.
    """
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()  # the path is the 8th field
    except FileNotFoundError:
        return False
    return any(substring in line and os.path.exists(line.split(maxsplit=7)[-1]) for line in lines)


def find_interface(address: str) -> str:
    """Return the name of this host's network interface with the IPv4 address `address`, "" if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return ""


def configure_libraries() -> None:
    """Disable telemetry and exempt loopback from proxies; call it before Ray or MLflow is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    bypass_proxies()


def bypass_proxies(*hosts: str) -> None:
    """Add loopback and `hosts` to NO_PROXY, which the HTTP libraries of this process and its children read.

    Does nothing if the environment names no proxy.
    """
    names = _no_proxy()
    if not proxies() or "*" in names:
        return
    names += [host for host in (*LOOPBACK, *hosts) if host not in names]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


def bypasses_proxies(url: str) -> bool:
    """Return True if requests to `url` go to its host directly: it is loopback, or in NO_PROXY.

    NO_PROXY lists names, which include their subdomains, IP addresses and networks (10.0.0.0/8), separated by commas.
    """
    parsed = urlsplit(url)
    host = parsed.hostname or ""
    if is_loopback(host) or host.endswith(".localhost") or proxy_bypass(parsed.netloc.rpartition("@")[2]):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or any(address in network for network in map(_network, _no_proxy()) if network)


def proxies() -> dict[str, str]:
    """Return the URLs of the environment's proxies by the name of their variable; http:// if they name no scheme."""
    values = {name: os.environ.get(name, "") for lower in PROXY_VARIABLES for name in (lower, lower.upper())}
    return {name: value if "://" in value else f"http://{value}" for name, value in values.items() if value}


def describe_proxy_error() -> str:
    """Return the fault of the first unusable proxy and its fix, in one line; "" if all are usable."""
    for name, value in proxies().items():
        label = f"{name}={hide_credentials(value)}"
        try:
            parsed = urlsplit(value)
            is_address = bool(parsed.hostname) and parsed.port != 0
        except ValueError:
            is_address = False
        else:
            if parsed.scheme.startswith("socks") and not (find_spec("socksio") and find_spec("socks")):
                return f"{label} needs a SOCKS package: pip install socksio PySocks, or unset it"
            if parsed.scheme not in ("http", "https", "socks4", "socks5", "socks5h"):
                return f"{label} has the unknown scheme '{parsed.scheme}': write {name}=http://host:port, or unset it"
        if not is_address:
            return f"{label} names no host and port: write {name}=http://host:port, or unset it"
    return ""


def check_proxies(url: str) -> None:
    """Raise ValueError if requests to `url` would go through a proxy that the libraries cannot use."""
    if not bypasses_proxies(url) and (error := describe_proxy_error()):
        raise ValueError(f"no proxy for {hide_credentials(url)}: {error}, or add the host to NO_PROXY")


def proxy_hint(url: str) -> str:
    """Return a hint for a failed request to `url` if it went through a proxy, which may have answered it; else ""."""
    if not proxies() or bypasses_proxies(url):
        return ""
    return f" (through the proxy of {', '.join(proxies())}; hosts in NO_PROXY are reached directly)"


def _no_proxy() -> list[str]:
    value = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    return [name.strip() for name in value.split(",") if name.strip()]


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False) if "/" in name else None
    except ValueError:
        return None
