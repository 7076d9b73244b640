"""The documents match the code: commands parse, Python blocks run, generated tables are current, links resolve."""

import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from aecore.config import load_recipe
from aecore.data.images import decode_image, encode_image
from aecore.data.synthetic_faces import draw_face
from jobs.cli import main, make_parser
from jobs.recipes import RECIPES
from jobs.train.job import train
from tests.benchmarks.scaling import predict
from tests.serving.app_client import make_client
from tests.serving.app_server import Z_DIM, make_slot, serve_app
from tests.synthetic_dataset import make_dataset

REPO = Path(__file__).parents[1]
PAGES = {path.relative_to(REPO).as_posix(): path.read_text() for path in [*REPO.glob("*.md"), *REPO.glob("docs/*.md")]}
FENCED = re.compile(r"(?s)```.*?```")
COMMAND = re.compile(r"(?m)^    ((?:\S*/)?[a-z]+(?: .*)?)$")
SHELL = [
    (page, line) for page, text in PAGES.items() for line in COMMAND.findall(FENCED.sub("", text))
    if page not in ("docs/cli.md", "CHANGELOG.md")
]  # fmt: skip
REQUESTS = sorted(
    {line for _, line in SHELL if re.match(r"curl .*:8000/|zpoint (decode|sample|reconstruct|interpolate) ", line)}
)
ZPOINT = [(page, line.split("#")[0]) for page, line in SHELL if line.startswith("zpoint ")]
SCRIPTS = [(page, block) for page, text in PAGES.items() for block in re.findall(r"(?s)```sh\n(.*?)```", text)]
PYTHON = [(page, block) for page, text in PAGES.items() for block in re.findall(r"(?s)```python\n(.*?)```", text)]


@pytest.mark.parametrize(("page", "line"), ZPOINT)
def test_every_zpoint_command_parses(page: str, line: str):
    args, rest = make_parser().parse_known_args(shlex.split(line)[1:])
    assert not [word for word in rest if word.startswith("-") or "=" not in word]
    if line.split()[1] in ("train", "tune"):
        load_recipe(RECIPES / f"{args.recipe}.yaml", args.overrides + rest)


@pytest.mark.parametrize("page", sorted({page for page, _ in SHELL}))
def test_shell_lines_are_valid_bash(page: str):
    script = "\n".join(line for name, line in SHELL if name == page)
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("page", "script"), SCRIPTS)
def test_scripts_are_valid_bash(page: str, script: str):
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert not checked.stderr, page  # bash only warns of a here-document without an end


def test_every_make_target_exists():
    targets = sorted({line.split("#")[0] for _, line in SHELL if line.startswith("make ")})
    for line in targets:
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=REPO, check=True, capture_output=True)


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    with serve_app(make_slot()) as url:
        yield url


@pytest.mark.parametrize("line", REQUESTS)
def test_every_request_to_the_endpoint_is_answered(line: str, endpoint_url: str, tmp_path: Path, monkeypatch):
    """With the images and z-points that the line names; it writes a file of images, z-points or JSON."""
    monkeypatch.chdir(tmp_path)
    for name in ("face.jpg", "face.png", "photo.jpg", "other.jpg", "start.png", "end.png", "photo.heic"):
        if f"--out {name}" not in line:  # an endpoint reads images by their content
            Path(name).write_bytes(encode_image(draw_face(0, 0, 32)[0], "jpeg"))
    np.save("z.npy", np.random.default_rng(0).normal(size=(2, Z_DIM)).astype(np.float32))
    inputs = set(tmp_path.iterdir())
    if line.startswith("curl"):
        request = line.replace("localhost:8000", endpoint_url) + " --fail --silent"
        subprocess.run(["bash", "-ec", request], check=True)
    else:
        with pytest.raises(SystemExit) as finished:
            main([*shlex.split(line)[1:], "--url", endpoint_url])
        assert finished.value.code == 0
    [out] = set(tmp_path.iterdir()) - inputs
    if out.suffix == ".json":
        assert json.loads(out.read_text()).keys() & {"model", "models", "name", "openapi", "status"}
        return
    if out.suffix in (".html", ".txt"):
        assert "zpoint" in out.read_text()
        return
    if out.name == "face.npy":
        assert np.load(out).shape == (1, Z_DIM)
        return
    images = np.load(out) if out.suffix == ".npy" else decode_image(out.read_bytes())
    assert images.shape[-1] == 3
    assert images.std() > 5


def test_every_route_has_a_request_in_the_docs():
    routes = {route for route in make_client().get("/openapi.json").json()["paths"] if "{alias}" not in route}
    requested = {urlsplit(re.search(r"localhost:8000(/[^ ']*)", line)[1]).path for line in REQUESTS if "curl" in line}
    assert routes | {"/", "/docs", "/openapi.json", "/v1/models/champion/sample"} == requested


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_every_python_block_runs(page: str, block: str, endpoint_url: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data" / "faces", {"train": [4]})
    exec(compile(block.replace("http://127.0.0.1:8000", endpoint_url), page, "exec"), {})


@pytest.mark.usefixtures("tracking")
def test_the_notebook_runs_on_a_finished_run(tmp_path: Path, monkeypatch):
    make_dataset(tmp_path / "data", {"train": [32], "valid": [8], "test": [16]}, size=16)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("{model: {z_dim: 2, channels: [4, 4, 4, 4]}, optim: {epochs: 1, batch: 8}, scale: {workers: 0}}")
    train(load_recipe(recipe, [f"data.uri={tmp_path / 'data'}"]), "tiny")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((REPO / "docs" / "latent_space.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    exec(compile(code, "latent_space.ipynb", "exec"), {})


def test_the_notebook_names_the_folder_that_has_no_run():
    cells = json.loads((REPO / "docs" / "latent_space.ipynb").read_text())["cells"]
    [load, *_] = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*/runs: train one"):
        exec(compile(load, "latent_space.ipynb", "exec"), {})


@pytest.mark.parametrize("name", ["configuration.md", "cli.md"])
def test_generated_tables_are_current(name: str):
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.render(name) == PAGES[f"docs/{name}"], "run `make docs`"


def test_configuration_lists_every_environment_variable():
    code = (REPO / "cluster" / "settings.py").read_text()
    variables = set(re.findall(r'"((?:ZPOINT|MLFLOW_TRACKING|RAY_ADDRESS|AWS)\w*)"', code))
    assert "ZPOINT_HOME" in variables
    sources = [path for package in ("aecore", "cluster", "jobs", "serving") for path in (REPO / package).rglob("*.py")]
    elsewhere = {name for path in sources for name in re.findall(r'"(ZPOINT_[A-Z_]+)"', path.read_text())}
    assert elsewhere <= variables, "read it in cluster/settings.py"
    assert not {name for name in variables if f"`{name}`" not in PAGES["docs/configuration.md"]}


def test_every_recipe_is_listed():
    assert not {path.stem for path in RECIPES.glob("*.yaml") if f"`{path.stem}`" not in PAGES["docs/training.md"]}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_resolve(page: str):
    text = FENCED.sub("", PAGES[page])
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:aecore|cluster|jobs|serving|tests|docs)/[\w/]+\.\w+)`", text)
    missing = [link for link in links if link and not ((REPO / page).parent / link).exists()]
    assert not missing + [file for file in files if not (REPO / file).exists()]


def test_contributing_names_what_exists():
    names = re.findall(r"`([A-Z]\w+)` of `([\w/.]+)`", PAGES["CONTRIBUTING.md"])
    assert len(names) > 8
    assert not [(name, path) for name, path in names if not re.search(rf"(?m)^{name}\b", (REPO / path).read_text())]


def test_the_readme_fits_on_a_page():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100


def test_scaling_table_is_the_prediction():
    assert predict() in (REPO / "docs" / "scaling.md").read_text()
