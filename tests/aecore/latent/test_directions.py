import pytest
import torch
from safetensors.torch import load, save

from aecore.latent.directions import attribute_direction, attribute_directions, fit_directions, principal_axes


def test_attribute_direction_is_the_slope_of_each_dimension():
    values = torch.tensor([0, 1, 1, 0, 1])
    z = torch.randn(5, 3, generator=torch.manual_seed(0)) + 7
    difference = z[values == 1].mean(0) - z[values == 0].mean(0)
    torch.testing.assert_close(attribute_direction(z, values), difference)
    torch.testing.assert_close(attribute_direction(z, 2 * values + 5), difference / 2)
    z = torch.arange(4.0)[:, None] * torch.tensor([2.0, 0, -1]) + 9
    torch.testing.assert_close(attribute_direction(z, torch.arange(4)), torch.tensor([2.0, 0, -1]))
    assert attribute_direction(z, torch.ones(4)).tolist() == [0, 0, 0]


def test_attribute_direction_passes_over_missing_values():
    z = torch.randn(6, 3, generator=torch.manual_seed(0))
    values = torch.tensor([1.0, torch.nan, 2, 4, torch.inf, 3])
    rows = torch.tensor([0, 2, 3, 5])
    torch.testing.assert_close(attribute_direction(z, values), attribute_direction(z[rows], values[rows]))
    assert attribute_direction(z, torch.full((6,), torch.nan)).tolist() == [0, 0, 0]


def test_principal_axes_are_eigenvectors_by_descending_variance():
    variances, axes = principal_axes(torch.diag(torch.tensor([1.0, 9.0, 4.0])))
    torch.testing.assert_close(variances, torch.tensor([9.0, 4, 1]))
    torch.testing.assert_close(axes.abs(), torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))


def test_attribute_directions_are_regression_slopes():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3.0
    grows = z[:, 0] * 2 + 1
    latents = fit_directions(z, {"grows": grows, "same": torch.ones(2000), "up": (z[:, 1] > 3).int()})
    assert latents["direction.grows"][0].item() == pytest.approx(0.5, rel=1e-4)
    assert not latents["direction.same"].any()
    assert set(attribute_directions(latents)) == {"grows", "up"}  # an attribute that never varied has no direction
    assert set(attribute_directions(latents | {"direction.up": torch.full((6,), torch.nan)})) == {"grows"}
    up = z[:, 1] > 3
    torch.testing.assert_close(
        attribute_directions(latents)["up"], z[up].mean(0) - z[~up].mean(0), atol=1e-4, rtol=1e-4
    )


def test_attribute_directions_of_a_file_are_in_the_order_of_their_names():
    attributes = {f"attribute {i}": torch.arange(4.0) for i in range(9)}
    latents = fit_directions(torch.randn(4, 2), attributes)
    assert list(attribute_directions(load(save(latents)))) == list(attributes)
