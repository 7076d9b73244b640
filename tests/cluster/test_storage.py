import os
import socket
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pyarrow.fs as pafs
import pytest

from cluster import storage
from cluster.storage import check_uri, describe_s3_error, open_uri, s3_region


@pytest.mark.parametrize(
    ("uri", "path"),
    [("/data/faces", "/data/faces"), ("file:///data/faces", "/data/faces"), ("file:///a/../b", "/b")],
)
def test_local_paths_and_file_uris(uri: str, path: str):
    fs, opened_path = open_uri(uri)
    assert isinstance(fs, pafs.LocalFileSystem)
    assert opened_path == path


@pytest.mark.parametrize("path", ["/a b", "/a%20b", "/a#b", "/a?b", "/ä+b"])
def test_a_local_path_is_taken_literally(path: str):
    assert open_uri(path)[1] == path
    assert open_uri(Path(path).as_uri())[1] == path


def test_a_relative_path_is_made_absolute():
    assert open_uri("faces")[1] == os.path.join(os.getcwd(), "faces")
    check_uri("faces")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("~/faces", "/home/z/faces"), ("~", "/home/z"), ("./~/faces", "~/faces"), ("100%/a b#1?", "100%/a b#1?"),
        ("file:///a%23b#1?c", "/a#b#1?c"), ("s3://bucket/a#b?c=1 %20", "bucket/a#b?c=1 %20"),
        ("s3://bucket/~/x/", "bucket/~/x"),
    ],
)  # fmt: skip
def test_a_tilde_is_expanded_and_signs_of_urls_are_parts_of_a_path(uri: str, path: str, monkeypatch):
    monkeypatch.setenv("HOME", "/home/z")
    expected = path if path.startswith(("/", "bucket")) else os.path.join(os.getcwd(), path)
    assert open_uri(uri)[1] == expected


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


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


class FailingStore(BaseHTTPRequestHandler):
    """Respond with `statuses` one after the other, then with the last one for ever; count the requests."""

    protocol_version = "HTTP/1.1"
    statuses: ClassVar[list[int]] = []
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        status = self.statuses[min(len(self.requests), len(self.statuses) - 1)]
        self.requests.append(self.path)
        self.send_response(status)
        self.send_header("Content-Length", "6")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def failing_store(s3_keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FailingStore]]:
    """Serve S3's HEAD at AWS_ENDPOINT_URL; gives the handler, whose `statuses` a test sets."""
    FailingStore.statuses, FailingStore.requests = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FailingStore)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield FailingStore
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_sent_three_times(failing_store: type[FailingStore]):
    failing_store.statuses = [503]
    fs, path = open_uri("s3://bucket/file")
    with pytest.raises(OSError, match="HTTP status 503"):
        fs.get_file_info(path)
    assert failing_store.requests == ["/bucket/file"] * 3


def test_a_request_that_succeeds_at_its_third_attempt_raises_nothing(failing_store: type[FailingStore]):
    failing_store.statuses = [503, 500, 200]
    fs, path = open_uri("s3://bucket/file")
    assert fs.get_file_info(path).size == 6


def test_check_uri_is_sent_twice(failing_store: type[FailingStore]):
    failing_store.statuses = [503]
    with pytest.raises(ValueError, match=r"no access to s3://bucket/x: the S3 server failed \(HTTP 5xx\)"):
        check_uri("s3://bucket/x")
    assert failing_store.requests == ["/bucket"] * 2


@pytest.mark.parametrize(
    ("endpoint", "scheme", "host"),
    [("http://127.0.0.1:9000", "http", "127.0.0.1:9000"), ("https://minio.example", "https", "minio.example"),
     ("minio.example:9000", "https", "minio.example:9000"), ("", "https", None)],
)  # fmt: skip
@pytest.mark.parametrize(("region", "expected_region"), [("", "us-east-1"), ("eu-west-1", "eu-west-1")])
def test_s3_has_the_endpoint_and_region_of_the_settings_and_timeouts(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, scheme: str, host: str | None, region: str, expected_region: str
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setattr(pafs, "S3FileSystem", lambda **options: options)
    options, path = open_uri("s3://bucket/a/b/")
    assert path == "bucket/a/b"
    assert (options["scheme"], options["endpoint_override"], options["region"]) == (scheme, host, expected_region)
    assert (options["request_timeout"], options["connect_timeout"]) == (30, 5)


def test_the_region_of_a_profile_counts_without_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-central-1\n[profile team]\nregion = ap-south-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert s3_region() == "eu-central-1"
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert s3_region() == "ap-south-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert s3_region() == "eu-west-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_PROFILE", "unknown")
    with pytest.raises(ValueError, match=r"\(unknown\) could not be found; correct AWS_PROFILE"):
        s3_region()


class OtherRegion(BaseHTTPRequestHandler):
    """S3 as it answers to a request for a bucket of another region."""

    def do_HEAD(self) -> None:
        self.send_response(301)
        self.send_header("x-amz-bucket-region", "eu-central-1")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.s3
def test_the_region_of_the_bucket_is_named(s3_keys: None, monkeypatch: pytest.MonkeyPatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherRegion)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(
        ValueError, match=r"no access to s3://bucket/x: the bucket is in another region \(AWS_REGION=eu-c"
    ):
        check_uri("s3://bucket/x")
    server.shutdown()
    server.server_close()


@pytest.mark.s3
def test_a_closed_endpoint_is_named(s3_keys: None, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, so that no other process gets the port, but not listening
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ValueError, match="no answer from the S3 endpoint"):
            check_uri("s3://bucket/x")


@pytest.mark.s3
def test_a_silent_endpoint_fails_after_the_timeout(s3_keys: None, monkeypatch: pytest.MonkeyPatch):
    timeouts, open_s3 = [], storage._open_s3

    def open_with_a_short_timeout(timeout_s: int = 30, attempts: int = 3) -> pafs.FileSystem:
        timeouts.append(timeout_s * attempts)
        return open_s3(1, attempts)

    monkeypatch.setattr(storage, "_open_s3", open_with_a_short_timeout)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ValueError, match="no answer from the S3 endpoint"):
            check_uri("s3://bucket/x")
    assert timeouts[-1] == 10


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


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("AWS Error SLOW_DOWN during GetObject", "the S3 server is overloaded (HTTP 503 SlowDown)"),
        ("AWS Error UNKNOWN (HTTP status 502): No response body.", "the S3 server failed (HTTP 5xx)"),
        ("AWS Error ACCESS_DENIED", "access denied: the keys are wrong or lack the right to this bucket"),
        ("AWS Error UNKNOWN (HTTP status 403): No response body.", "the keys are wrong or lack the right to this"),
        ("AWS Error NO_SUCH_BUCKET", "the bucket does not exist; create it first"),
        ("AWS Error\n of another kind", "AWS Error of another kind"),
    ],
)
def test_s3_errors_are_described_in_one_line(text: str, meaning: str):
    assert describe_s3_error(OSError(text)).startswith(meaning)
