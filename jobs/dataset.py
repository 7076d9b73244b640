"""The dataset that a recipe names."""

import pyarrow.fs as pafs

from aecore.config import Recipe
from aecore.data.shards import Manifest, load_manifest
from cluster.storage import check_uri, full_uri, open_uri

Dataset = tuple[pafs.FileSystem, str, Manifest]


def open_dataset(uri: str) -> Dataset:
    """The dataset at `uri`. Raises ValueError when there is none, it is empty, or it cannot be reached."""
    if not uri:
        raise ValueError("data.uri is missing: name the dataset with data.uri=PATH or data.uri=s3://bucket/prefix")
    check_uri(uri)
    fs, root = open_uri(uri)
    manifest = load_manifest(fs, root)
    if not manifest.splits.get("train") or not manifest.count("train"):
        raise ValueError(f"the dataset at {uri} has no images to train on (split 'train')")
    return fs, root, manifest


def with_full_uri(recipe: Recipe) -> Recipe:
    """`recipe` with a dataset's URI that workers in other folders understand."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"uri": full_uri(recipe.data.uri)})})
