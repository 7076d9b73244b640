"""Open URIs as pyarrow file systems: local paths, file:// and s3:// (AWS, or others through AWS_ENDPOINT_URL)."""

import os
import re
from textwrap import shorten
from urllib.parse import unquote

import pyarrow.fs as pafs

from cluster.settings import absolute_uri, settings

CLOCK_FIX = "synchronise the clocks (chrony, systemd-timesyncd): S3 refuses clocks that are 15 minutes off"


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of `uri` and the path on it, without a request.

    Raises ValueError for an empty URI or an unknown scheme.
    """
    if not uri:
        raise ValueError("an empty URI: name a path, file:///path or s3://bucket/prefix")
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute_uri(uri)
    scheme, _, path = uri.partition("://")  # not urlsplit: keys and folders may hold # and ?
    host, slash, path = path.partition("/")
    if scheme == "file":
        if host not in ("", "localhost"):
            raise ValueError(f"'{uri}' names a host: write file:///path, with three slashes")
        return pafs.LocalFileSystem(), os.path.abspath(unquote(slash + path))
    if scheme != "s3":
        raise ValueError(f"unknown scheme in '{uri}': use a path, file:///path or s3://bucket/prefix")
    if len(host) < 3:
        raise ValueError(f"'{uri}' names no bucket: write s3://bucket/prefix; a bucket name has at least 3 characters")
    return _open_s3(), f"{host}{slash}{path}".rstrip("/")


def _open_s3(timeout_s: int = 30, attempts: int = 3) -> pafs.FileSystem:
    """Return the S3 of the settings; a request fails after `timeout_s` without a byte, and is sent `attempts` times.

    A busy store may take half a minute to begin its response; pyarrow's default of 3 s is too short, and without a
    timeout a request could hang. With 3 attempts a silent store fails after 90 s. A file system that is pickled to
    another process always has 3 attempts there: pyarrow (25) does not pickle its retry strategy.
    """
    current = settings()
    scheme, _, host = current.s3_endpoint.rpartition("://")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=s3_region(),
        request_timeout=timeout_s,
        connect_timeout=5,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def s3_region() -> str:
    """Return the region of the settings or of the profile in AWS's files; us-east-1 without one.

    Raises ValueError for a profile or file that botocore cannot read.
    """
    if region := settings().s3_region:
        return region
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        return Session().get_config_variable("region") or "us-east-1"
    except BotoCoreError as error:
        raise ValueError(f"no region of S3: {error}; correct AWS_PROFILE, AWS_CONFIG_FILE or AWS_REGION") from error


def check_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return `open_uri(uri)` after a request to its store, so that a wrong bucket or key fails before a job starts.

    Raises ValueError that names the cause. A local path is not checked.
    """
    fs, path = open_uri(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        return fs, path
    quick_fs, bucket = _open_s3(timeout_s=5, attempts=2), path.split("/", 1)[0]
    try:
        exists = quick_fs.get_file_info(bucket).type is not pafs.FileType.NotFound
        # A store that allows anyone to HEAD the bucket still checks the keys of a listing.
        quick_fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=False))
    except OSError as error:
        raise ValueError(f"no access to {uri}: {describe_s3_error(error)}") from error
    if not exists:
        raise ValueError(f"no access to {uri}: the bucket '{bucket}' does not exist; create it first")
    return fs, path


def describe_s3_error(error: OSError) -> str:
    """Return the cause of one of pyarrow's S3 errors, with the variable to correct, in one line."""
    text = str(error)
    if match := re.search(r"bucket is located in '([\w-]+)'", text):
        return f"the bucket is in another region (AWS_REGION={match[1]})"
    for code, meaning in {
        "HTTP status 5": "the S3 server failed (HTTP 5xx)",  # a response to HEAD has no body that says more
        "SLOW_DOWN": "the S3 server is overloaded (HTTP 503 SlowDown)",
        "INVALID_ACCESS_KEY_ID": "the access key is unknown (AWS_ACCESS_KEY_ID)",
        "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong (AWS_SECRET_ACCESS_KEY)",
        "ACCESS_DENIED": "access denied: the keys are wrong or lack the right to this bucket",
        "NO_SUCH_BUCKET": "the bucket does not exist; create it first",
        "NETWORK_CONNECTION": "no answer from the S3 endpoint (AWS_ENDPOINT_URL)",
        "No response body": "the keys are wrong or lack the right to this bucket",
    }.items():
        if code in text:
            return meaning
    return shorten(text, 300)
