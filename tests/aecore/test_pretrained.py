"""`aecore.load`: a finished model on numpy arrays, PIL images and paths."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow.fs import FileSystem, LocalFileSystem

import aecore
from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from aecore.latent.interpolation import INTERPOLATIONS, through_neighbours
from aecore.latent.samplers import fit_latent_stats, sample
from aecore.model.autoencoder import to_float
from aecore.pretrained import Images, PretrainedModel
from aecore.training.checkpoint import save_model
from tests.serving.app_server import IMAGE, RECIPE, Z_DIM, make_model, make_stored_points

FACES = np.stack([draw_face(index, 0, IMAGE.size)[0] for index in range(3)])
NETWORK = make_model()
LATENTS = fit_latent_stats(torch.randn(64, Z_DIM, generator=torch.manual_seed(0)), n_components=0)
Z = np.random.default_rng(0).normal(size=(70, Z_DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_model(LocalFileSystem(), str(folder / "model"), NETWORK, RECIPE, LATENTS, {"psnr": 20.0})
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> PretrainedModel:
    return aecore.load(run)


def decoded(z) -> np.ndarray:
    return NETWORK.decode(torch.as_tensor(np.asarray(z))).numpy()


def close(images: np.ndarray, expected: np.ndarray) -> bool:
    """Return true if no pixel differs by more than 1: batches sum in another order."""
    return images.shape == expected.shape and np.abs(images.astype(int) - expected).max() <= 1


def test_a_run_its_model_folder_and_a_uri_load_the_same(run: Path, model):
    for path in (str(run), run / "model", (run / "model").as_uri()):
        np.testing.assert_array_equal(aecore.load(path).decode(Z[:1]), model.decode(Z[:1]))
    assert (model.z_dim, model.image, model.metrics, model.recipe) == (Z_DIM, IMAGE, {"psnr": 20.0}, RECIPE)


def test_a_model_on_s3_is_loaded_by_the_aws_variables(s3: str, model):
    fs, path = FileSystem.from_uri(f"{s3}/runs/a/model")
    save_model(fs, path, NETWORK, RECIPE, LATENTS, {})
    np.testing.assert_array_equal(aecore.load(f"{s3}/runs/a").decode(Z[:1]), model.decode(Z[:1]))


@pytest.mark.parametrize("path", ["nowhere", "~nosuch/a", "models:/zpoint@champion", "gopher://a/b"])
def test_no_model_is_refused_in_one_line(path: str):
    with pytest.raises(ValueError, match=r"it takes a path|name the folder|names no user") as caught:
        aecore.load(path)
    assert "\n" not in str(caught.value)


def test_decode_takes_one_or_many_z_points_of_any_number_type(model):
    images = model.decode(Z)  # more than one batch
    assert (images.dtype, images.shape) == (np.uint8, (70, 16, 16, 3))
    assert close(images, decoded(Z))
    np.testing.assert_array_equal(images.z, Z)
    assert close(model.decode(Z[0].astype(np.float64)), decoded(Z[:1]))
    ones = np.ones(Z_DIM, np.int64)
    assert close(model.decode(ones.tolist()), decoded(np.float32(ones)[None]))


@pytest.mark.parametrize("z", [np.zeros((2, Z_DIM + 1)), np.zeros((0, Z_DIM)), np.full((1, Z_DIM), np.nan)])
def test_decode_refuses_other_shapes_and_nan(model, z):
    with pytest.raises(ValueError, match=r"this model takes|finite"):
        model.decode(z)


def test_encode_takes_arrays_pillow_images_bytes_and_paths(model, tmp_path: Path):
    expected = NETWORK.encode(to_float(torch.from_numpy(FACES))).mean.numpy()
    files = [encode_image(face, "png") for face in FACES]
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    pillow = [Image.fromarray(face) for face in FACES]
    for images in (FACES, FACES / np.float32(255), list(FACES), pillow, files, paths, list(map(str, paths))):
        z = model.encode(images)
        assert (z.dtype, z.shape) == (np.float32, (3, Z_DIM))
        np.testing.assert_allclose(z, expected, atol=1e-5)
    for image in (FACES[0], pillow[0], files[0], paths[0], FACES[0] / 255):
        np.testing.assert_allclose(model.encode(image), expected[:1], atol=1e-5)


def test_sample_draws_and_decodes_z_points(model):
    images = model.sample("gaussian", 4, seed=5, temperature=0.5)
    z = sample("gaussian", 4, LATENTS, 5, temperature=0.5).numpy()
    np.testing.assert_array_equal(images.z, z)
    assert images.seed == 5
    assert close(images, decoded(z))
    again = model.sample("gaussian", np.int64(4), np.uint32(5), temperature=np.float32(0.5))
    np.testing.assert_array_equal(again.z, z)
    assert len(model.interpolate(Z[:2], np.int64(3))) == 3
    with pytest.raises(ValueError, match="unknown sampler 'magic'"):
        model.sample("magic")


def test_sample_takes_the_best_sampler_and_a_random_seed(run: Path):
    images = aecore.load(run).sample(None, 2, None)
    np.testing.assert_array_equal(images.z, aecore.load(run).sample("normal", 2, images.seed).z)
    assert aecore.load(run).sample(seed=None).seed != images.seed
    for distances, best in (({"normal": 2.0, "gaussian": 1.0}, "gaussian"), ({"normal": 1.0, "gmm": 1.0}, "normal")):
        metrics = {f"hog_frechet_{name}": distance for name, distance in distances.items()}
        saved = replace(aecore.load(run).saved, metrics=metrics)
        assert PretrainedModel(saved).best_sampler == best


def test_interpolate_takes_z_points_and_images(model):
    images = model.interpolate(Z[:2], 3)
    np.testing.assert_allclose(images.z, [Z[0], (Z[0] + Z[1]) / 2, Z[1]], atol=1e-6)
    assert close(images, decoded(images.z))
    mixed = model.interpolate([FACES[0], Z[1]], 2)
    np.testing.assert_allclose(mixed.z, [model.encode(FACES[0])[0], Z[1]], atol=1e-5)
    encoded = model.encode(FACES[0]), model.encode(FACES[1])
    np.testing.assert_allclose(model.interpolate(encoded, 2).z, np.concatenate(encoded), atol=1e-6)
    for end in (FACES[:2], [], model.encode(FACES[:2])):
        with pytest.raises(ValueError, match=r"an end takes one image|z-points \(2, 8\) are no image"):
            model.interpolate([FACES[0], end])
    with pytest.raises(ValueError, match="interpolation needs two"):
        model.interpolate(Z[:3])
    with pytest.raises(ValueError, match="unknown path 'winding'"):
        model.interpolate(Z[:2], path="winding")


@pytest.mark.parametrize("path", INTERPOLATIONS)
def test_interpolate_refuses_ends_that_are_no_z_points_of_the_model(tmp_path: Path, path: str):
    save_model(LocalFileSystem(), str(tmp_path), NETWORK, RECIPE, LATENTS, {}, make_stored_points())
    model = aecore.load(tmp_path)
    with pytest.raises(ValueError, match="z holds NaN or infinity"):
        model.interpolate([Z[0], np.full(Z_DIM, np.nan)], path=path)
    with pytest.raises(ValueError, match=rf"z has the shape \(2,\): this model takes \(n, {Z_DIM}\)"):
        model.interpolate([Z[0], Z[1, :2]], path=path)


def test_the_path_neighbours_needs_stored_points(model, tmp_path: Path):
    with pytest.raises(ValueError, match=r"needs stored points: train with points.images"):
        model.interpolate(Z[:2], path="neighbours")
    save_model(LocalFileSystem(), str(tmp_path), NETWORK, RECIPE, LATENTS, {}, make_stored_points())
    with_points = aecore.load(tmp_path)
    assert with_points.points is not None
    assert len(with_points.points) == 100
    expected = through_neighbours(*torch.from_numpy(Z[:2]), 5, make_stored_points().z)
    np.testing.assert_allclose(with_points.interpolate(Z[:2], 5, "neighbours").z, expected, atol=1e-6)


def test_origin_stays_with_slices_and_arithmetic():
    images = Images(np.zeros((3, 2, 2, 3), np.uint8), Z[:3], "zpoint/7", 5)
    assert (images[:2].model, images[:2].seed, images[:2].z) == ("zpoint/7", 5, None)
    assert images.z is not None
    assert ((images.z[0] + images.z[1]) / 2).model == "zpoint/7"
    assert images.z.copy().model == "zpoint/7"


def encode_pillow(mode: str) -> Image.Image:
    return Image.fromarray(FACES[0]).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_pillow_images_are_read_as_their_files_are(model, mode: str):
    image, buffer = encode_pillow(mode), io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_allclose(model.encode(image), model.encode(buffer.getvalue()), atol=0.02)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 5), np.uint8), "holds no images"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no images"),
        (np.full((4, 4, 3), 255.0), r"values in \[0, 1\]"),
        (np.full((4, 4), np.nan), r"values in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), "not int64"),
        ([], "no images"),
        (7, "not int"),
        (b"no image", "not an image"),
    ],
)
def test_what_is_no_image_is_refused(model, images, message: str):
    with pytest.raises(ValueError, match=message):
        model.encode(images)
