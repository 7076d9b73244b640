"""The folder of a run."""

from pathlib import Path

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from jobs.run_store import RunStore, open_run

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=1, encoding="png", splits={})
RECIPE = check_recipe({"name": "mine"})


def test_worker_that_cannot_see_the_run_is_refused(tmp_path: Path):
    """It would train, and write the model where no other node finds it."""
    run_store = RunStore("mine", str(tmp_path / "elsewhere"), run_id="")
    with pytest.raises(ValueError, match=r"elsewhere: set ZPOINT_STORE"):
        run_store.check_visible()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/run.json").write_text("{}")
    run_store.check_visible()


def test_epoch_trained_again_keeps_its_first_files(tmp_path: Path):
    run_store = RunStore("mine", str(tmp_path), run_id="")
    run_store.save_epoch(1, {"loss": 1.0}, [0.5], b"png", "1 x CPU")
    run_store.save_epoch(1, {"loss": 2.0}, [0.5], b"other", "1 x CPU")
    run_store.save_epoch(2, {"loss": 3.0}, [0.5], None, "1 x CPU")
    run_store.save_epoch(1000, {"loss": 4.0}, [0.5], None, "1 x CPU")
    assert run_store.epochs() == {1: {"loss": 1.0}, 2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert run_store.epochs(after=1) == {2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert (tmp_path / "epochs" / "epoch-001.png").read_bytes() == b"png"
    assert [run_store.last_metric("loss", before=epoch) for epoch in (1, 2, 3, 1001)] == [0.0, 1.0, 3.0, 4.0]
    assert run_store.last_metric("gpu_hours", before=3) == 0.0  # of an epoch that an earlier version trained


def test_name_of_another_recipe_or_dataset_is_refused():
    uri = open_run(RECIPE, "t", MANIFEST).uri
    assert open_run(RECIPE, "t", MANIFEST).uri == uri
    other_recipe = check_recipe({"name": "mine", "optim": {"lr": 1.0}})
    for recipe, manifest in ((other_recipe, MANIFEST), (RECIPE, MANIFEST.model_copy(update={"size": 17}))):
        with pytest.raises(ValueError, match="run 'mine' was made from another recipe or dataset"):
            open_run(recipe, "t", manifest)
        unnamed = recipe.model_copy(update={"name": ""})
        assert open_run(unnamed, "t", manifest).name != open_run(check_recipe({}), "t", MANIFEST).name
    (Path(uri) / "epochs").mkdir()
    assert open_run(other_recipe, "t", MANIFEST, fresh=True).uri == uri
    assert not (Path(uri) / "epochs").exists()
