"""The results of commands as text."""

from jobs.commands.printing import format_train

RESULT = {
    "run": "celeba-vae-1a2b3c4d", "uri": "runs/celeba-vae-1a2b3c4d", "already_finished": False,
    "metrics": {
        "valid_psnr": 21.62, "valid_ssim": 0.634, "valid_kl": 1234.56, "valid_active_units": 198.0,
        "hog_frechet_normal": 1.756, "hog_frechet_gaussian": 1.2, "hog_frechet_gmm": 0.9877,
        "images_per_second": 2345.6, "gpu_hours": 0.01234,
    },
}  # fmt: skip


def test_metrics_of_a_training_have_units():
    lines = format_train(RESULT).splitlines()
    assert [line.split("  ", 1)[0] for line in lines] == [
        "run", "PSNR", "SSIM", "KL", "active units", "distance", "speed", "next",
    ]  # fmt: skip
    assert [line[14:] for line in lines[:-1]] == [
        "celeba-vae-1a2b3c4d at runs/celeba-vae-1a2b3c4d", "21.6 dB of the validation images", "0.63",
        "1,234.6 nats an image", "198", "1.76 of N(0, 1); 0.99 of the fitted mixture of Gaussians",
        "2,346 images/s, 0.0123 GPU hours",
    ]  # fmt: skip


def test_metrics_that_a_training_has_not_are_left_out():
    lines = format_train(RESULT | {"already_finished": True, "metrics": {"core_hours": 2.0}}).splitlines()
    assert [line[14:] for line in lines[:2]] == [f"{RESULT['run']} at {RESULT['uri']}, finished before", "2 core hours"]
    assert len(lines) == 3
