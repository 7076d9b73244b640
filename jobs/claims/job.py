"""The claims job: train what the claims on AE and VAE latent spaces need, and say which the figures bear out."""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.config import load_recipe
from aecore.data.io import write_atomic, write_json
from cluster.progress import Bar
from cluster.settings import settings
from jobs.dataset import open_dataset
from jobs.ingest.job import ingest
from jobs.recipes import RECIPES
from jobs.study.measurements import JUDGED, LIMIT, Measured, common_dataset, find_finished, options_for
from jobs.train.job import train

if TYPE_CHECKING:
    from jobs.claims.catalog import Claim
    from jobs.claims.verdicts import Verdict

DRAWN, DRAWN_OVERRIDES = 4_000, ["optim.batch=16"]  # faces, where no images are given; few images want small batches
FIXED = ("model.z_dim", "loss.kl_factor", "task.kind")  # the claims' own
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ClaimResult:
    """A claim, what became of it and the command that puts it to the test again."""

    claim: "Claim"
    verdict: "Verdict"
    command: str


def claims(
    given: list[str], out: str | None = None, *, only: list[str] | None = None, judged: int = JUDGED,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:  # fmt: skip
    """Put the claims to the test on the sets that are `given`, or on drawn faces where there are none.

    `given` holds datasets, as in `faces=data/celeba` (the sets are those of `jobs.claims.catalog.SETS`), and overrides
    for all recipes, as in `optim.epochs=20`. `only` names claims; `judged` pictures are judged at each point. Runs that
    have finished are not trained again, and what was measured of them is not measured again. The folder `out`, by
    default ZPOINT_HOME/claims or, with `only`, one beside it of that name, gets claims.html, claims.json and PNGs for
    each claim. Raises ValueError for an unknown set or claim, and for what a recipe, a dataset or a study is refused
    for.
    """
    started = time.monotonic()
    sets, overrides = _parse(given)
    chosen = _choose(only, sets)
    folder = Path(out).absolute() if out else settings().home / "-".join(["claims", *(only or ())])
    folder.mkdir(parents=True, exist_ok=True)
    if not sets:
        sets, overrides = {"faces": _draw()}, [*DRAWN_OVERRIDES, *overrides]
    names = _train(chosen, sets, overrides)
    runs = _open(names, judged)
    results = []
    for number, claim in enumerate(chosen):
        progress(number, len(chosen), claim.name)
        again = shlex.join(["zpoint", "claims", *given, "--only", claim.name, "--judged", str(judged)])
        results.append(ClaimResult(claim, claim.judge({name: runs[name] for name in claim.runs}), again))
    progress(len(chosen), len(chosen), "")
    return _write(folder, results, runs, sets, judged) | {"seconds": round(time.monotonic() - started, 1)}


def _parse(given: list[str]) -> tuple[dict[str, str], list[str]]:
    """The datasets by set, and the overrides."""
    from jobs.claims.catalog import SETS

    sets, overrides = {}, []
    for word in given:
        key, _, value = word.partition("=")
        if key in SETS:
            sets[key] = value
        elif key in FIXED:
            raise ValueError(f"{key} is what the claims vary: leave it out")
        elif "." in key:
            overrides.append(word)
        else:
            named = ", ".join(f"{name}=URI" for name in SETS)
            raise ValueError(f"'{word}' is neither a dataset ({named}) nor section.key=value")
    return sets, overrides


def _choose(only: list[str] | None, sets: Mapping[str, str]) -> list["Claim"]:
    from jobs.claims.catalog import CLAIMS

    here = [claim for claim in CLAIMS if claim.on in (sets or ("faces",))]
    known = {claim.name for claim in here}
    for name in only or ():
        if name not in known:
            raise ValueError(f"--only {name}: on these sets there are the claims {', '.join(sorted(known))}")
    return [claim for claim in here if not only or claim.name in only]


def _draw() -> str:
    to = str(settings().home / "claims" / "faces")
    with closing(Bar("ingest", "images")) as bar:
        ingest("generated", None, to, limit=DRAWN, progress=bar.update)
    return to


def _train(chosen: list["Claim"], sets: Mapping[str, str], overrides: list[str]) -> dict[str, str]:
    """Train what the claims need, each run once; gives the runs' full names by those in `jobs.claims.catalog.RUNS`."""
    from jobs.claims.catalog import RUNS

    recipes = {}
    for claim in chosen:
        for name in claim.runs:
            stem, changes = RUNS[name]
            ours = [f"data.uri={sets[claim.on]}", *overrides, *changes]
            recipes[name] = (stem, load_recipe(RECIPES / f"{stem}.yaml", ours))
    for uri in sets.values():
        open_dataset(uri)  # a wrong one is refused before the first training
    names = {}
    for number, (name, (stem, recipe)) in enumerate(recipes.items(), 1):
        print(f"zpoint claims: run {number}/{len(recipes)}, {name}", file=sys.stderr, flush=True)
        names[name] = train(recipe, stem)["run"]
    return names


def _open(names: Mapping[str, str], judged: int) -> dict[str, Measured]:
    """The runs to be measured; those on one dataset share its images."""
    from jobs.study.images import read_images

    finished = {name: find_finished(run) for name, run in names.items()}
    images, options = {}, {}
    for dataset in {run.dataset for run in finished.values()}:
        data = common_dataset([run for run in finished.values() if run.dataset == dataset], LIMIT)
        images[dataset] = cache(partial(read_images, data, LIMIT))
        options[dataset] = options_for(data.manifest, LIMIT, judged)
    return {name: Measured(run, images[run.dataset], options[run.dataset]) for name, run in finished.items()}


def _write(
    folder: Path, results: list[ClaimResult], runs: Mapping[str, Measured], sets: Mapping[str, str], judged: int
) -> dict[str, Any]:
    from aecore.image_grid import titled_sheet, to_png
    from jobs.claims.verdicts import HEADS
    from jobs.study.report import fill

    local = pafs.LocalFileSystem()
    for one in results:
        sheet = [("  ".join([row.label, *row.cells]), [row.pictures]) for row in one.verdict.rows]
        files = {f"{one.claim.name}.png": to_png(titled_sheet(sheet))} if sheet else {}
        files |= {f"{one.claim.name}-{chart.name}.png": chart.png for chart in one.verdict.charts}
        for name, content in files.items():
            write_atomic(local, str(folder / name), content)
    verdicts = [
        {"claim": one.claim.name, "text": one.claim.text, "holds": one.verdict.holds, "figures": one.verdict.figures,
         "command": one.command}
        for one in results
    ]  # fmt: skip
    result = {"claims": verdicts, "runs": {name: run.run.record.name for name, run in runs.items()}, "sets": dict(sets)}
    write_json(local, str(folder / "claims.json"), result)
    about = "; ".join(f"{name}: {uri}" for name, uri in sets.items())
    method = f"{judged:,} pictures were judged at each point, or as many as there are unseen images."
    page = fill(
        "claims.html.j2", about=about, judged=results, heads=HEADS, method=method,
        runs={name: run.run.about for name, run in runs.items()},
    )  # fmt: skip
    write_atomic(local, str(folder / "claims.html"), page.encode())
    return {"report": str(folder / "claims.html"), **result}
