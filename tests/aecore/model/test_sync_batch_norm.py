"""Workers as threads, of which one has no images, against torch's batch norm over all images."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn

from aecore.model.sync_batch_norm import SyncBatchNorm

LOCAL_BATCHES = (3, 0, 4)
CHANNELS = 5


@pytest.fixture
def workers(monkeypatch):
    """Make `dist.all_reduce` a sum over threads; return the executor that has one thread for each worker."""
    size, partial_sums = len(LOCAL_BATCHES), {}
    barrier = threading.Barrier(size, timeout=60)

    def all_reduce(tensor):
        partial_sums[threading.get_ident()] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(partial_sums.values()))
        barrier.wait()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: size)
    with ThreadPoolExecutor(size, initializer=barrier.wait) as executor:
        yield executor


def test_workers_equal_one_batch_norm_over_all_images(workers):
    generator = torch.Generator().manual_seed(0)
    images, factors = (torch.randn(7, CHANNELS, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(CHANNELS, generator=generator, dtype=torch.float64) for _ in range(2))

    def train(norm, local_images, local_factors):
        """Return outputs, gradients of the input, weight and bias, and the running statistics after two steps."""
        norm.weight.data, norm.bias.data = weight.clone(), bias.clone()
        for _ in range(2):
            norm.zero_grad()
            leaf = (local_images * 3 + 5).requires_grad_()
            output = norm(leaf)
            (output * local_factors).sum().backward()
        return [output, leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]

    expected = train(nn.BatchNorm2d(CHANNELS).double(), images, factors)
    norms = [SyncBatchNorm(CHANNELS).double() for _ in LOCAL_BATCHES]
    results = list(workers.map(train, norms, images.split(LOCAL_BATCHES), factors.split(LOCAL_BATCHES)))
    for i, (name, combine) in enumerate(
        {"output": torch.cat, "input gradient": torch.cat, "weight gradient": sum, "bias gradient": sum}.items()
    ):
        torch.testing.assert_close(combine([result[i] for result in results]), expected[i], msg=name)
    for result in results:
        torch.testing.assert_close(result[4:], expected[4:])
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 2, 2]


def test_running_statistics_normalise_in_eval_mode(workers):
    norm = SyncBatchNorm(CHANNELS).eval()
    norm.running_mean.fill_(2)
    norm.running_var.fill_(4)
    images = torch.randn(3, CHANNELS, 4, 4)
    torch.testing.assert_close(norm(images), (images - 2) / 2, rtol=1e-4, atol=1e-4)


def test_bf16_images_are_normalised_in_float32(workers):
    images = (torch.randn(7, CHANNELS, 4, 4) + 100).bfloat16()
    outputs = list(workers.map(SyncBatchNorm(CHANNELS), images.split(LOCAL_BATCHES)))
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    expected = nn.BatchNorm2d(CHANNELS)(images.float())
    torch.testing.assert_close(torch.cat(outputs).float(), expected, rtol=1e-2, atol=1e-2)
