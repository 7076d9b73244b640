"""URIs to file systems: local paths, file:// and s3:// (AWS, or others through AWS_ENDPOINT_URL)."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from cluster.settings import settings


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of `uri` and the path on it. Nothing is created, no request is made.

    Raises ValueError for an empty URI or an unknown scheme.
    """
    if not uri:
        raise ValueError("an empty URI: it takes a path, file:///path or s3://bucket/prefix")
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"'{uri}' names a host: a file URI takes file:///path, with three slashes")
        return pafs.LocalFileSystem(), os.path.abspath(unquote(parts.path))
    if parts.scheme != "s3":
        raise ValueError(f"unknown scheme in '{uri}': it takes a path, file:///path or s3://bucket/prefix")
    if len(parts.netloc) < 3:
        raise ValueError(f"'{uri}' names no bucket: s3://bucket/prefix, bucket names have at least 3 characters")
    return _s3(), f"{parts.netloc}{parts.path}".rstrip("/")


def full_uri(uri: str) -> str:
    """`uri` as it means the same in every process: a local path in full."""
    return uri if "://" in uri or not uri else str(Path(uri).absolute())


def _s3(seconds: int = 30, attempts: int = 3) -> pafs.FileSystem:
    """The S3 of the settings. A request fails after `seconds` without one byte, and is tried `attempts` times.

    Half a minute is what a busy store may take to begin its answer; pyarrow's own 3 seconds are too few, and no limit
    would hang. With 3 attempts a store that is silent is given up after a minute and a half. Three is also what a
    file system has in another process, whatever it has here: pyarrow (25) does not pickle its retry strategy.
    """
    now = settings()
    scheme, _, host = now.s3_endpoint.rpartition("://")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=now.s3_region or "us-east-1",
        request_timeout=seconds,
        connect_timeout=5,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def check_uri(uri: str) -> None:
    """Ask the file system behind `uri` a question: a wrong bucket or key is known before work starts.

    Raises ValueError that says what is wrong; a local path is always in order here.
    """
    fs, path = open_uri(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        return
    fs, bucket = _s3(seconds=5, attempts=2), path.split("/", 1)[0]
    try:
        found = fs.get_file_info(bucket).type is not pafs.FileType.NotFound
        # Listing needs the right keys even where a bare HEAD of the bucket does not.
        fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=False))
    except OSError as error:
        raise ValueError(f"no access to {uri}: {describe_s3_error(error)}") from error
    if not found:
        raise ValueError(f"no access to {uri}: the bucket '{bucket}' does not exist; create it first")


def describe_s3_error(error: OSError) -> str:
    """What an S3 error of pyarrow means to a person."""
    text = str(error)
    for code, meaning in {
        "HTTP status 5": "the S3 server answers that it cannot (HTTP 5xx)",  # a HEAD's answer says no more
        "SLOW_DOWN": "the S3 server asks for fewer requests (HTTP 503)",
        "INVALID_ACCESS_KEY_ID": "the access key is unknown (AWS_ACCESS_KEY_ID)",
        "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong (AWS_SECRET_ACCESS_KEY)",
        "ACCESS_DENIED": "access denied: the keys are wrong or lack the right to this bucket",
        "NO_SUCH_BUCKET": "the bucket does not exist; create it first",
        "NETWORK_CONNECTION": "no answer from the S3 endpoint (AWS_ENDPOINT_URL)",
        "No response body": "the keys are wrong or lack the right to this bucket",
    }.items():
        if code in text:
            return meaning
    return " ".join(text.split())[:300]
