"""Made-up campaigns, for tests of how a campaign is shown."""

import math
from typing import Any

from aecore.config import check_recipe
from jobs.tune.campaign import Campaign, Span, Trial

SPACE = {"model.z_dim": [64, 128, 200, 512], "loss.kl_factor": "log(0.003, 30)"}
START = 1_764_000_000.0  # seconds since 1970


def make_campaign(num_trials: int = 12, space: dict[str, Any] | None = None, **search: Any) -> Campaign:
    """Return a finished campaign whose trials took two at a time: one stopped, one diverged, one lost, one dead."""
    recipe = check_recipe(
        {"data": {"uri": "/data/faces"}, "optim": {"epochs": 20}, "search": {"space": space or SPACE, **search}}
    )
    campaign = Campaign("faces", "d1", "d2", "celeba-vae", recipe.model_dump(mode="json"), seconds=1800.0)
    campaign.state = "finished"
    for index in range(num_trials):
        kl_factor = float(f"{10 ** (-2.5 + 3.97 * index / max(1, num_trials - 1)):.3g}")
        point: dict[str, Any] = {"model.z_dim": (64, 128, 200, 512)[index % 4], "loss.kl_factor": kl_factor}
        if space:
            point = {key: dimension.at((index * 0.37) % 1) for key, dimension in recipe.search.dimensions.items()}
        campaign.trials.append(make_trial(index, point, kl_factor))
    for index, (state, reason) in {
        3: ("stopped", "in the worse half of 4 trials at epoch 4"),
        5: ("diverged", "the loss is nan at step 812"),
        7: ("lost", "its process died"),
    }.items():
        if index < num_trials:
            trial = campaign.trials[index]
            trial.state, trial.reason, trial.epoch = state, reason, 4  # type: ignore[assignment]
            trial.judged = trial.judged[:1]
    campaign.rank()
    return campaign


def make_trial(index: int, point: dict[str, Any], kl_factor: float) -> Trial:
    """Return a finished trial; a higher kl_factor costs PSNR, and has the lowest distance at about 3."""
    decades, alive = math.log10(kl_factor), kl_factor < 25
    trial = Trial(f"celeba-vae-{index * 2654435761 % 2**32:08x}", point, 20, state="finished")
    for epoch in range(1, 21):
        wait = 4 / epoch
        trial.record(
            epoch,
            {
                "train_loss": 5000 / epoch, "valid_psnr": 23 - decades - wait, "images_per_second": 800.0 + index,
                "valid_active_units": (60.0 - 10 * decades) * alive,
            }
            | (
                {
                    "hog_frechet_normal": 2 + abs(decades - 0.5) * 2 + wait,
                    "hog_frechet_gaussian": 3 + abs(decades + 0.5) + wait,
                }
                if epoch % 4 == 0
                else {}
            ),
        )  # fmt: skip
    start = START + 300.0 * (index // 2) + 10 * (index % 2)
    trial.spans = [Span(start, start + 280.0, 1.0, "core")]
    return trial


def make_replicated(scores: dict[str, list[tuple[float, float]]]) -> Campaign:
    """Return a finished campaign with PSNR and distance of each seed by point; a run is named by point and seed."""
    recipe = check_recipe({"optim": {"epochs": 2}, "search": {"space": {"loss.kl_factor": "log(0.01, 10)"}}})
    campaign = Campaign("faces", "d1", "d2", "x", recipe.model_dump(mode="json"), state="finished")
    for index, (name, seeds) in enumerate(scores.items(), 1):
        for seed, (psnr, distance) in enumerate(seeds):
            point = {"loss.kl_factor": float(index)} | ({"optim.seed": seed} if seed else {})
            trial = Trial(f"x-{name}{seed}", point, 2, state="finished", replicate_of=f"x-{name}0" if seed else "")
            trial.record(2, {"valid_psnr": psnr, "valid_active_units": 2, "hog_frechet_normal": distance})
            campaign.trials.append(trial)
    campaign.rank()
    return campaign
