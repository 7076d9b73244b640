"""Learning rate and KL factor as functions of the step, so that a run that goes on needs to remember neither."""

import math

from aecore.config import Loss, Optim


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) where an epoch has `steps`.

    It rises linearly over the first `optim.warmup` epochs, then stays, or falls to 0 along half a cosine at the end
    of the last epoch (Loshchilov 2017, eq. 5, without restarts).
    """
    warm, end = optim.warmup * steps, optim.epochs * steps
    if step < warm:
        return optim.lr * (step + 1) / (math.floor(warm) + 1)
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (end - warm)))


def kl_factor(loss: Loss, step: int, steps: int) -> float:
    """The KL factor of step `step`: it rises linearly over the first `loss.kl_warmup` epochs (Sønderby 2016)."""
    warm = loss.kl_warmup * steps
    return loss.kl_factor * min(1.0, (step + 1) / (math.floor(warm) + 1))
