"""The rows of Hugging Face's image datasets in Parquet, without their images."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aecore.data.layout import split_of
from aecore.data.remote_path import RemotePath
from aecore.errors import list_names


def read_parquet_columns(root: RemotePath, files: list[str]) -> tuple[pa.Table, list[str] | None, str, list[str]]:
    """Return the rows of the sorted `files`, the split of each row if the files' names have splits, and the column.

    The table has `name` (FILE/ROW), `label` and `class` if the images have labels, `identity` for `celeb_id`, and the
    numbers of each image. The last value is notes: the columns that are not read. Raises ValueError when files are
    damaged or differ in columns, when a column is there twice, when only some files have a split, or when they are of
    several configurations.
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
        columns = _attribute_columns(schema, column)
        if repeated := sorted(name for name in {column, *columns} if schema.names.count(name) > 1):
            raise ValueError(f"{root}: there are two columns {list_names(repeated)}; rename or remove one")
        tables = [pq.read_table(f"{root.path}/{file}", columns=columns, filesystem=root.fs) for file in files]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{root} holds a damaged Parquet file: {error}") from error
    counts = [pq.read_metadata(f"{root.path}/{file}", filesystem=root.fs).num_rows for file in files]
    names = [
        f"{file.removesuffix('.parquet')}/{row:06d}" for file, n in zip(files, counts, strict=True) for row in range(n)
    ]
    if not names:
        raise ValueError(f"{root}: the Parquet files have no rows")
    rows = pa.concat_tables(tables)
    values = {name: rows[name].cast(_stored_type(rows[name].type)) for name in columns}
    if "label" not in values and "class" in values and _is_text(values["class"].type):
        values = {"label": values.pop("class"), **values}
    class_names = []
    if "label" in values and _is_text(values["label"].type):
        class_names = sorted(values["label"].unique().drop_null().to_pylist())
        options = pc.SetLookupOptions(value_set=pa.array(class_names, pa.string()))
        values["label"] = pc.call_function("index_in", [values["label"]], options)
    elif "label" in values and pa.types.is_integer(values["label"].type):
        class_names = _class_names(schema)
    if "label" in values:
        labels = values["label"].to_pylist()
        classes = values["class"].to_pylist() if "class" in values else labels
        unlabelled = [  # Hugging Face's test splits without labels have -1; a float may be any number
            name for name, label, label_class in zip(names, labels, classes, strict=True)
            if label is None or label_class is None or (isinstance(label, int) and label < 0)
        ]  # fmt: skip
        if unlabelled:
            raise ValueError(
                f"{root}: {len(unlabelled):,} of {len(names):,} images have no label, such as "
                f"{unlabelled[0]}: move these files away, or remove the column"
            )
        if class_names and max(labels) < len(class_names):
            values["class"] = pa.array([class_names[label] for label in labels])
    stored = {"identity" if name == "celeb_id" else name: column_values for name, column_values in values.items()}
    table = pa.table({"name": names, **stored})
    ignored = [name for name in schema.names if name not in (column, *columns)]
    notes = [f"columns that are not read: {list_names(ignored)}"] if ignored else []
    splits = [split for file, n in zip(files, counts, strict=True) for split in [split_by_file[file]] * n]
    return table, None if without_split else splits, column, notes


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


def _attribute_columns(schema: pa.Schema, image_column: str) -> list[str]:
    """Return the columns that a shard takes: numbers, and `label` and `class` also as text.

    `class` is left out if the labels have names, `identity` if there is `celeb_id`: a shard has each name once.
    """
    types = {field.name: _stored_type(field.type) for field in schema}
    columns = [
        name for name in schema.names
        if name not in ("name", "image", image_column)
        and (_is_number(types[name]) or (name in ("label", "class") and _is_text(types[name])))
    ]  # fmt: skip
    if "label" in columns and (_is_text(types["label"]) or _class_names(schema) or not _is_text(types.get("class"))):
        columns = [name for name in columns if name != "class"]
    if "celeb_id" in columns:
        columns = [name for name in columns if name != "identity"]
    return columns


def _stored_type(type: pa.DataType) -> pa.DataType:
    """Return the type in which a shard stores a column: that of a categorical column's values, int8 for a boolean."""
    if pa.types.is_dictionary(type):
        type = type.value_type
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    return pa.int8() if pa.types.is_boolean(type) else type


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type)


def _is_text(type: pa.DataType | None) -> bool:
    return type == pa.string()


def _class_names(schema: pa.Schema) -> list[str]:
    """Return the names of the labels in Hugging Face's metadata, or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
