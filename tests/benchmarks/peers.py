"""Other ways to bring 20,000 JPEGs to a training loop, each as its users would set it up, with 2 worker processes.

Where a library leaves the decoder to its user it gets zpoint's own (simplejpeg), so that what is compared is the way
of the data and not the decoder. Each function gives an iterable of passes' batches: call it once, iterate it anew for
each pass; a batch is uint8 and holds BATCH images. The libraries are no dependencies of zpoint: see data.py.
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

BATCH, WORKERS, TARS = 256, 2, 20


def decode(data: bytes) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB"))


class Passes:
    """An iterable that begins a new pass each time it is iterated."""

    def __init__(self, begin: Callable[[], Iterable[Any]]):
        self.begin = begin

    def __iter__(self) -> Iterator[Any]:
        return iter(self.begin())


# Writing each library's own format, once.


def write_folder(images: list[bytes], root: Path) -> None:
    for index, data in enumerate(images):
        folder = root / "folder" / f"class-{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:06d}.jpg").write_bytes(data)


def write_webdataset(images: list[bytes], root: Path) -> None:
    (root / "webdataset").mkdir(parents=True)
    each = -(-len(images) // TARS)
    for number, start in enumerate(range(0, len(images), each)):
        with tarfile.open(root / "webdataset" / f"{number:05d}.tar", "w") as tar:
            for index, data in enumerate(images[start : start + each], start):
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


# Reading.


def image_folder(place: str, scratch: Path) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    data = ImageFolder(f"{place}/folder", PILToTensor())
    return DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def web_dataset(place: str, scratch: Path) -> Iterable[Any]:
    import webdataset as wds

    names = [f"{number:05d}.tar" for number in range(TARS)]
    if place.startswith("s3://"):
        host = f"{os.environ['AWS_ENDPOINT_URL']}/{place.removeprefix('s3://')}"
        urls = [f"pipe:curl -s -f {host}/webdataset/{name}" for name in names]
        cache = scratch / "webdataset"
        cache.mkdir()
    else:
        urls, cache = [f"{place}/webdataset/{name}" for name in names], None
    data = (
        wds.WebDataset(urls, shardshuffle=20, empty_check=False, cache_dir=cache and str(cache))
        .shuffle(1000)
        .to_tuple("jpg")
        .map_tuple(decode)
        .batched(BATCH, collation_fn=lambda rows: torch.stack([row[0] for row in rows]))
    )
    return wds.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)


def mosaic(place: str, scratch: Path) -> Iterable[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            return decode(super().__getitem__(at)["image"])

    where = {"local": str(scratch / "mosaic"), "remote": f"{place}/mosaic"} if place.startswith("s3://") else {
        "local": f"{place}/mosaic"
    }  # fmt: skip
    data = Images(**where, shuffle=True, batch_size=BATCH)
    return DataLoader(data, BATCH, num_workers=WORKERS, persistent_workers=True)


def lit_data(place: str, scratch: Path) -> Iterable[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return decode(super().__getitem__(at))

    options: dict[str, Any] = {}
    if place.startswith("s3://"):
        options = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    data = Images(f"{place}/litdata", shuffle=True, **options)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def ray_data(place: str, scratch: Path, *, materialize: bool = False) -> Iterable[Any]:
    import ray
    import ray.data

    from cluster.storage import open_uri

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    fs, root = open_uri(f"{place}/zpoint")

    def decoded(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": np.stack([simplejpeg.decode_jpeg(data, "RGB") for data in batch["image"]])}

    files = [f"{root}/{info.base_name}" for info in fs.get_file_info(_selector(root)) if "train-" in info.base_name]
    data = ray.data.read_parquet(files, filesystem=fs, columns=["image"]).map_batches(decoded, batch_size=BATCH)
    kept: list[Any] = []

    def begin() -> Iterable[Any]:
        if materialize and not kept:
            kept.append(data.materialize())
        source = kept[0] if kept else data
        return source.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=1000)

    return Passes(begin)


def ray_data_materialized(place: str, scratch: Path) -> Iterable[Any]:
    return ray_data(place, scratch, materialize=True)


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
