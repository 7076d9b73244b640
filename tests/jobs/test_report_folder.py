import json
from pathlib import Path

import boto3
import pytest

from cluster.settings import settings
from jobs.report_folder import open_report_folder

JOB = json.dumps({"metadata": {"job_submission_id": "study-1130-120000-1a2b"}})


def test_files_are_written_to_a_folder_of_the_home_or_to_out():
    folder = open_report_folder(None, "studies/vae")
    assert folder.uri == f"{settings().home}/studies/vae"
    folder.write({"chart.png": b"chart", "study.html": b"page"})
    assert {path.name: path.read_bytes() for path in Path(folder.uri).iterdir()} == {
        "chart.png": b"chart",
        "study.html": b"page",
    }
    assert open_report_folder("report", "studies/vae").uri == str(Path.cwd() / "report")
    assert Path("report").is_dir()


def test_report_of_a_submitted_job_is_in_the_store_unless_the_job_has_a_home(monkeypatch: pytest.MonkeyPatch, s3: str):
    """The home of a job without ZPOINT_HOME is in the job's folder, which Ray deletes."""
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    home = settings().home
    assert open_report_folder(None, "claims").uri == f"{home}/claims"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", JOB)
    assert open_report_folder(None, "claims").uri == f"{home}/claims"
    monkeypatch.delenv("ZPOINT_HOME")
    assert open_report_folder(None, "claims").uri == f"{s3}/store/claims"
    assert open_report_folder("report", "claims").uri == str(Path.cwd() / "report")


def test_report_may_be_on_s3(s3: str):
    open_report_folder(f"{s3}/reports/vae", "claims").write({"study.html": b"page"})
    assert boto3.client("s3").get_object(Bucket=s3[5:], Key="reports/vae/study.html")["Body"].read() == b"page"


def test_file_and_missing_bucket_are_refused(s3: str):
    Path("report").touch()
    with pytest.raises(ValueError, match="--out report is a file: name a folder"):
        open_report_folder("report", "claims")
    with pytest.raises(ValueError, match="the bucket 'no-such-bucket' does not exist; create it first"):
        open_report_folder("s3://no-such-bucket/report", "claims")
