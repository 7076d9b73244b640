"""The `zpoint` command: invalid input ends in one line, status 2 and nothing written; a result is one JSON object."""

import json
import os
import re
import socket
import subprocess
import sys
import uuid
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pytest

from aecore.config import TASKS
from aecore.data.images import ENCODINGS, encode_image
from aecore.data.sources import SOURCES
from aecore.data.splits import RULES
from aecore.data.synthetic_faces import draw_face
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.latent.samplers import SAMPLERS
from jobs.cli import main, make_parser

COMMANDS = sorted(next(a.choices for a in make_parser()._actions if a.dest == "command"))
HEAVY = ("torch", "ray", "mlflow", "numpy", "pyarrow", "pydantic", "httpx2")


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("ingest", {*SOURCES, *ENCODINGS, *RULES}),
        ("sample", {*SAMPLERS}),
        ("reconstruct", {*TASKS}),
        ("interpolate", {*INTERPOLATIONS}),
    ],
)
def test_help_lists_every_choice(command: str, choices: set[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert set(re.findall(r"\w+", capsys.readouterr().out)) >= choices


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert set(COMMANDS) <= set(re.findall(r"\w+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["runs", "--fast"], "unknown argument --fast"),
        (["runs", "a=1"], "unknown argument a=1"),
        (["train"], "required: recipe"),
        (["train", "RECIPE", "--fresh", "z_dim"], "unknown argument z_dim"),
        (["ingest", "imagenet", "--to", "x"], "unknown dataset 'imagenet'; it is one of celeba,"),
        (["ingest", "generated", "--to", "x", "--encoding", "gif"], "unknown encoding 'gif'; it is one of jpeg,"),
        (["ingest", "generated", "--to", "x", "--split", "odd"], "unknown split 'odd'; it is one of official,"),
        (["ingest", "generated"], "required: --to"),
        (["ingest", "generated", "--to", "x", "--limit", "0"], "must be at least 1"),
        (["ingest", "generated", "--to", "x", "--size", "big"], "--size: takes a whole number, not 'big'"),
        (["serve", "--port", "http"], "--port: takes a whole number, not 'http'"),
        (["ingest", "celeba", "--to", "x"], "--source"),
        (["ingest", "celeba", "--to", "x", "--source", "missing.zip"], "missing.zip"),
        (["ingest", "folder", "--to", "x", "--source", "nowhere"], "nowhere"),
        (["train", "nonesuch"], "unknown recipe 'nonesuch'"),
        (["train", "missing.yaml"], "unknown recipe 'missing.yaml'"),
        (["train", "RECIPE", "model.zdim=5"], "unknown key model.zdim"),
        (["train", "RECIPE", "model.z_dim=many"], "model.z_dim: input should be a valid integer"),
        (["train", "RECIPE", "model.z_dim=0"], "model.z_dim: input should be greater"),
        (["train", "RECIPE", "--fresh", "optim.lr=-1"], "optim.lr"),
        (["train", "RECIPE"], "data.uri is missing"),
        (["train", "RECIPE", "data.uri=nowhere"], "no dataset at"),
        (["train", "RECIPE", "data.uri=RECIPE"], "RECIPE"),
        (["train", "RECIPE", "data.uri=gs://bucket/x"], "unknown scheme"),
        (["tune", "RECIPE", "search.trials=0"], "search.trials"),
        (["tune", "RECIPE", "data.uri=nowhere"], "no dataset at"),
        (["promote", "nonesuch"], "no run or campaign 'nonesuch'"),
        (["study"], "required: RUN"),
        (["study", "nonesuch"], "no run or campaign 'nonesuch'"),
        (["study", "--limit", "9", "nonesuch"], "no run or campaign 'nonesuch'"),
        (["study", "nonesuch", "--limit", "9", "--fast"], "unknown argument --fast"),
        (["study", "nonesuch", "--num-samples", "0"], "must be at least 1"),
        (["promote", "nonesuch", "--alias", "v1"], "--alias"),
        (["serve", "--port", "0"], "must be at least 1"),
        (["serve", "--cors", "*"], "a CORS origin is http(s)://host[:port]"),
        (["serve", "--access-log", "nowhere/a.jsonl"], "nowhere/a.jsonl"),
        (["decode", "missing.npy"], "missing.npy: No such file"),
        (["decode", "RECIPE"], "is not a .npy file of z-points"),
        (["decode", "empty.npy"], "is not a .npy file of z-points"),
        (["decode", "flat.npy"], "decode takes z-points, (n, z_dim)"),
        (["decode", "good.npy", "--out", "faces.gif"], "--out takes a .png or .npy file"),
        (["decode", "good.npy", "--url", "nonsense"], "nonsense"),
        (["decode", "good.npy", "--url", "ENDPOINT"], "no endpoint answers at http://127.0.0.1"),
        (["submit", "serve"], "submit takes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_input_is_refused(refused, tiny: str, argv: list[str], message: str):
    Path("empty.npy").touch()
    np.save("flat.npy", np.zeros(3))
    np.save("good.npy", np.zeros((1, 3)))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, so that no other process gets the port, but not listening
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for placeholder, value in {"RECIPE": tiny, "ENDPOINT": endpoint}.items():
            argv, message = [word.replace(placeholder, value) for word in argv], message.replace(placeholder, value)
        assert message in refused(*argv)


@pytest.mark.parametrize(
    "line",
    [
        "ingest folder --source=~/x --to=a", "ingest folder --to=~/x", "data show ~/x", "data show a --out=~/x",
        "train ~/x", "tune ~/x", "campaign a --out=~/x", "study a --out=~/x", "study a --inception=~/x",
        "claims --out=~/x", "decode ~/x", "decode a --out=~/x", "sample --out=~/x", "reconstruct ~/x",
        "interpolate ~/x a", "interpolate a ~/x",
    ],
)  # fmt: skip
def test_a_tilde_is_expanded_in_each_path_argument(line: str, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HOME", "/home/z")
    values = vars(make_parser().parse_args(line.split())).values()
    assert "/home/z/x" in values
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(line.replace("~/x", "~no-such-user/x").split())
    assert "'~no-such-user/x' names no user's home folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(line.replace("~/x", os.fsdecode(b"b\xe4r")).split())
    assert r"the path 'b\xe4r' is not UTF-8" in capsys.readouterr().err


def test_truncated_zip_is_refused(refused):
    with zipfile.ZipFile("whole.zip", "w") as archive:
        archive.writestr("a.png", os.urandom(4_000))
    Path("cut.zip").write_bytes(Path("whole.zip").read_bytes()[:2_000])
    assert "cut.zip" in refused("ingest", "folder", "--source", "cut.zip", "--to", "faces")


@pytest.mark.usefixtures("ray_cluster")
def test_undecodable_image_is_refused(refused):
    with zipfile.ZipFile("faces.zip", "w") as archive:
        archive.writestr("good.png", encode_image(draw_face(0, 0, 32)[0], "png"))
        archive.writestr("bad.png", b"<html>")
    line = refused("ingest", "folder", "--source", "faces.zip", "--to", "faces", "--size", 16)
    assert "1 bad images, 0 allowed (--max-bad): bad.png" in line


@pytest.mark.usefixtures("tracking")
def test_damaged_shard_is_refused(refused, zpoint, tiny: str, faces: Path):
    shard = faces / "train-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "train-00001.parquet is damaged: its sha256 differs" in refused("train", tiny, f"data.uri={faces}")
    assert zpoint("runs") == {"runs": []}


@pytest.mark.usefixtures("tracking")
def test_unknown_alias_is_refused(refused):
    assert "no model has the alias 'nonesuch'" in refused("serve", "--alias", "nonesuch")


def test_missing_bucket_is_refused(refused, s3: str, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    message = "'no-such-bucket' does not exist; create it first"
    assert message in refused("train", tiny, "data.uri=s3://no-such-bucket/faces")
    assert message in refused("ingest", "generated", "--to", "s3://no-such-bucket/faces")
    monkeypatch.setenv("ZPOINT_STORE", "s3://no-such-bucket")
    for argv in (["train", tiny, f"data.uri={faces}"], ["tune", tiny, f"data.uri={faces}"], ["promote", "x"]):
        assert message in refused(*argv)


@pytest.mark.s3
def test_wrong_s3_keys_are_refused(refused, start_moto, tiny: str, monkeypatch: pytest.MonkeyPatch):
    url, bucket = start_moto(INITIAL_NO_AUTH_ACTION_COUNT="1"), f"strict-{uuid.uuid4().hex[:8]}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert "key" in refused("train", tiny, f"data.uri=s3://{bucket}/faces")
    assert "key" in refused("ingest", "generated", "--to", f"s3://{bucket}/faces")


def test_failed_job_ends_with_status_1(capsys, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        print("noise")
        raise RuntimeError("the disk\nbroke")

    monkeypatch.setattr("jobs.commands.runs.list_runs", fail)
    with pytest.raises(SystemExit) as caught:
        main(["runs", "--json"])
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "noise\nzpoint: failed: the disk broke\n")


def test_words_after_an_option_are_runs_too(monkeypatch: pytest.MonkeyPatch, zpoint):
    monkeypatch.setattr("jobs.study.job.study", lambda runs, *args, **options: {"runs": runs})
    assert zpoint("study", "a", "--limit", "100", "b", "--fresh", "c") == {"runs": ["a", "b", "c"]}


def test_options_of_submit_may_stand_before_and_after_its_job(zpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "jobs.commands.submit.submit", lambda job, address, **options: {"job": job, "address": address, **options}
    )
    before = ["submit", "--cpus", "2", "--env", "A=1", "--address", "http://head:8265"]
    result = zpoint(*before, "train", "x", "--env", "B", "--wait", "--fresh", "--gpus", "1")
    assert result == {
        "job": ["train", "x", "--fresh", "--json"], "address": "http://head:8265",
        "wait": True, "cpus": 2.0, "gpus": 1.0, "variables": ["A=1", "B"],
    }  # fmt: skip


def test_interrupted_command_says_that_it_resumes_only_if_it_does(monkeypatch: pytest.MonkeyPatch, capsys):
    """The same `submit --wait` would submit a second job."""

    def interrupt(*args, **options) -> None:
        raise KeyboardInterrupt

    for name in ("study.job.study", "commands.submit.submit", "commands.runs.list_runs"):
        monkeypatch.setattr(f"jobs.{name}", interrupt)
    for argv, text in {
        ("study", "a"): "zpoint: interrupted; run the same command again to resume\n",
        ("submit", "--wait", "promote", "a"): "zpoint: interrupted\n",
        ("runs",): "zpoint: interrupted\n",
    }.items():
        with pytest.raises(SystemExit, match="130"):
            main([*argv])
        assert capsys.readouterr().err == text


@pytest.fixture
def job_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the chunks of the log that `zpoint logs` gets of a job that has ended; a test adds them."""

    async def tail(job_id: str):
        for chunk in chunks:
            yield chunk

    chunks: list[str] = []
    info = SimpleNamespace(status=SimpleNamespace(value="SUCCEEDED"))
    client = SimpleNamespace(
        tail_job_logs=tail, get_job_info=lambda job_id: info, get_job_logs=lambda job_id: "".join(chunks)
    )
    monkeypatch.setattr("jobs.commands.submit._connect", lambda address: (client, "http://head"))
    monkeypatch.setattr("jobs.commands.submit.check_answers", lambda url: None)
    return chunks


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_log_is_printed_once_without_credentials(job_log: list[str], capsys, options: list[str]):
    job_log += ["one\n", "http://h/?token=geheim\n"]
    with pytest.raises(SystemExit, match="0"):
        main(["logs", "a", *options])
    out, err = capsys.readouterr()
    assert (out.splitlines()[:2], err) == (["one", "http://h/?token=***"], "")
    assert out.count("one") == 1


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_json_result_stays_json_when_credentials_are_hidden(job_log: list[str], zpoint, options: list[str]):
    """A quote ends a URL, and so does a line break: encoded they are `\\"` and `\\n`."""
    job_log += ['GET "https://h/?X-Amz-Security-Token=geheim" 200\n', "http://h/?token=geheim\n", "user@host\n"]
    shown = 'GET "https://h/?X-Amz-Security-Token=***" 200\nhttp://h/?token=***\nuser@host\n'
    assert zpoint("logs", "a", *options) == {"id": "a", "logs": shown}


@pytest.mark.parametrize("options", [[], ["--json"], ["--follow"]])
def test_closed_pipe_ends_a_command_without_a_traceback(options: list[str]):
    code = f"""
from jobs import cli
from jobs.commands import submit
def job_logs(*args, follow, show=print):
    for _ in range(20 * follow):
        show("line\\n" * 10_000)
    return "line\\n" * 200_000
submit.job_logs = job_logs
cli.main(["logs", "a", *{options}])
"""
    pipeline = ["bash", "-c", '"$0" -c "$1" | head -c 4; exit "${PIPESTATUS[0]}"', sys.executable, code]
    process = subprocess.run(pipeline, capture_output=True, text=True, timeout=60)
    assert (process.returncode, len(process.stdout), process.stderr) == (1, 4, "")


def test_json_result_is_all_of_stdout(tiny: str, written_faces: Path):
    """Run in a new process, where MLflow creates its database and prints lines, which must not go to stdout."""
    argv = [sys.executable, "-m", "jobs.cli", "train", tiny, f"data.uri={written_faces}", "optim.epochs=1", "--json"]
    process = subprocess.run(argv, capture_output=True, text=True, check=True)
    result = json.loads(process.stdout)
    assert process.stdout.count("\n") == 1
    assert set(result) == {"run", "uri", "run_id", "already_finished", "seconds", "metrics"}
    assert "48/48 images" in process.stderr


def test_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"zpoint {version('zpoint')}\n"


def test_help_takes_under_1500_ms_and_imports_nothing_heavy():
    """Print every help in one process: an import by one of them would show, and the total bounds each."""
    code = f"""
import sys, time
from jobs.cli import main
for argv in [[], *([name] for name in {COMMANDS})]:
    try:
        main([*argv, "--help"])
    except SystemExit as end:
        assert end.code == 0, argv
print([name for name in {HEAVY} if name in sys.modules], time.process_time())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.count("usage: zpoint") == 1 + len(COMMANDS) >= 14
    imported, _, seconds = process.stdout.splitlines()[-1].rpartition(" ")
    assert imported == "[]"
    assert float(seconds) < 1.5
