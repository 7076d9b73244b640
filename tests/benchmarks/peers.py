"""Load 20,000 JPEGs with other libraries, each set up as in its documentation, with 2 worker processes.

A library that leaves the decoder to its user gets zpoint's (simplejpeg), so that the loaders are compared and not the
decoders. Each function returns an iterable: call it once, and iterate it again for each pass. A batch is uint8 and
holds BATCH images. The libraries are not dependencies of zpoint: see data.py.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

BATCH, WORKERS, NUM_TARS = 256, 2, 20


def decode(data: bytes) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB"))


class Passes:
    """An iterable that starts a new pass each time it is iterated."""

    def __init__(self, start_pass: Callable[[], Iterable[Any]]):
        self.start_pass = start_pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self.start_pass())


# Write each library's format, once.


def write_folder(images: list[bytes], root: Path) -> None:
    for index, data in enumerate(images):
        folder = root / "folder" / f"class-{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:06d}.jpg").write_bytes(data)


def write_webdataset(images: list[bytes], root: Path) -> None:
    (root / "webdataset").mkdir(parents=True)
    images_per_tar = -(-len(images) // NUM_TARS)
    for tar_index, start in enumerate(range(0, len(images), images_per_tar)):
        with tarfile.open(root / "webdataset" / f"{tar_index:05d}.tar", "w") as tar:
            for index, data in enumerate(images[start : start + images_per_tar], start):
                info = tarfile.TarInfo(f"{index:06d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_mosaic(images: list[bytes], root: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(root / "mosaic"), columns={"image": "bytes"}, size_limit="8mb") as writer:
        for data in images:
            writer.write({"image": data})


def write_litdata(images: list[bytes], root: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(cache_dir=str(root / "litdata"), chunk_bytes="8MB")
    (root / "litdata").mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(images):
        writer[index] = data
    writer.done()
    writer.merge(1)


# Read it.


def image_folder(uri: str, scratch: Path) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    data = ImageFolder(f"{uri}/folder", PILToTensor())
    return DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def web_dataset(uri: str, scratch: Path) -> Iterable[Any]:
    import webdataset as wds

    names = [f"{index:05d}.tar" for index in range(NUM_TARS)]
    if uri.startswith("s3://"):
        host = f"{os.environ['AWS_ENDPOINT_URL']}/{uri.removeprefix('s3://')}"
        urls = [f"pipe:curl -s -f {host}/webdataset/{name}" for name in names]
        cache = scratch / "webdataset"
        cache.mkdir()
    else:
        urls, cache = [f"{uri}/webdataset/{name}" for name in names], None
    data = (
        wds.WebDataset(urls, shardshuffle=20, empty_check=False, cache_dir=cache and str(cache))
        .shuffle(1000)
        .to_tuple("jpg")
        .map_tuple(decode)
        .batched(BATCH, collation_fn=lambda rows: torch.stack([row[0] for row in rows]))
    )
    return wds.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)


def mosaic(uri: str, scratch: Path) -> Iterable[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Images(StreamingDataset):
        def __getitem__(self, index: int) -> Any:
            return decode(super().__getitem__(index)["image"])

    location = {"local": str(scratch / "mosaic"), "remote": f"{uri}/mosaic"} if uri.startswith("s3://") else {
        "local": f"{uri}/mosaic"
    }  # fmt: skip
    data = Images(**location, shuffle=True, batch_size=BATCH)
    return DataLoader(data, BATCH, num_workers=WORKERS, persistent_workers=True)


def lit_data(uri: str, scratch: Path) -> Iterable[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index))

    options: dict[str, Any] = {}
    if uri.startswith("s3://"):
        options = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    data = Images(f"{uri}/litdata", shuffle=True, **options)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def ray_data(uri: str, scratch: Path, *, materialize: bool = False) -> Iterable[Any]:
    import ray
    import ray.data

    from cluster.storage import open_uri

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    fs, root = open_uri(f"{uri}/zpoint")

    def decoded(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": np.stack([simplejpeg.decode_jpeg(data, "RGB") for data in batch["image"]])}

    files = [f"{root}/{info.base_name}" for info in fs.get_file_info(_selector(root)) if "train-" in info.base_name]
    data = ray.data.read_parquet(files, filesystem=fs, columns=["image"]).map_batches(decoded, batch_size=BATCH)
    materialized: list[Any] = []

    def start_pass() -> Iterable[Any]:
        if materialize and not materialized:
            materialized.append(data.materialize())
        source = materialized[0] if materialized else data
        return source.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=1000)

    return Passes(start_pass)


def ray_data_materialized(uri: str, scratch: Path) -> Iterable[Any]:
    return ray_data(uri, scratch, materialize=True)


def _selector(root: str) -> Any:
    import pyarrow.fs as pafs

    return pafs.FileSelector(root)


WRITERS = [write_folder, write_webdataset, write_mosaic, write_litdata]
PEERS: dict[str, Callable[[str, Path], Iterable[Any]]] = {
    "ImageFolder + DataLoader": image_folder,
    "WebDataset": web_dataset,
    "MosaicML Streaming": mosaic,
    "LitData": lit_data,
    "Ray Data, streaming": ray_data,
    "Ray Data, materialized": ray_data_materialized,
}
