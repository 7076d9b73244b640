"""The rows of Hugging Face's image datasets in Parquet, without their images."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aecore.data.layout import split_of
from aecore.data.remote_path import RemotePath
from aecore.errors import list_names


def read_parquet_columns(root: RemotePath, files: list[str]) -> tuple[pa.Table, list[str] | None, str]:
    """Return the rows of the sorted `files`, the split of each row if the files' names have splits, and the column.

    The table has `name` (FILE/ROW), `label` and `class` if the images have labels, `identity` for `celeb_id`, and the
    numbers of each image. Raises ValueError when files are damaged or differ in columns, when only some have a split,
    or when they are of several configurations.
    """
    split_by_file = {file: _split_of_file(file) for file in files}
    without_split = [file for file, split in split_by_file.items() if split is None]
    if without_split and len(without_split) < len(files):
        raise ValueError(f"{root}: {list_names(without_split)} name no split, but other files do; move them away")
    configurations = {"/".join(folder for folder in file.split("/")[:-1] if not split_of(folder)) for file in files}
    if len(configurations) > 1:
        raise ValueError(
            f"{root} holds several configurations of a dataset: name one as --source, such as "
            f"{list_names(sorted(configurations), 2)}"
        )
    try:
        schemas = {file: pq.read_schema(f"{root.path}/{file}", filesystem=root.fs) for file in files}
        schema = schemas[files[0]]
        if differing := [file for file in files if not schemas[file].equals(schema)]:
            raise ValueError(f"{root}: {list_names(differing)} has other columns than {files[0]}")
        column = _image_column(schema, root)
        columns = [
            field.name for field in schema
            if field.name not in ("name", column)
            and (_is_number(field.type) or (field.name == "label" and _is_text(field.type)))
        ]  # fmt: skip
        tables = [pq.read_table(f"{root.path}/{file}", columns=columns, filesystem=root.fs) for file in files]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{root} holds a damaged Parquet file: {error}") from error
    counts = [pq.read_metadata(f"{root.path}/{file}", filesystem=root.fs).num_rows for file in files]
    names = [
        f"{file.removesuffix('.parquet')}/{row:06d}" for file, n in zip(files, counts, strict=True) for row in range(n)
    ]
    if not names:
        raise ValueError(f"{root}: the Parquet files have no rows")
    rows, class_names = pa.concat_tables(tables), _class_names(schema)
    if "label" in columns and _is_text(schema.field("label").type):
        class_names = sorted(rows["label"].unique().drop_null().to_pylist())
        labels = pc.call_function(
            "index_in", [rows["label"]], pc.SetLookupOptions(value_set=pa.array(class_names, rows["label"].type))
        )
        rows = rows.set_column(columns.index("label"), "label", labels)
    table = pa.table({"name": names})
    for name in columns:
        values = rows[name].cast(pa.int8()) if pa.types.is_boolean(rows[name].type) else rows[name]
        table = table.append_column("identity" if name == "celeb_id" else name, values)
    if "label" in columns:
        labels = table["label"].to_pylist()
        unlabelled = [  # Hugging Face's test splits without labels have -1; a float may be any number
            name for name, label in zip(names, labels, strict=True)
            if label is None or (isinstance(label, int) and label < 0)
        ]  # fmt: skip
        if unlabelled:
            raise ValueError(
                f"{root}: {len(unlabelled):,} of {len(names):,} images have no label, such as "
                f"{unlabelled[0]}: move these files away, or remove the column"
            )
        if class_names and max(labels) < len(class_names):
            table = table.append_column("class", pa.array([class_names[label] for label in labels]))
    splits = [split for file, n in zip(files, counts, strict=True) for split in [split_by_file[file]] * n]
    return table, None if without_split else splits, column


def _split_of_file(file: str) -> str | None:
    """Return the split of `train-00000-of-00002.parquet` or `train/0000.parquet`."""
    return next(filter(None, map(split_of, reversed(file.split("/")))), None)


def _image_column(schema: pa.Schema, root: RemotePath) -> str:
    """Return the name of the column of images: the only struct with `bytes`, or `image`."""
    columns = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    columns = columns or [
        field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    if "image" in columns:
        return "image"
    if len(columns) == 1:
        return columns[0]
    raise ValueError(
        f"{root}: one column of images is needed, as struct<bytes, path>; it has {', '.join(schema.names)}"
    )


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _class_names(schema: pa.Schema) -> list[str]:
    """Return the names of the labels in Hugging Face's metadata, or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
