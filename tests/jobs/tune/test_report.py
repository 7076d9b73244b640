"""A campaign's report: one page without external resources, charts of the right values, commands that name the runs."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import optuna
import pytest
import torch

from aecore.config import Recipe, check_recipe, load_recipe, recipe_path
from aecore.data.shards import Manifest
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training.checkpoint import TrainState, take_snapshot, write_checkpoint
from jobs.recipes import RECIPES
from jobs.run_store import open_run
from jobs.study.charts import Axis, Chart, Series
from jobs.tune import campaign_charts, report
from jobs.tune.campaign import Campaign, Span, write_campaign
from jobs.tune.campaign_charts import busy_minutes, importance
from jobs.tune.report import make_report, make_sections, trial_commands, write_report
from tests.jobs.tune.made_campaigns import START, make_campaign, make_replicated


def decode_index(run: str, samplers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return images whose gray level tells the sampler."""
    return {name: np.full((10, 8, 8, 3), 40 * index, np.uint8) for index, name in enumerate(samplers)}


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Draw no chart, which takes seconds; return the arguments of each by name."""
    drawn: dict[str, tuple[Any, ...]] = {}

    def draw(name: str, title: str, *values: Any) -> Chart:
        drawn[name] = values
        return Chart(name, title, png=b"", svg="<svg></svg>")

    for kind in ("line", "value", "span"):
        monkeypatch.setattr(campaign_charts, f"{kind}_chart", draw)
    return drawn


def series_of(values: tuple[Any, ...]) -> dict[str, Series]:
    found = next(value for value in values if isinstance(value, list) and value and isinstance(value[0], Series))
    return {series.name: series for series in found}


def test_page_loads_nothing_and_shows_every_trial(monkeypatch: pytest.MonkeyPatch):
    campaign = make_campaign()
    monkeypatch.setattr(report, "decode_run", decode_index)
    uri, files = write_report(campaign, "out")
    assert uri == str(Path("out/campaign.html").absolute())
    assert list(files)[-1] == "campaign.html"
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == files
    page = Path(uri).read_text()
    assert "default-src 'none'" in page
    for url in re.findall(r"""(?:src|href|url|data)\s*[=(]\s*["']?([^"'\s)>]+)""", page):
        assert url.startswith(("data:image/", "#")), url
    assert "<script" not in page
    text = unescape(page)
    for trial in campaign.trials:
        assert f"<td>{trial.run.removeprefix('celeba-vae-')}</td>" in page
        assert not trial.reason or f"{trial.state}: {trial.reason}" in text
    for part in (campaign.rule, campaign.best, "<code>zpoint promote faces</code>", "1 diverged", "0.93 core hours"):
        assert part in text
    assert page.count("<svg ") == 7
    assert page.count('src="data:image/webp') == 2 * campaign.count("finished") + campaign.count("stopped")
    pngs = [content for name, content in files.items() if name.endswith(".png")]
    assert all(content.startswith(b"\x89PNG") for content in pngs)
    assert len(pngs) == 7


def test_report_on_s3_names_the_recipe_beside_the_page(s3: str, charts: dict, monkeypatch: pytest.MonkeyPatch):
    campaign = make_campaign()
    campaign.stem = "mine"
    monkeypatch.setattr(report, "decode_run", decode_index)
    uri, files = write_report(campaign, f"{s3}/reports")
    assert uri == f"{s3}/reports/campaign.html"
    client = boto3.client("s3")
    for name, content in files.items():
        assert client.get_object(Bucket=s3[5:], Key=f"reports/{name}")["Body"].read() == content
    assert "zpoint train mine.yaml" in files["campaign.html"].decode()
    assert "mine.yaml" in files


def test_report_of_a_started_campaign_lacks_what_it_does_not_know_yet(charts: dict):
    campaign = make_campaign(0)
    assert make_sections(campaign, decode_index) == []
    assert "No trial has finished" in make_report(campaign, "out", decode_index)["campaign.html"].decode()
    campaign = make_campaign(1)
    trial = campaign.trials[0]
    trial.state, trial.judged, trial.spans = "running", [], [Span(START, None, 1.0, "core")]
    assert [section.id for section in make_sections(campaign, decode_index)] == ["timeline"]


def test_samples_are_ordered_by_kl_factor_with_the_distance_of_their_sampler(charts: dict):
    campaign = make_campaign()
    campaign.trials.reverse()
    normal, best = report.image_tables(campaign, decode_index)
    assert normal.label_header == "kl_factor, z_dim"
    kl_factors = [float(row.label.lstrip("*> ").split(",")[0]) for row in normal.rows]
    assert kl_factors == sorted(kl_factors)
    stopped = [row for row in normal.rows if row.cells[-1] == "4/20"]
    assert (len(kl_factors), len(stopped)) == (campaign.count("finished") + 1, 1)  # one is stopped
    chosen = campaign.trial(campaign.best)
    assert chosen is not None
    row = next(row for row in normal.rows if row.label.startswith(">"))
    assert row.cells[1] == f"{chosen.judged[-1]['hog_frechet_normal']:.2f}"
    assert len(best.rows) == campaign.count("finished")
    assert {row.cells[0] for row in best.rows} == {"normal", "gaussian"}
    for row in best.rows:
        trial = next(t for t in campaign.trials if row.label.endswith(f"{t.point['loss.kl_factor']:.3g}, "
                                                                      f"{t.point['model.z_dim']}"))  # fmt: skip
        distances = {name: trial.judged[-1][f"hog_frechet_{name}"] for name in ("normal", "gaussian")}
        assert row.cells[2] == f"{min(distances.values()):.2f} ".strip()
        assert row.images.max() == 40 * (row.cells[0] == "gaussian")
    campaign.recipe["search"]["sampler"] = "normal"
    assert len(report.image_tables(campaign, decode_index)) == 1


def test_stopped_trial_shows_its_last_checkpoint(charts: dict):
    recipe = check_recipe({"model": {"z_dim": 2, "channels": [4, 4, 4, 4]}})
    manifest = Manifest(dataset="x", options={}, size=16, channels=1, encoding="png", splits={})
    run_store = open_run(recipe, "stopped", manifest)
    model = build_model(recipe, ImageShape(16, 1))
    for step, shade in ((10, -9.0), (20, 9.0)):  # black, then white images
        torch.nn.init.constant_(model.get_parameter("decoder.9.bias"), shade)
        snapshot = take_snapshot(model, torch.optim.Adam(model.parameters()), recipe, TrainState(step=step))
        fs, root = run_store.folder
        write_checkpoint(fs, f"{root}/checkpoints", snapshot)
    images = report.decode_run(run_store.name, ["normal", "gaussian"])
    assert list(images) == ["normal"]
    assert images["normal"].shape == (10, 16, 16, 1)
    assert images["normal"].min() > 200


def test_a_run_whose_model_is_gone_has_no_images(caplog: pytest.LogCaptureFixture):
    assert report.image_tables(make_campaign(2), report.decode_run) == []
    assert "the report lacks the images of run 'celeba-vae-00000000'" in caplog.text


def test_pareto_chart_has_the_front_the_choice_and_the_slack(charts: dict):
    campaign = make_campaign()
    campaign_charts.pareto_chart(campaign)
    series, references = series_of(charts["pareto"]), charts["pareto"][-1]
    front = [campaign.trial(run) for run in campaign.pareto_front]
    assert sorted(series["Pareto front"].x, reverse=True) == [
        trial.judged[-1]["valid_psnr"] for trial in front if trial
    ]
    assert references[0].x == max(series["Pareto front"].x) - 3
    assert list(series["chosen"].y) == [min(series["Pareto front"].y)]
    counts = {name: len(values.x) for name, values in series.items()}
    assert counts == {
        "Pareto front": 6, "chosen": 1, "dominated": 2, "no active units": 1, "stopped": 1, "diverged": 1, "lost": 1,
    }  # fmt: skip
    assert series["Pareto front"].labels[-1] == "0.00316, 64"


def test_pareto_chart_has_points_of_several_seeds_at_their_mean(charts: dict):
    """Before, at their best seed: a rejected point looked better than the choice."""
    campaign = make_replicated({"a": [(22.0, 2.5), (22.0, 3.5)], "b": [(19.5, 2.95), (20.5, 2.85)], "c": [(23.0, 4.0)]})
    text = make_sections(campaign, lambda run, samplers: {})[0].text
    series, references = series_of(charts["pareto"]), charts["pareto"][-1]
    assert {name: list(zip(values.x, values.y, strict=True)) for name, values in series.items()} == {
        "Pareto front": [(20.0, pytest.approx(2.9)), (22.0, 3.0), (23.0, 4.0)],
        "chosen": [(20.0, pytest.approx(2.9))],
    }
    assert references[0].x == 22.0 - 3
    assert "A point with several seeds is drawn once, at their mean; the rule chooses among these points." in text
    assert "several seeds" not in make_sections(make_campaign(), lambda run, samplers: {})[0].text


def test_curves_are_coloured_for_the_best_and_some_of_the_front(charts: dict):
    campaign = make_campaign(40)
    campaign_charts.curve_charts(campaign)
    coloured = [series for series in charts["curves-distance"][-1] if not series.muted]
    assert len(coloured) == 6
    assert coloured[0].name == campaign_charts.point_label(campaign, campaign.trial(campaign.best))  # type: ignore[arg-type]
    assert list(coloured[0].x) == [4, 8, 12, 16, 20]
    assert len(charts["curves-distance"][-1]) == 40


def test_map_has_each_pair_of_numbers_or_the_only_one(charts: dict):
    campaign = make_campaign()
    campaign_charts.map_charts(campaign)
    x, y, points, values, _ = charts["map-kl_factor-z_dim-distance"]
    assert (x, y) == (Axis("kl_factor", log=True), Axis("z_dim", log=True, ticks=(64, 128, 200, 512)))
    assert (points.x[4], points.y[4]) == (campaign.trials[4].point["loss.kl_factor"], 64)
    assert values[0] == campaign.trials[0].judged[-1]["hog_frechet_gaussian"]
    charts.clear()
    campaign_charts.map_charts(
        make_campaign(6, {"model.norm": ["batch", "group"], "optim.lr": "uniform(0.001, 0.002)"})
    )
    assert list(charts) == ["map-distance", "map-psnr"]
    assert charts["map-psnr"][0] == Axis("lr")


def test_importance_needs_20_trials_and_finds_the_key_that_matters():
    assert importance(make_campaign(19)) == {}
    campaign = make_campaign(40)
    for index, trial in enumerate(campaign.trials):  # kl_factor alone decides, between nothing and a front
        good = trial.point["loss.kl_factor"] > 1
        trial.judged[-1] |= {"valid_psnr": 20.0 + good + index / 1000, "hog_frechet_normal": 5.0 - good + index / 1000}
        trial.judged[-1]["hog_frechet_gaussian"] = 9.0
    optuna.logging.set_verbosity(optuna.logging.INFO)
    shares = importance(campaign)
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert list(shares) == ["loss.kl_factor", "model.z_dim"]
    assert shares["loss.kl_factor"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)


def test_timeline_leaves_out_long_pauses_and_shows_resumed_trials_twice(charts: dict):
    minutes = busy_minutes([(1000, 1060), (1030, 1120), (1150, 1180), (90_000, 90_060)])
    assert [minutes(time) for time in (1000, 1150, 1180, 90_000, 90_060)] == [0, 2.5, 3, 3, 4]
    campaign = make_campaign(2)
    campaign.trials[0].spans.append(Span(START + 4000, None, 1.0, "core"))
    campaign.trials[0].state = "running"
    campaign_charts.timeline_chart(campaign)
    labels, _, series = charts["timeline"]
    assert labels == ["00000000", "9e3779b1"]
    assert [(bars.name, list(bars.y)) for bars in series] == [("running", [0, 0]), ("finished", [1])]


@pytest.mark.parametrize("stem", ["celeba-denoise", "faces-vae", "my-own"])
def test_command_of_a_trial_trains_its_run(stem: str, tmp_path: Path):
    """The command leads to the recipe of the campaign at the trial's point, whatever file the campaign came from."""
    named = RECIPES / f"{stem}.yaml"
    base = named if named.exists() else tmp_path / "base.yaml"
    if base is not named:
        base.write_text("model: {z_dim: 7}\ntask: {kind: drop, keep: 0.3}\n")
    overrides = ["data.uri=/data/my faces", "optim.epochs=3", "optim.lr=1e-6", "search.trials=4", "name=c"]
    campaign = make_campaign(3)
    recipe = load_recipe(base, overrides)
    campaign.stem, campaign.recipe = stem, recipe.model_dump(mode="json")
    for trial, epochs in zip(campaign.trials, (20, 3, 3), strict=True):  # 20: a longer run of another command
        trial.epochs = epochs
    commands, file = trial_commands(campaign, str(tmp_path))
    assert (file is None) == named.exists()
    if file is not None:
        (tmp_path / f"{stem}.yaml").write_bytes(file)
    for trial in campaign.trials:
        program, command, start, *words = shlex.split(commands[trial.run])
        assert (program, command) == ("zpoint", "train")
        assert Path(start).stem == stem
        trained = load_recipe(recipe_path(start, RECIPES), words)
        assert without_search(trained) == without_search(recipe.at(trial.point | {"optim.epochs": trial.epochs}))


def test_recipe_that_overrides_cannot_reach_is_written_beside_the_page(tmp_path: Path):
    """A file with the name of a recipe of zpoint, but without a key that this one has."""
    campaign = make_campaign(1)
    campaign.stem = "celeba-denoise"  # with task.sigma, which the task of this recipe has not
    _, file = trial_commands(campaign, str(tmp_path))
    assert file is not None
    (tmp_path / "celeba-denoise.yaml").write_bytes(file)
    trained = load_recipe(tmp_path / "celeba-denoise.yaml", [])
    assert without_search(trained) == without_search(check_recipe(campaign.recipe))


def without_search(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude={"search", "name"})


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """Store a made-up campaign `faces`."""
    monkeypatch.setattr(report, "decode_run", decode_index)
    campaign = make_campaign()
    write_campaign(campaign)
    return campaign


def test_command_shows_a_campaign_and_writes_its_page(
    stored: Campaign, zpoint: Callable, charts: dict, capsys: pytest.CaptureFixture[str]
):
    result = zpoint("campaign", "faces")
    home = Path(os.environ["ZPOINT_HOME"])
    assert result["report"] == str(home / "campaigns" / "faces" / "campaign.html")
    assert Path(result["report"]).exists()
    assert [trial["run"] for trial in result["trials"]] == [trial.run for trial in stored.trials]
    assert Path(zpoint("campaign", "faces", "--out", "page")["report"]) == Path.cwd() / "page" / "campaign.html"
    assert [row["campaign"] for row in zpoint("campaign")["campaigns"]] == ["faces"]


def test_list_of_campaigns_names_their_state(stored: Campaign, zpoint: Callable):
    stored.campaign, stored.state = "second", "unfinished"
    write_campaign(stored)
    text = zpoint("campaign")["text"]
    assert text.splitlines()[0].startswith("faces   finished, 9 finished, 1 stopped")
    assert text.splitlines()[1].startswith("second  unfinished, 9 finished")


def test_unknown_campaign_is_refused(stored: Campaign, refused: Callable[..., str]):
    assert "no campaign 'other'" in refused("campaign", "other")
    assert "--out takes the folder of one campaign's report" in refused("campaign", "--out", "x")
    Path("file").touch()
    assert "--out file is a file: name a folder" in refused("campaign", "faces", "--out", "file")
    assert "campaign 'faces' has no run '12345678'" in refused("promote", "faces", "--run", "12345678")
    assert "no campaign 'a'" in refused("promote", "a", "--run", "12345678")
    stored.pareto_front = []
    write_campaign(stored)
    assert "campaign 'faces' has no finished trial with active units" in refused("study", "faces")
    assert "no campaigns yet" not in refused("study", "faces")
