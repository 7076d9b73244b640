"""The access log: one line of JSON a request, without z-points, images, parameters and tokens."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serving.http.access_log import AccessLog
from tests.serving.app_client import make_client, make_z


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.jsonl"


@pytest.fixture
def http(path: Path) -> Any:
    return make_client(token="secret", access_log=AccessLog(str(path)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_is_a_line(http, path: Path):
    headers = {"Authorization": "Bearer secret", "X-Request-ID": "of the proxy"}
    http.post("/v1/decode", json={"z": make_z(1).tolist()}, headers=headers)
    http.head("/healthz")
    http.get("/v1/model")
    http.get("/v1/no/such?route", headers=headers)
    lines = read_lines(path)
    assert [(line["method"], line["route"], line["status"], line["request_id"]) for line in lines] == [
        ("POST", "/v1/decode", 200, "of the proxy"), ("HEAD", "/healthz", 200, ""), ("GET", "other", 401, ""),
        ("GET", "other", 404, "of the proxy"),
    ]  # fmt: skip
    assert all(line["model"] == "zpoint/7" and 0 < line["seconds"] < 60 for line in lines)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(lines[0]["time"])).total_seconds()) < 60


def test_the_content_of_a_request_is_not_logged(http, path: Path):
    headers = {"Authorization": "Bearer secret"}
    http.post("/v1/sample?sampler=cube&boundary=12.25", headers=headers)
    http.post("/v1/decode", json={"z": [[12.25] * 8]}, headers=headers)
    http.get("/v1/model", headers={"Authorization": "Bearer wrong"})
    text = path.read_text()
    assert [line["status"] for line in read_lines(path)] == [200, 200, 401]
    assert not [word for word in ("12.25", "cube", "secret", "wrong", "Bearer") if word in text]


def test_a_long_request_id_is_cut(http, path: Path):
    http.get("/healthz", headers={"X-Request-ID": "x" * 5000})
    assert read_lines(path)[0]["request_id"] == "x" * 128


def test_a_rotated_file_is_left_alone(http, path: Path):
    http.get("/healthz")
    path.rename(rotated := path.with_suffix(".1"))
    http.get("/healthz")
    assert len(read_lines(rotated)) == len(read_lines(path)) == 1


def test_requests_go_on_without_the_folder_and_the_log_names_it_once(http, path: Path, caplog):
    http.get("/healthz")
    folder = path.parent.rename(path.parent.with_name("gone"))
    for _ in range(3):
        assert http.get("/healthz").status_code == 200
    assert [record.message for record in caplog.records] == [
        f"cannot write the access log {path}: [Errno 2] No such file or directory: '{path}'; "
        "its lines are lost until it works again"
    ]
    folder.rename(path.parent)
    http.get("/healthz")
    assert len(read_lines(path)) == 2
    path.parent.rename(folder)
    http.get("/healthz")
    assert len(caplog.records) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_requests_go_on_with_a_full_disk(caplog, capsys):
    http = make_client(access_log=AccessLog("/dev/full"))
    for _ in range(2):
        assert http.get("/healthz").status_code == 200
    assert [record.message.split("; ")[0] for record in caplog.records] == [
        "cannot write the access log /dev/full: [Errno 28] No space left on device"
    ]
    assert capsys.readouterr().err == ""
