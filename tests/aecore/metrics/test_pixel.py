import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from aecore.metrics.pixel import SlicedWasserstein, _patches, chroma, psnr, ssim
from jobs.tune.selection import ScoredModel, choose_best, pareto_front


def blobs(n, seed):
    """Return images with one bright disc at a random position on a random shade, float (n, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, 1, 1, generator=generator) * 24 + 4
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (((y - centre[:, :1]) ** 2 + (x - centre[:, 1:]) ** 2) < 30).float()
    shade = torch.rand(n, 3, 1, 1, generator=generator) * 0.5
    return (shade + disc * 0.5).clamp(0, 1)


def test_sliced_wasserstein_ranks_sets_by_likeness():
    real, more = blobs(256, 0), blobs(256, 1)
    distance = SlicedWasserstein(real)
    distances = {
        "itself": distance(real),
        "more of it": distance(more),
        "blurred": distance(torch.nn.functional.avg_pool2d(more, 5, 1, 2)),
        "one repeated": distance(more[:1].expand(256, -1, -1, -1)),
        "gray": distance(torch.full_like(real, 0.4)),
        "noise": distance(torch.rand_like(real)),
    }
    assert distances["itself"] < 1e-3
    assert distances["more of it"] < 0.5 * min(distances[k] for k in ("blurred", "one repeated", "gray", "noise"))
    assert distances["gray"] > distances["blurred"]


def test_patches_and_projections_are_those_of_the_paper():
    """Karras 2018: descriptors of 7 x 7 pixels; 128 projections of them suffice here."""
    real = blobs(8, 0)
    assert SlicedWasserstein(real)._levels[0][1].shape == (128, 16_384)
    assert _patches(real, torch.zeros(5, 3, dtype=torch.int64)).shape == (5, 3, 7, 7)


@pytest.mark.parametrize(("size", "levels"), [(16, 1), (31, 1), (32, 2), (64, 3)])
def test_sliced_wasserstein_of_a_shift_in_brightness(size, levels):
    """A shift of each channel by its sd moves a projection by the sum of its direction, N(0, 1), at the coarsest level.

    The mean of its absolute value is sqrt(2 / pi).
    """
    sds = torch.tensor([0.1, 1.0, 5.0])[:, None, None]
    real = sds * torch.randn(64, 3, size >> (levels - 1), size >> (levels - 1)).repeat_interleave(
        2 ** (levels - 1), 2
    ).repeat_interleave(2 ** (levels - 1), 3)
    expected = 1000 * (2 / torch.pi) ** 0.5 / levels
    distance = SlicedWasserstein(real, projections=1000)
    assert distance(real + sds) == pytest.approx(expected, rel=0.08)
    assert distance(real - 2 * sds) == pytest.approx(2 * expected, rel=0.08)


def test_psnr_in_decibels():
    assert psnr(torch.tensor([1.0, 0.01])).tolist() == pytest.approx([0.0, 20.0])


def test_chroma_equals_that_of_jpeg_and_is_zero_for_gray():
    images = blobs(4, 0)
    pixels = (images * 255).round().to(torch.uint8)
    for image, image_chroma in zip(pixels, chroma(pixels / 255.0), strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("YCbCr"))[..., 1:]
        assert image_chroma.permute(1, 2, 0).mul(255).add(128).numpy() == pytest.approx(expected, abs=1)
    gray = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert chroma(gray).abs().max() < 1e-6


def reference_ssim(a, b):
    """Compute SSIM as in Wang 2004 with scipy's Gaussian filter, at positions with the window inside the image."""
    blur = lambda x: gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]  # noqa: E731
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


@pytest.mark.parametrize("size", [16, 33])
def test_ssim_equals_the_reference(size):
    real = torch.nn.functional.interpolate(blobs(6, 0), size=size, mode="bilinear")
    other = (real + 0.1 * torch.randn(real.shape, generator=torch.manual_seed(0))).clamp(0, 1)
    expected = [
        np.mean([reference_ssim(a, b) for a, b in zip(x, y, strict=True)])
        for x, y in zip(real.double().numpy(), other.double().numpy(), strict=True)
    ]
    assert ssim(real, other).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_ranks_images_by_likeness():
    real = blobs(64, 0)
    noise = torch.rand(real.shape, generator=torch.manual_seed(0))
    means = {
        "itself": ssim(real, real).mean(),
        "brighter": ssim((real + 0.1).clamp(0, 1), real).mean(),
        "blurred": ssim(torch.nn.functional.avg_pool2d(real, 5, 1, 2), real).mean(),
        "gray": ssim(torch.full_like(real, 0.5), real).mean(),
        "noise": ssim(noise, real).mean(),
    }
    assert means["itself"] == pytest.approx(1)
    assert means["itself"] > means["brighter"] > means["blurred"] > means["gray"] > means["noise"]
    assert means["noise"].abs() < 0.05


def test_best_model_is_on_the_front_within_the_slack():
    models = [
        ScoredModel("sharp", 25, 90),
        ScoredModel("both", 23, 40),
        ScoredModel("worse", 22, 60),
        ScoredModel("blurred", 18, 10),
    ]
    assert [m.name for m in pareto_front(models)] == ["sharp", "both", "blurred"]
    assert choose_best(models, 3).name == "both"
    assert choose_best(models, 0).name == "sharp"
    assert choose_best(models, 9).name == "blurred"
    with pytest.raises(ValueError, match="no model"):
        choose_best([], 3)
