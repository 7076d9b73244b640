"""The export command: exported files equal the model for any batch, and are whole or absent."""

import json
from io import BytesIO
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

import aecore
from jobs.commands import export as export_module
from jobs.run_store import find_run

pytestmark = pytest.mark.usefixtures("trained_runs")  # `a` and `b`


def network(part: str):
    """Return a function of the model of run `a`, on tensors."""
    model = aecore.load(find_run("a").uri).saved.model
    return (lambda z: torch.sigmoid(model.logits(z))) if part == "decoder" else (lambda x: model.encode(x).mean)


def example(part: str, n: int) -> torch.Tensor:
    return torch.randn(n, 3) if part == "decoder" else torch.rand(n, 3, 16, 16)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_onnx_file_equals_the_model_for_any_batch(zpoint, part: str):
    onnxruntime = pytest.importorskip("onnxruntime")
    result = zpoint("export", "a", "--part", part, "--out", "a.onnx")
    assert result["difference"] < 1e-5
    session = onnxruntime.InferenceSession("a.onnx")
    names = ["z", "images"] if part == "decoder" else ["images", "z"]
    assert [session.get_inputs()[0].name, session.get_outputs()[0].name] == names
    for n in (1, 5, 64):
        batch = example(part, n)
        [output] = session.run(None, {names[0]: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), network(part)(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_pt2_file_equals_the_model_and_holds_its_part_alone(zpoint, part: str):
    zpoint("export", "a", "--format", "pt2", "--part", part, "--out", "a.pt2")
    program = torch.export.load("a.pt2")
    for n in (1, 5):
        batch = example(part, n)
        torch.testing.assert_close(program.module()(batch), network(part)(batch), atol=1e-5, rtol=1e-5)
    unused = ("encoder.", "to_latent") if part == "decoder" else ("decoder.", "from_latent")
    assert not [name for name in program.state_dict if name.startswith(tuple(f"model.{layer}" for layer in unused))]


def test_z_statistics_lie_beside_the_file(zpoint):
    result = zpoint("export", "a", "--format", "pt2", "--out", "folder/faces.pt2")
    assert result["latents"] == str(Path("folder/faces.latents.safetensors").absolute())
    tensors = load_file(result["latents"])
    assert tensors.keys() == aecore.load(find_run("a").uri).latents.keys()
    with safe_open(result["latents"], "np") as file:
        description = json.loads(file.metadata()["zpoint"])
    assert description == {
        "model": "a", "part": "decoder", "input": "z", "output": "images", "z_dim": 3,
        "image": {"size": 16, "channels": 3},
    }  # fmt: skip


def test_both_files_may_go_to_s3(zpoint, s3: str):
    result = zpoint("export", "a", "--format", "pt2", "--out", f"{s3}/models/a.pt2")
    assert (result["out"], result["latents"]) == (f"{s3}/models/a.pt2", f"{s3}/models/a.latents.safetensors")
    client = boto3.client("s3")
    data = {
        key: client.get_object(Bucket=s3[5:], Key=f"models/{key}")["Body"].read()
        for key in ("a.pt2", "a.latents.safetensors")
    }
    z = example("decoder", 2)
    program = torch.export.load(BytesIO(data["a.pt2"])).module()
    torch.testing.assert_close(program(z), network("decoder")(z), atol=1e-5, rtol=1e-5)
    assert load(data["a.latents.safetensors"]).keys() == aecore.load(find_run("a").uri).latents.keys()


def test_an_alias_is_exported_as_its_run_is(zpoint):
    zpoint("promote", "a", "--alias", "best")
    assert zpoint("export", "best", "--format", "pt2", "--out", "best.pt2")["model"] == "zpoint/1"
    zpoint("export", "a", "--format", "pt2", "--out", "a.pt2")
    z = example("decoder", 2)
    one, other = (torch.export.load(name).module()(z) for name in ("best.pt2", "a.pt2"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nosuch", "--out", "a.onnx"], "no run or campaign 'nosuch' under"),
        (["nosuch", "--out", "a.onnx"], "nor has a model the alias 'nosuch'"),
        (["a", "--out", "a.pt2"], "--format onnx writes a .onnx file"),
        (["a", "--format", "pt2", "--out", "a"], "--format pt2 writes a .pt2 file"),
    ],
)
def test_a_mistake_is_refused_in_one_line(refused, argv: list[str], message: str):
    assert message in refused("export", *argv)


def test_onnx_without_its_packages_is_refused(refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    message = refused("export", "a", "--out", "a.onnx")
    assert "needs onnx, onnxscript, onnxruntime: `pip install 'zpoint[export]'`" in message


def test_a_file_that_differs_from_the_model_is_not_written(monkeypatch: pytest.MonkeyPatch):
    load = export_module._load_pt2
    monkeypatch.setattr(export_module, "_load_pt2", lambda data: lambda z: load(data)(z) + 2e-5)
    with pytest.raises(RuntimeError, match="differs from the model by 2e-05, so it was not written"):
        export_module.export("a", "pt2", "decoder", "a.pt2")
    assert not list(Path().glob("a*"))
