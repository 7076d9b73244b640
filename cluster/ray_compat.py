"""Every private name, monkeypatch and environment trick of Ray that zpoint still needs, one function for each.

Ray is pinned to one minor version in pyproject.toml. Each docstring says what a user suffers without the function, the
test that fails then, and what would let it go. tests/test_private_names.py allows private names in this module alone.
"""

import os
import sys


def use_loopback(enabled: bool) -> None:
    """Make the Ray that this process starts or joins next use 127.0.0.1 as this machine's address, if `enabled`.

    Without it: a local Ray listens on every interface of the machine, and runs whatever code reaches it; a Ray that
    listens on 127.0.0.1 alone cannot be joined by that address, since Ray replaces it by the machine's outward one.
    Test: tests/cluster/test_ray_connection.py::test_a_local_ray_listens_on_loopback_only.
    Goes when: `ray.init` takes the address to bind (https://github.com/ray-project/ray/issues/18730).
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if enabled else "1"  # read when Ray is imported
    if "ray" in sys.modules:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = not enabled
