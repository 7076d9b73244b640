"""Run the claims job: train the runs that the claims about AE and VAE latent spaces need, and check each claim."""

import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aecore.config import load_recipe
from aecore.data.io import encode_json
from cluster.lock import hold_lock
from cluster.progress import Bar, ProgressCallback, no_progress
from cluster.settings import settings
from jobs.dataset import open_dataset
from jobs.ingest.job import ingest
from jobs.recipes import RECIPES
from jobs.report_folder import ReportFolder, open_report_folder
from jobs.study.measurements import (
    DEFAULT_LIMIT,
    DEFAULT_NUM_SAMPLES,
    MeasuredRun,
    find_finished_run,
    open_study_dataset,
)
from jobs.train.job import train

if TYPE_CHECKING:
    from jobs.claims.catalog import Claim
    from jobs.claims.verdicts import Verdict

GENERATED_FACES, GENERATED_OVERRIDES = 4_000, ["optim.batch=16"]  # a small dataset needs small batches
# Recipe keys that the claims' texts and datasets set; "task." stands for all keys of the task.
CLAIM_KEYS = ("data.uri", "model.z_dim", "loss.kl_factor", "task.")


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict, and the command that checks it again."""

    claim: "Claim"
    verdict: "Verdict"
    command: str


def claims(
    arguments: list[str], out: str | None = None, *, claim_names: list[str] | None = None,
    num_samples: int = DEFAULT_NUM_SAMPLES, progress: ProgressCallback = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Check the claims on the given datasets, by default on generated faces. Return the verdicts and the report's path.

    `arguments` holds datasets such as `faces=data/celeba` (see `jobs.claims.catalog.DATASETS`), and overrides such as
    `optim.epochs=20` for all recipes, except for the keys that `jobs.claims.catalog.RUNS` fixes. `claim_names` selects
    claims. `num_samples` images are scored for each sampler and sweep value. Finished runs and stored measurements are
    reused. claims.html, claims.json and PNGs for each claim are written to the folder `out`, a path or an s3:// URI, by
    default ZPOINT_HOME/claims, or claims-NAME beside it for selected claims; for a submitted job in ZPOINT_STORE.

    Raises ValueError for an unknown dataset or claim, for a recipe, a dataset or a study that is refused, and as
    `open_report_folder`.
    """
    start = time.monotonic()
    datasets, overrides = _parse(arguments)
    selected = _select(claim_names, datasets)
    folder = open_report_folder(out, "-".join(["claims", *(claim_names or ())]))
    with hold_lock(f"{folder.uri}/.lock", f"the claims in {folder.uri} are being checked", "choose another --out"):
        if not datasets:
            datasets, overrides = {"faces": _generate_faces()}, [*GENERATED_OVERRIDES, *overrides]
        run_names = _train(selected, datasets, overrides)
        runs = _open_runs(run_names, num_samples)
        results = []
        for index, claim in enumerate(selected):
            progress(index, len(selected), claim.name)
            command = ["zpoint", "claims", *arguments, "--only", claim.name, "--num-samples", str(num_samples)]
            verdict = claim.check({name: runs[name] for name in claim.run_names})
            results.append(ClaimResult(claim, verdict, shlex.join(command)))
        progress(len(selected), len(selected), "")
        report = _write_report(folder, results, runs, datasets, num_samples)
        return report | {"seconds": round(time.monotonic() - start, 1)}


def _parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the URIs by dataset, and the overrides."""
    from jobs.claims.catalog import DATASETS

    datasets, overrides = {}, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in DATASETS:
            datasets[key] = value
        elif key.startswith(CLAIM_KEYS):
            raise ValueError(f"{key} is set by the claims themselves: leave it out")
        elif "." in key:
            overrides.append(argument)
        else:
            expected = ", ".join(f"{name}=URI" for name in DATASETS)
            raise ValueError(f"'{argument}' is neither a dataset ({expected}) nor section.key=value")
    return datasets, overrides


def _select(claim_names: list[str] | None, datasets: Mapping[str, str]) -> list["Claim"]:
    """Return the claims of these names, by default all, on the given datasets."""
    from jobs.claims.catalog import CLAIMS

    available = [claim for claim in CLAIMS if claim.dataset in (datasets or ("faces",))]
    available_names = {claim.name for claim in available}
    for name in claim_names or ():
        if name not in available_names:
            raise ValueError(
                f"--only {name}: no such claim on these datasets; they have {', '.join(sorted(available_names))}"
            )
    return [claim for claim in available if not claim_names or claim.name in claim_names]


def _generate_faces() -> str:
    """Ingest generated faces and return the URI of the dataset."""
    uri = str(settings().home / "claims" / "faces")
    with closing(Bar("ingest", "images")) as bar:
        ingest("generated", None, uri, limit=GENERATED_FACES, progress=bar.update)
    return uri


def _train(selected: list["Claim"], datasets: Mapping[str, str], overrides: list[str]) -> dict[str, str]:
    """Train each run that the claims need, and return the runs' names by their keys in `jobs.claims.catalog.RUNS`."""
    from jobs.claims.catalog import RUNS
    from jobs.study.images import check_image_count

    recipes = {}
    for claim in selected:
        for name in claim.run_names:
            stem, run_overrides = RUNS[name]
            all_overrides = [f"data.uri={datasets[claim.dataset]}", *overrides, *run_overrides]
            recipes[name] = (stem, load_recipe(RECIPES / f"{stem}.yaml", all_overrides))
    for name, uri in datasets.items():  # one that cannot be opened or measured fails before the first training
        manifest = open_dataset(uri).manifest
        _check_source(name, uri, manifest.dataset)
        check_image_count(manifest, DEFAULT_LIMIT)
    run_names = {}
    for run_number, (name, (stem, recipe)) in enumerate(recipes.items(), 1):
        print(f"zpoint claims: run {run_number}/{len(recipes)}, {name}", file=sys.stderr, flush=True)
        run_names[name] = train(recipe, stem)["run"]
    return run_names


def _check_source(name: str, uri: str, source: str) -> None:
    """Raise ValueError if the images at `uri`, ingested from `source`, are known to be those of another dataset."""
    from jobs.claims.catalog import DATASETS

    other = next((dataset for dataset, sources in DATASETS.items() if source in sources), name)
    if other != name:
        raise ValueError(f"{name}={uri}: these images are of {source}; did you mean {other}={uri}?")


def _open_runs(run_names: Mapping[str, str], num_samples: int) -> dict[str, MeasuredRun]:
    """Open the runs for measurement. Runs on one dataset share its images."""
    runs = {name: find_finished_run(run_name) for name, run_name in run_names.items()}
    study_datasets = {}
    for digest in {run.dataset_digest for run in runs.values()}:
        runs_on_it = [run for run in runs.values() if run.dataset_digest == digest]
        study_datasets[digest] = open_study_dataset(runs_on_it, DEFAULT_LIMIT, num_samples)
    return {name: MeasuredRun(run, study_datasets[run.dataset_digest]) for name, run in runs.items()}


def _write_report(
    folder: ReportFolder, results: list[ClaimResult], runs: Mapping[str, MeasuredRun], datasets: Mapping[str, str],
    num_samples: int,
) -> dict[str, Any]:  # fmt: skip
    """Write claims.html, claims.json and the PNGs. Return the content of claims.json with the report's path."""
    from jobs.claims.verdicts import IMAGE_HEADERS
    from jobs.study.report import image_rows_png, render_page

    files = {}
    for result in results:
        name, verdict = result.claim.name, result.verdict
        if verdict.image_rows:
            files[f"{name}.png"] = image_rows_png(result.claim.text, IMAGE_HEADERS, verdict.image_rows)
        files |= {f"{name}-{chart.name}.png": chart.png for chart in verdict.charts}
    claims_json = {
        "claims": [
            {"claim": result.claim.name, "text": result.claim.text, "holds": result.verdict.holds,
             "figures": result.verdict.evidence, "command": result.command}
            for result in results
        ],
        "runs": {name: run.run.store.name for name, run in runs.items()},
        "sets": dict(datasets),
    }  # fmt: skip
    files["claims.json"] = encode_json(claims_json)
    page = render_page(
        "claims.html.j2", datasets="; ".join(f"{name}: {uri}" for name, uri in datasets.items()), results=results,
        image_headers=IMAGE_HEADERS, num_samples=f"{num_samples:,}",
        runs={name: run.run.summary for name, run in runs.items()},
    )  # fmt: skip
    folder.write({**files, "claims.html": page.encode()})
    return {"report": f"{folder.uri}/claims.html", **claims_json}
