"""The serve command and the commands that query what is served."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.files import write_whole
from cluster.local import connect
from cluster.settings import settings
from serving.client import Client


def serve(alias: str, host: str, port: int, replicas: str = "1") -> dict[str, Any]:
    """Serve the model that `alias` names until Ctrl-C, by `replicas` processes, as in "2" or "1-4".

    Raises ValueError as `serving.deployment` does.
    """
    from serving.deployment import serve_champion, wait
    from serving.registry import find_champion

    bounds = _replicas(replicas)
    find_champion(alias)  # a missing alias is told before Ray starts
    connect()
    served = serve_champion(alias, host, port, replicas=bounds)
    print(f"zpoint: serving {served.model} version {served.version} at {served.url}", file=sys.stderr)
    print(f"zpoint: routes at {served.url}/docs; stop with Ctrl-C", file=sys.stderr, flush=True)
    wait()
    return {"url": served.url, "model": served.model, "version": served.version, "stopped": True}


def _replicas(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f"--replicas takes a number, or the least and the most as in 1-4, not '{text}'")
    return least, most


def decode_file(url: str, path: str, out: str) -> dict[str, Any]:
    """Decode the z-points in the .npy file `path` at the endpoint `url` into the PNG or .npy file `out`."""
    _check_out(out)
    try:
        with open(path, "rb") as file:
            z = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of z-points: {error}") from error
    if z.ndim != 2:
        raise ValueError(f"{path} has the shape {z.shape}: it takes z-points, (n, z_dim)")
    client = Client(url, settings().token)
    return _save(out, lambda: client.decode_png(z), lambda: client.decode(z), len(z))


def sample_file(url: str, sampler: str, n: int, seed: int, out: str) -> dict[str, Any]:
    """Have the endpoint `url` choose `n` z-points and decode them into the PNG or .npy file `out`."""
    _check_out(out)
    client = Client(url, settings().token)
    return _save(out, lambda: client.sample_png(sampler, n, seed=seed), lambda: client.sample(sampler, n, seed=seed), n)


def _check_out(out: str) -> None:
    if Path(out).suffix not in (".png", ".npy"):
        raise ValueError(f"--out takes a .png or .npy file, not '{out}'")


def _save(out: str, png: Any, array: Any, n: int) -> dict[str, Any]:
    if out.endswith(".png"):
        data = png()
    else:
        buffer = io.BytesIO()
        np.save(buffer, array())
        data = buffer.getvalue()
    write_whole(pafs.LocalFileSystem(), str(Path(out).absolute()), data)
    return {"out": out, "images": n}
