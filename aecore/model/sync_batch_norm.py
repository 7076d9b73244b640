"""Batch norm over the whole global batch. torch's own `SyncBatchNorm` refuses CPUs, on which zpoint is tested."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over all workers; each worker's gradient is the sum of all workers' gradients by it."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        every = mine.clone()
        dist.all_reduce(every)
        return every

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        every = grads[0].contiguous().clone()
        dist.all_reduce(every)
        return every


class SyncBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the mean and variance of all workers' images together (Ioffe 2015; Peng 2018).

    In training forward is a collective. A worker may have no images at all.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        full = input.float() if input.dtype is torch.bfloat16 else input
        total = _total(torch.cat([full.sum((0, 2, 3)), full.new_full((1,), full.numel() / full.shape[1])]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = full - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.momentum
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * count / (count - 1).clamp_min(1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _total(mine: Tensor) -> Tensor:
    every = _Sum.apply(mine)
    assert isinstance(every, Tensor)
    return every
