"""z-points and images keep their origin, and z-points of two versions are not mixed."""

import copy
import operator
import pickle

import numpy as np
import pytest

from aecore.latent.arrays import Images, ZPoints

Z = np.arange(6, dtype=np.float32).reshape(3, 2)
OLD, NEW = ZPoints(Z, "zpoint/7"), ZPoints(Z, "zpoint/8")


@pytest.mark.parametrize(
    "mix", [operator.add, operator.isub, lambda a, b: np.stack([a, b]), lambda a, b: np.concatenate([a[:1], b])]
)
def test_z_points_of_two_versions_do_not_mix(mix):
    with pytest.raises(ValueError, match="z-points of zpoint/7 and zpoint/8 do not mix: encode all by one version"):
        mix(OLD.copy(), NEW)


@pytest.mark.parametrize(
    "join",
    [
        lambda z: z + Z, lambda z: Z + z, lambda z: 2 * z - z, lambda z: np.concatenate([z, Z]),
        lambda z: np.vstack([Z[0], z[0]]), lambda z: z.mean(0), lambda z: z @ np.eye(2), copy.deepcopy,
        lambda z: np.stack([z]), lambda z: pickle.loads(pickle.dumps(z)), lambda z: z[:2] + ZPoints(Z[:2]),
        lambda z: np.divmod(z, 2)[1],
    ],
)  # fmt: skip
def test_version_stays_with_what_is_made_of_z_points(join):
    made, expected = join(OLD), join(Z)
    assert (type(made), made.model) == (ZPoints, "zpoint/7")
    np.testing.assert_array_equal(np.asarray(made), expected)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda i: i.copy(), lambda i: pickle.loads(pickle.dumps(i))]
)
def test_copies_of_images_keep_z_seed_and_input(copied):
    images = Images(np.zeros((3, 2, 2, 3), np.uint8), Z, "zpoint/7", 5, np.ones((3, 2, 2, 3), np.uint8))
    twin = copied(images)
    assert (twin.model, twin.seed, twin.z.model) == ("zpoint/7", 5, "zpoint/7")
    for one, other in ((twin, images), (twin.z, images.z), (twin.corrupted, images.corrupted)):
        np.testing.assert_array_equal(one, other)
