"""Reading the settings from the environment, and refusing invalid ones."""

import os
import shutil
from pathlib import Path

import pytest

from cluster import tracking
from cluster.settings import apply_env, exported_env, hide_credentials, settings, split_secrets
from cluster.storage import open_uri

EXPORTED = (  # of docs/configuration.md: what a worker or a job on the cluster gets of the submitter's environment
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_CA_BUNDLE", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_STS_REGIONAL_ENDPOINTS", "AWS_EC2_METADATA_DISABLED", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE",
    "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION", "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS", "MLFLOW_S3_UPLOAD_EXTRA_ARGS", "MLFLOW_S3_EXPECTED_BUCKET_OWNER",
    "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT",
    "ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE", "ZPOINT_CACHE_MAX",
)  # fmt: skip
LOCAL = ("ZPOINT_TOKEN", "ZPOINT_CPUS", "ZPOINT_DEBUG", "RAY_ADDRESS", "HTTP_PROXY", "PATH")


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*EXPORTED, *LOCAL[:-1]):
        monkeypatch.delenv(name, raising=False)


def test_a_worker_gets_each_exported_variable_and_no_other(no_settings: None, monkeypatch: pytest.MonkeyPatch):
    values = {name: f"/value of {name}" for name in EXPORTED} | {"ZPOINT_CACHE_MAX": "5GB"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in LOCAL[:-1]:
        monkeypatch.setenv(name, "1")
    assert exported_env() == values
    for name in EXPORTED:
        monkeypatch.delenv(name)
    apply_env(values)
    assert {name: os.environ.pop(name) for name in EXPORTED} == values


def test_a_worker_gets_absolute_paths_and_of_the_defaults_only_the_home(no_settings: None, monkeypatch):
    assert exported_env() == {"ZPOINT_HOME": str(Path(".zpoint").absolute())}
    for name in ("ZPOINT_HOME", "ZPOINT_CACHE", "ZPOINT_STORE"):
        monkeypatch.setenv(name, "here")
    here = str(Path("here").absolute())
    assert exported_env() == {"ZPOINT_HOME": here, "ZPOINT_CACHE": here, "ZPOINT_STORE": here}
    monkeypatch.setenv("ZPOINT_STORE", "s3://bucket/runs/")
    assert exported_env()["ZPOINT_STORE"] == "s3://bucket/runs"


def test_defaults(no_settings: None):
    current, home = settings(), Path(".zpoint").absolute()
    assert (current.home, current.store, current.cache) == (home, str(home), home / "cache")
    assert (current.runs_uri, current.artifacts_uri) == (f"{home}/runs", f"file://{home}/mlflow-artifacts")
    assert current.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert (current.cpus, current.cache_max, current.debug, current.token) == (None, None, False, "")
    assert (current.ray_address, current.s3_endpoint, current.s3_region) == ("", "", "")


def test_cache_and_store_lie_in_the_home_unless_named(no_settings: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_HOME", "/home/z")
    assert (settings().cache, settings().store) == (Path("/home/z/cache"), "/home/z")
    monkeypatch.setenv("ZPOINT_CACHE", "/fast")
    monkeypatch.setenv("ZPOINT_STORE", "s3://bucket/zpoint/")
    assert (settings().cache, settings().runs_uri) == (Path("/fast"), "s3://bucket/zpoint/runs")
    assert settings().tracking_uri == "sqlite:////home/z/mlflow.db"


@pytest.mark.parametrize("home", ["~", "~/", "~/a b", "~root/zpoint"])
def test_a_tilde_is_expanded_in_each_path(no_settings: None, monkeypatch: pytest.MonkeyPatch, home: str):
    monkeypatch.setenv("HOME", "/home/z")
    for name in ("ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE"):
        monkeypatch.setenv(name, home)
    expanded = os.path.expanduser(home).rstrip("/")
    assert expanded.startswith(("/home/z", "/root"))
    assert (str(settings().home), settings().store, str(settings().cache)) == (expanded, expanded, expanded)
    assert exported_env()["ZPOINT_HOME"] == expanded
    monkeypatch.setenv("ZPOINT_STORE", "s3://bucket/~/x")
    assert settings().store == "s3://bucket/~/x"


def test_an_empty_variable_counts_as_not_set_and_line_breaks_are_dropped(no_settings: None, monkeypatch):
    """As in Docker's and systemd's files of variables; an empty path would be the working directory."""
    defaults = settings()
    names = ("ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ZPOINT_CPUS")
    for name in names:
        monkeypatch.setenv(name, "")
    assert settings() == defaults
    for name in names:
        monkeypatch.setenv(name, "/x" if name != "ZPOINT_CPUS" else "3")
    expected = settings()
    for name in names:
        monkeypatch.setenv(name, f"{os.environ[name]}\n")
    assert settings() == expected


def test_a_tilde_is_expanded_in_the_tracking_uri(no_settings: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/z")
    for scheme in ("sqlite", "sqlite+pysqlite"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}:///~/a~b/mlflow.db")
        assert settings().tracking_uri == f"{scheme}:////home/z/a~b/mlflow.db"
    for uri in ("sqlite:////~/x.db", "http://h/~x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert settings().tracking_uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~no-such-user/x.db")
    with pytest.raises(ValueError, match=r"'~no-such-user/x.db' names no user's home"):
        settings()


@pytest.mark.parametrize(
    ("folder", "uri", "absolute"),
    [
        ("a b", "sqlite:///.zpoint/mlflow.db", "sqlite:////{}/a b/.zpoint/mlflow.db"),
        ("a", "sqlite:///a~b%20c.db?timeout=9", "sqlite:////{}/a/a~b%20c.db?timeout=9"),
        ("a", "sqlite+pysqlite:///x.db", "sqlite+pysqlite:////{}/a/x.db"),
        ("a%20b?", "sqlite:///x.db", "sqlite+pysqlite:////{}/a%2520b%3F/x.db"),
        ("a%20b?", "sqlite+pysqlite:///x.db", "sqlite+pysqlite:////{}/a%2520b%3F/x.db"),
        ("a", "sqlite:///:memory:", "sqlite:///:memory:"),
        ("a", "sqlite:///file:x.db?uri=true", "sqlite:///file:x.db?uri=true"),  # SQLite's own URI
        ("a", "sqlite:///", "sqlite:///"),
        ("a", "sqlite:////x.db", "sqlite:////x.db"),
        ("a", "x.db", "x.db"),
    ],
)
def test_a_relative_database_means_the_same_file_in_each_process(
    no_settings: None, tmp_path: Path, monkeypatch, folder: str, uri: str, absolute: str
):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    absolute = absolute.format(str(tmp_path).removeprefix("/"))
    assert settings().tracking_uri == exported_env()["MLFLOW_TRACKING_URI"] == absolute
    monkeypatch.setenv("MLFLOW_TRACKING_URI", absolute)
    monkeypatch.chdir("/")
    assert settings().tracking_uri == absolute


@pytest.mark.parametrize("name", ["ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~no-such-user/x", "'~no-such-user/x' names no user's home"),
        (os.fsdecode(b"/b\xe4r"), r"'/b\\xe4r' is not UTF-8"),
    ],
)
def test_a_path_that_cannot_be_is_refused(no_settings: None, monkeypatch, name: str, path: str, message: str):
    monkeypatch.setenv(name, path)
    with pytest.raises(ValueError, match=message):
        settings()


def test_the_special_s3_variables_precede_the_general_ones(no_settings: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-default-1")
    assert (settings().s3_endpoint, settings().s3_region) == ("http://general", "eu-default-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    monkeypatch.setenv("AWS_REGION", "eu-own-1")
    assert (settings().s3_endpoint, settings().s3_region) == ("http://s3", "eu-own-1")


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), ("1", 1), ("500", 500), ("2K", 2_000), ("2kb", 2_000), ("500MB", 500_000_000),
     ("1.5 G", 1_500_000_000), ("20GB", 20_000_000_000), ("3T", 3_000_000_000_000), ("7B", 7)],
)  # fmt: skip
def test_size_of_the_cache(no_settings: None, monkeypatch: pytest.MonkeyPatch, text: str, size: int | None):
    monkeypatch.setenv("ZPOINT_CACHE_MAX", text)
    assert settings().cache_max == size


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("ZPOINT_CACHE_MAX", text) for text in ("0", "-1", "20 GiB", "many", "1e9")),
     *(("ZPOINT_CPUS", text) for text in ("0", "-1", "two", "1.5"))],
)  # fmt: skip
def test_invalid_numbers_are_refused(no_settings: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} takes .*, not '{value}'"):
        settings()


@pytest.mark.parametrize(("text", "token"), [("", ""), ("abc", "abc"), (" abc\n", "abc"), ("a-b.c~/+=", "a-b.c~/+=")])
def test_a_token_may_end_in_a_newline(monkeypatch: pytest.MonkeyPatch, text: str, token: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    assert settings().token == token


@pytest.mark.parametrize("text", ["sécret", "a\tb"])
def test_a_token_that_is_not_printable_ascii_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    with pytest.raises(ValueError, match="ZPOINT_TOKEN takes"):
        settings()


@pytest.mark.parametrize(
    "name",
    ["a b", "a%20b", "a%23b", "a%b", "a?b", "a?b=c&d", "a#b", "a+b", "ä ö", "a;b", "a'b", 'a"b', "a:b", "a@b",
     "~a"],
)  # fmt: skip
def test_mlflow_stays_in_a_home_with_any_sign_in_its_name(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    home = tmp_path / name
    home.mkdir()
    shutil.copy(mlflow_template, home / "mlflow.db")
    monkeypatch.setenv("ZPOINT_HOME", str(home))
    run_id = tracking.create_run("run", {}, {})
    tracking.log_files(run_id, {"a.txt": b"zpoint"}, "folder")
    assert [run.info.run_id for run in tracking.find_runs()] == [run_id]
    fs, path = open_uri(tracking.client().get_run(run_id).info.artifact_uri)
    with fs.open_input_stream(f"{path}/folder/a.txt") as stream:
        assert stream.read() == b"zpoint"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert {entry.name for entry in home.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlflow-artifacts"}


def test_mlflow_finds_a_relative_database_in_a_folder_whose_name_is_quoted(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a%20b" / "home").mkdir(parents=True)
    shutil.copy(mlflow_template, tmp_path / "a%20b" / "home" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "a%20b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///home/mlflow.db")
    run_id = tracking.create_run("run", {}, {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", exported_env()["MLFLOW_TRACKING_URI"])
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    assert [run.info.run_id for run in tracking.find_runs()] == [run_id]
    assert {entry.name for entry in tmp_path.iterdir()} == {"a%20b", "worker"}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "a%20b", "a+b", "ä"])
@pytest.mark.usefixtures("tracking")
def test_mlflow_artifacts_may_lie_under_any_s3_prefix(s3: str, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/{name}")
    run_id = tracking.create_run("run", {}, {})
    tracking.log_files(run_id, {"a.txt": b"zpoint"}, "folder")
    fs, path = open_uri(tracking.client().get_run(run_id).info.artifact_uri)
    assert path.split("/")[1] == name
    with fs.open_input_stream(f"{path}/folder/a.txt") as stream:
        assert stream.read() == b"zpoint"


def test_a_deleted_working_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.delenv("ZPOINT_HOME")
    with pytest.raises(ValueError, match="the working directory was deleted"):
        settings()


def test_the_tracking_database_may_be_a_file_name_without_folder(
    mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(mlflow_template, "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert tracking.find_runs() == []
    assert Path("mlflow.db.lock").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://user:geheim@host:5000/api failed", "at http://***@host:5000/api failed"),
        ("at https://geheim@host/x", "at https://***@host/x"),
        ("postgresql+psycopg2://u:ge%40heim@h/d?sslmode=on", "postgresql+psycopg2://***@h/d?sslmode=on"),
        ("http://h/?token=geheim&x=1 and", "http://h/?token=***&x=1 and"),
        ("http://h/?access_token=geheim", "http://h/?access_token=***"),
        ("https://h/api?API_KEY=geheim#top", "https://h/api?API_KEY=***#top"),
        ('{"uri": "http://u:geheim@h/"}', '{"uri": "http://***@h/"}'),
        ("http://u:geheim@a and http://v:geheim@b", "http://***@a and http://***@b"),
        ("s3://bucket/runs@v2/x", "s3://bucket/runs@v2/x"),
        ("mail me@host, see http://host/@me?page=2", "mail me@host, see http://host/@me?page=2"),
    ],
)
def test_credentials_in_urls_are_hidden(text: str, shown: str):
    assert hide_credentials(text) == shown


@pytest.mark.parametrize("password", ["ge@heim", "ge/heim", "ge#h?eim", "g e:heim"])
def test_any_password_of_the_tracking_uri_is_hidden(monkeypatch: pytest.MonkeyPatch, password: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{password}@host/path")
    assert hide_credentials(f"no answer at http://user:{password}@host/path") == "no answer at http://***@host/path"


def test_variables_with_a_secret_are_told_from_others():
    environment = {
        "AWS_SECRET_ACCESS_KEY": "k", "MLFLOW_TRACKING_TOKEN": "t", "MLFLOW_TRACKING_URI": "http://u:p@h",
        "MLFLOW_S3_ENDPOINT_URL": "http://h:9000", "AWS_PROFILE": "team", "ZPOINT_STORE": "s3://bucket/x",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "HF_TOKEN": "t", "ZPOINT_TOKEN": "t", "db_password": "p",
        "WANDB_API_KEY": "k", "KEYBOARD": "us",
    }  # fmt: skip
    public, secrets = split_secrets(environment)
    assert public | secrets == environment
    assert set(secrets) == {
        "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "HF_TOKEN", "ZPOINT_TOKEN",
        "db_password", "WANDB_API_KEY",
    }  # fmt: skip
    assert set(public) == environment.keys() - secrets.keys()
