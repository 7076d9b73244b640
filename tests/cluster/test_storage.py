import os
import socket
import time
import uuid

import boto3
import pyarrow.fs as pafs
import pytest

from cluster.storage import check_uri, open_uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [("/data/faces", "/data/faces"), ("file:///data/faces", "/data/faces"), ("file:///a/../b", "/b")],
)
def test_local_paths_and_file_uris(uri: str, path: str):
    fs, opened_path = open_uri(uri)
    assert isinstance(fs, pafs.LocalFileSystem)
    assert opened_path == path


def test_a_relative_path_is_made_absolute():
    assert open_uri("faces")[1] == os.path.join(os.getcwd(), "faces")
    check_uri("faces")


def test_percent_escapes_in_a_file_uri_are_decoded():
    assert open_uri("file:///my%20faces")[1] == "/my faces"


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "http://host/x", "s3://", "s3://ab/x", "file://host/x"])
def test_a_wrong_uri_is_refused_in_one_line(uri: str):
    with pytest.raises(ValueError, match=r"empty URI|unknown scheme|names a host|names no bucket") as error:
        open_uri(uri)
    assert "\n" not in str(error.value)


def test_s3_round_trip(s3: str):
    check_uri(s3)
    check_uri(f"{s3}/not/yet/there/")
    fs, path = open_uri(f"{s3}/a/b.bin")
    with fs.open_output_stream(path) as stream:
        stream.write(b"zpoint")
    with fs.open_input_stream(path) as stream:
        assert stream.read() == b"zpoint"
    assert boto3.client("s3").list_objects_v2(Bucket=s3[5:])["Contents"][0]["Key"] == "a/b.bin"
    check_uri(f"{s3}/a")


def test_a_missing_bucket_is_named(s3: str):
    with pytest.raises(ValueError, match="no-such-bucket' does not exist; create it first"):
        check_uri("s3://no-such-bucket/runs")


@pytest.mark.s3
def test_a_closed_endpoint_fails_within_seconds(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    started = time.monotonic()
    with pytest.raises(ValueError, match="no answer from the S3 endpoint"):
        check_uri("s3://bucket/x")
    assert time.monotonic() - started < 15


@pytest.mark.s3
def test_a_silent_endpoint_fails_within_seconds(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        started = time.monotonic()
        with pytest.raises(ValueError, match="no answer from the S3 endpoint"):
            check_uri("s3://bucket/x")
        assert time.monotonic() - started < 20


@pytest.fixture(scope="module")
def key_checking_s3(start_moto) -> dict[str, str]:
    """Start a server that checks keys; return its URL, a bucket, and a user's key and secret."""
    url = start_moto(INITIAL_NO_AUTH_ACTION_COUNT="4")
    root = {"endpoint_url": url, "region_name": "us-east-1"}
    root |= {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    iam, bucket = boto3.client("iam", **root), f"strict-{uuid.uuid4().hex[:8]}"
    iam.create_user(UserName="engineer")
    key = iam.create_access_key(UserName="engineer")["AccessKey"]
    rule = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="engineer", PolicyName="all-of-s3", PolicyDocument=rule)
    boto3.client("s3", **root).create_bucket(Bucket=bucket)
    return {"url": url, "bucket": bucket, "key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}


@pytest.mark.s3
@pytest.mark.parametrize(
    ("key", "secret", "message"),
    [(None, None, None), (None, "wrong", "secret key is wrong|keys are wrong"), ("AKIAWRONG", None, "key")],
)
def test_right_and_wrong_keys(key_checking_s3, monkeypatch: pytest.MonkeyPatch, key, secret, message):
    monkeypatch.setenv("AWS_ENDPOINT_URL", key_checking_s3["url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key or key_checking_s3["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret or key_checking_s3["secret"])
    uri = f"s3://{key_checking_s3['bucket']}/runs"
    if message is None:
        check_uri(uri)
    else:
        with pytest.raises(ValueError, match=message):
            check_uri(uri)
