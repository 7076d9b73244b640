"""Batch norm over the global batch. torch's own `SyncBatchNorm` refuses CPUs, on which zpoint trains and is tested."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AllReduceSum(torch.autograd.Function):
    """Sum a tensor over all workers. The gradient for each worker's input is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with mean and variance over all workers' images (Ioffe and Szegedy 2015; Peng 2018).

    In training forward is a collective. A worker may have a batch of 0 images.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        x = input.float() if input.dtype is torch.bfloat16 else input
        sums_and_count = torch.cat([x.sum((0, 2, 3)), x.new_full((1,), x.numel() / x.shape[1])])
        total = _all_reduce_sum(sums_and_count)
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean[:, None, None]
        variance = _all_reduce_sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.momentum
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * count / (count - 1).clamp_min(1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _all_reduce_sum(local: Tensor) -> Tensor:
    total = _AllReduceSum.apply(local)
    assert isinstance(total, Tensor)
    return total
