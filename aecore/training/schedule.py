"""Learning rate and KL factor as functions of the step: a resumed run needs no scheduler state."""

import math

from aecore.config import Loss, Optim


def learning_rate(optim: Optim, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step `step`, counted from 0 over the whole run.

    It rises linearly during the first `optim.warmup` epochs, then stays constant or falls to 0 along half a cosine
    until the end of the last epoch (Loshchilov and Hutter 2017, eq. 5, without restarts).
    """
    warmup_steps, total_steps = optim.warmup * steps_per_epoch, optim.epochs * steps_per_epoch
    if step < warmup_steps:
        return optim.lr * (step + 1) / (math.floor(warmup_steps) + 1)
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def kl_factor(loss: Loss, step: int, steps_per_epoch: int) -> float:
    """Return the KL factor of step `step`: it rises linearly during `loss.kl_warmup` epochs (Sønderby 2016)."""
    warmup_steps = loss.kl_warmup * steps_per_epoch
    return loss.kl_factor * min(1.0, (step + 1) / (math.floor(warmup_steps) + 1))
