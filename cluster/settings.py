"""Every environment variable that zpoint reads, in one place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Read afresh by `settings()`, so tests and jobs may change the environment."""

    home: Path  # ZPOINT_HOME: everything embedded lies here
    store: str  # ZPOINT_STORE: URI under which runs and MLflow's artifacts are kept
    cache: Path  # ZPOINT_CACHE: node caches
    cache_max: int | None  # ZPOINT_CACHE_MAX: bytes that the node caches of a node may take together
    cpus: int | None  # ZPOINT_CPUS: what a local Ray is started with
    debug: bool  # ZPOINT_DEBUG: a failed command shows where
    token: str  # ZPOINT_TOKEN: bearer token of the endpoint
    tracking_uri: str  # MLFLOW_TRACKING_URI
    ray_address: str  # RAY_ADDRESS
    s3_endpoint: str  # AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
    s3_region: str  # AWS_REGION or AWS_DEFAULT_REGION

    @property
    def runs_uri(self) -> str:
        return f"{self.store}/runs"

    @property
    def artifacts_uri(self) -> str:
        return f"{self.store}/mlflow-artifacts"


def settings() -> Settings:
    """The settings now. Raises ValueError for a value that is none: of ZPOINT_CPUS, ZPOINT_CACHE_MAX, ZPOINT_TOKEN."""
    env = os.environ
    home = Path(env.get("ZPOINT_HOME", ".zpoint")).absolute()
    cpus = env.get("ZPOINT_CPUS", "")
    if cpus and not (cpus.isdigit() and int(cpus) > 0):
        raise ValueError(f"ZPOINT_CPUS takes a positive whole number, not '{cpus}'")
    return Settings(
        home=home,
        store=_full(env.get("ZPOINT_STORE", str(home))),
        cache=Path(env.get("ZPOINT_CACHE", home / "cache")).absolute(),
        cache_max=_bytes("ZPOINT_CACHE_MAX", env.get("ZPOINT_CACHE_MAX", "")),
        cpus=int(cpus) if cpus else None,
        debug=bool(env.get("ZPOINT_DEBUG")),
        token=_token(env.get("ZPOINT_TOKEN", "")),
        tracking_uri=env.get("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}"),
        ray_address=env.get("RAY_ADDRESS", ""),
        s3_endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL", ""),
        s3_region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION", ""),
    )


def _full(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else str(Path(uri).absolute())


def _token(text: str) -> str:
    token = text.strip()  # a secret that comes out of a file ends in a new line
    if not (token.isascii() and token.isprintable()):
        raise ValueError("ZPOINT_TOKEN takes letters, digits and signs of ASCII")
    return token


def _bytes(name: str, text: str) -> int | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"{name} takes a size as in 500MB or 20GB, not '{text}'")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def quiet_environment() -> None:
    """Switch off what phones home; must run before ray or mlflow is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


# What a cluster job needs to see of the submitting shell's environment.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
EXPORTED_VARIABLES = (
    *S3_KEYS, "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_URI", "ZPOINT_HOME", "ZPOINT_STORE", "ZPOINT_CACHE", "ZPOINT_CACHE_MAX",
)  # fmt: skip


def exported_env() -> dict[str, str]:
    """What another process needs to be set as it is here, for `apply_env` there; paths in full."""
    now = settings()
    named = {name: os.environ[name] for name in EXPORTED_VARIABLES if name in os.environ}
    paths = {"ZPOINT_HOME": str(now.home), "ZPOINT_CACHE": str(now.cache), "ZPOINT_STORE": now.store}
    return named | {name: path for name, path in paths.items() if name in named or name == "ZPOINT_HOME"}


def apply_env(environment: dict[str, str]) -> None:
    """Take over what `exported_env` gave in another process: a worker runs in a folder of its own."""
    os.environ.update(environment)
