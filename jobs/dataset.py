"""Open the dataset of a recipe by its URI."""

from aecore.data.dataset import Dataset
from cluster.storage import check_uri


def open_dataset(uri: str) -> Dataset:
    """Open the dataset at `uri`. Raises ValueError when it is missing, has no training images or is unreachable."""
    if not uri:
        raise ValueError("data.uri is missing: name the dataset with data.uri=PATH or data.uri=s3://bucket/prefix")
    dataset = Dataset.open(*check_uri(uri))
    if not dataset.manifest.splits.get("train") or not dataset.count("train"):
        raise ValueError(f"the dataset at {uri} has no images to train on (split 'train')")
    return dataset
