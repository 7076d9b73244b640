"""The settings of zpoint, which are environment variables."""

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The values of the environment when `settings()` was called; it may change later."""

    home: Path  # ZPOINT_HOME: MLflow's embedded store, and the defaults of the next two
    store: str  # ZPOINT_STORE: URI under which runs and MLflow's artifacts are kept
    cache: Path  # ZPOINT_CACHE: folder of the node caches
    cache_max: int | None  # ZPOINT_CACHE_MAX: limit in bytes of all node caches of a node
    cpus: int | None  # ZPOINT_CPUS: CPUs of a local Ray
    debug: bool  # ZPOINT_DEBUG: a failed command prints its traceback
    token: str  # ZPOINT_TOKEN: bearer token of the endpoint
    commit: str  # ZPOINT_COMMIT: commit of the code, with "-dirty" at its end if files differ from it
    image: str  # ZPOINT_IMAGE: container image that a process runs in; cluster/deploy/Dockerfile sets it
    tracking_uri: str  # MLFLOW_TRACKING_URI
    ray_address: str  # RAY_ADDRESS
    s3_endpoint: str  # AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
    s3_region: str  # AWS_REGION or AWS_DEFAULT_REGION

    @property
    def runs_uri(self) -> str:
        return f"{self.store}/runs"

    @property
    def artifacts_uri(self) -> str:
        # MLflow parses it as a URI: a local path with %, # or ? has to be quoted.
        uri = f"{self.store}/mlflow-artifacts"
        return uri if "://" in uri else Path(uri).as_uri()


def settings() -> Settings:
    """Read the settings. Raises ValueError for an invalid ZPOINT_CPUS, ZPOINT_CACHE_MAX, ZPOINT_TOKEN or path."""
    home = _absolute_path(_read("ZPOINT_HOME", ".zpoint"))
    cpus = _read("ZPOINT_CPUS")
    if cpus and not (cpus.isdigit() and int(cpus) > 0):
        raise ValueError(f"ZPOINT_CPUS takes a positive whole number, not '{cpus}'")
    return Settings(
        home=home,
        store=absolute_uri(_read("ZPOINT_STORE", str(home))).rstrip("/"),
        cache=_absolute_path(_read("ZPOINT_CACHE", str(home / "cache"))),
        cache_max=_parse_size("ZPOINT_CACHE_MAX", _read("ZPOINT_CACHE_MAX")),
        cpus=int(cpus) if cpus else None,
        debug=bool(_read("ZPOINT_DEBUG")),
        token=_check_token(_read("ZPOINT_TOKEN")),
        commit=_read("ZPOINT_COMMIT"),
        image=_read("ZPOINT_IMAGE"),
        tracking_uri=_absolute_sqlite(_read("MLFLOW_TRACKING_URI", _sqlite_uri(home / "mlflow.db"))),
        ray_address=_read("RAY_ADDRESS"),
        s3_endpoint=_read("AWS_ENDPOINT_URL_S3") or _read("AWS_ENDPOINT_URL"),
        s3_region=_read("AWS_REGION") or _read("AWS_DEFAULT_REGION"),
    )


def _read(name: str, default: str = "") -> str:
    """Return a variable without the line break that a file of variables may add; an empty one counts as not set."""
    return os.environ.get(name, "").strip() or default


def absolute_uri(uri: str) -> str:
    """Return `uri`, with `~` expanded and made absolute if it is a local path. Raises as `expand_user`."""
    return uri if "://" in uri else str(_absolute_path(uri))


def _absolute_path(path: str) -> Path:
    """Return `path` as an absolute one. Raises ValueError if it is relative and the working directory was deleted."""
    try:
        return Path(expand_user(path)).absolute()
    except FileNotFoundError:
        raise ValueError(f"cannot resolve '{path}': the working directory was deleted; change to another") from None


def expand_user(path: str) -> str:
    """Expand a leading `~` or `~user`, as a shell does except in words such as `--to=~/x` and `data.uri=~/x`.

    Raises ValueError for an unknown user, and for a path that is not UTF-8, which pyarrow and Ray do not take.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"'{path}' names no user's home folder; for a folder of that name write './{path}'")
    if not expanded.isascii() and os.fsencode(expanded).decode(errors="replace") != expanded:
        escaped = os.fsencode(expanded).decode(errors="backslashreplace")
        raise ValueError(f"the path '{escaped}' is not UTF-8; rename it, or link to it by another name")
    return expanded


def _sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite database; SQLAlchemy decodes % and takes what follows ? for options."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # With the driver named, MLflow does not make the folder of the quoted path.
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def _absolute_sqlite(uri: str) -> str:
    """Return the tracking URI, with `~` expanded and made absolute if it is of a relative path, as sqlite:///x.db."""
    scheme, _, path = uri.partition(":///")
    if not scheme.startswith("sqlite") or not path or path.startswith(("/", ":memory:", "file:")):
        return uri
    if path.startswith("~"):
        return f"{scheme}:///{expand_user(path)}"
    quoted_scheme, _, folder = _sqlite_uri(_absolute_path(".")).partition(":///")
    return f"{quoted_scheme if scheme == 'sqlite' else scheme}:///{folder}/{path}"


def _check_token(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise ValueError("ZPOINT_TOKEN takes printable ASCII characters, as an HTTP header does")
    return token


def _parse_size(name: str, text: str) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise ValueError(f"{name} takes a size as in 500MB or 20GB, not '{text}'")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


SECRETS = (  # never shown: not in logs and results, and not in what Ray's dashboard shows of a job
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
EXPORTED_VARIABLES = (  # what a job on the cluster needs of the submitter's environment
    *SECRETS,
    # Read by the AWS SDKs of pyarrow (C++) and boto3. The names of files are paths on the cluster.
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_CA_BUNDLE", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_EC2_METADATA_DISABLED", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    # Read by MLflow's client.
    "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS", "MLFLOW_S3_UPLOAD_EXTRA_ARGS", "MLFLOW_S3_EXPECTED_BUCKET_OWNER",
    "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT",
    "ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE", "ZPOINT_CACHE_MAX",
)  # fmt: skip
SECRET_NAME = r"[\w.-]*(?:password|passwd|pwd|token|secret|api_?key|credential)[\w.-]*"


def exported_env() -> dict[str, str]:
    """Return the variables, with absolute paths, that `apply_env` sets in another process."""
    current = settings()
    names = (*EXPORTED_VARIABLES, *_read("ZPOINT_SECRETS").split())  # the names that `zpoint submit --env` has hidden
    exported = {name: os.environ[name] for name in names if name in os.environ}
    paths = {
        "ZPOINT_HOME": str(current.home), "ZPOINT_CACHE": str(current.cache), "ZPOINT_STORE": current.store,
        "MLFLOW_TRACKING_URI": current.tracking_uri,
    }  # fmt: skip
    return exported | {name: path for name, path in paths.items() if name in exported or name == "ZPOINT_HOME"}


def apply_env(environment: dict[str, str]) -> None:
    """Set the variables that `exported_env` returned in another process, whose working directory differs."""
    os.environ.update(environment)


def split_secrets(environment: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the public variables of `environment`, then the secrets: keys, passwords, tokens and URLs with one."""
    secrets = {name: text for name, text in environment.items() if _is_secret(name) or hide_credentials(text) != text}
    return {name: text for name, text in environment.items() if name not in secrets}, secrets


def _is_secret(name: str) -> bool:
    """Return True for SECRETS, the names in ZPOINT_SECRETS, and a name that says so, such as HF_TOKEN."""
    if name in _read("ZPOINT_SECRETS").split():
        return True
    if name in EXPORTED_VARIABLES:  # among them paths, such as AWS_WEB_IDENTITY_TOKEN_FILE
        return name in SECRETS
    return re.fullmatch(SECRET_NAME, name, re.IGNORECASE) is not None


def hide_credentials(text: str) -> str:
    """Return `text` with *** for the user and the password in URLs, and for passwords and tokens in their queries."""
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    userinfo = tracking_uri.partition("://")[2].rpartition("@")[0]
    if userinfo:  # may hold signs that end a URL's host elsewhere
        text = text.replace(f"{userinfo}@", "***@")
    text = re.sub(r"(\w://)[^/?#\s'\"]+@", r"\1***@", text)
    return re.sub(rf"([?&;]{SECRET_NAME}=)[^&;#\s'\"]+", r"\1***", text, flags=re.IGNORECASE)
