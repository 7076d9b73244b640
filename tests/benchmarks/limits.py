"""Count the FLOP and bytes of a training step, and measure the FLOP/s and bytes/s of the device.

At 96x96x3, z_dim 200, channels 32 64 128 256, a step takes for one image (a multiplication and an addition are two
FLOP; backward is twice forward): convolutions down 2 * 9 * (3*32*48^2 + 32*64*24^2 + 64*128*12^2 +
128*256*6^2) = 67.7 MFLOP, up, with windows of 16, 120.4 MFLOP, linear 2 * 9,216 * (400 + 200) = 11.1 MFLOP; so 199
MFLOP forward and 597 MFLOP a step. The bytes that a step moves if each operation reads its input and writes its
output once: with activations of hidden layers of 138,240 in the encoder and 129,024 in the decoder, 27,648 pixels and
as many logits, forward 1.1 million (convolutions and SiLU), backward 2.2 million (both gradients of a convolution, of
its bias, of SiLU), at 2 bytes in bf16 and 4 in float32; and the loss, in float32, 1.4 MB. So 8 and 15 MB an image.

The device is measured with a large matrix product and a large copy.
"""

import time

import torch

from aecore.config import Recipe
from aecore.model.autoencoder import ImageShape


def peak_flops(device: torch.device) -> float:
    """Return the FLOP/s of a large matrix product, in the precision of a training step."""
    side, kind = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a = torch.rand(side, side, dtype=kind, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def peak_bytes(device: torch.device) -> float:
    """Return the bytes/s that a large copy reads and writes, summed."""
    source = torch.empty(1 << 28 if device.type == "cpu" else 1 << 31, dtype=torch.uint8, device=device)
    target, best = torch.zeros_like(source), 0.0
    for _ in range(5):
        target[0].item()
        started = time.perf_counter()
        target.copy_(source)
        target[0].item()
        best = max(best, 2 * len(source) / (time.perf_counter() - started))
    return best


def step_bytes(shape: ImageShape, recipe: Recipe, width: int) -> float:
    """Return the bytes of one image in a step, with activations of `width` bytes: see above."""
    side, down = shape.padded_size, []
    for channels in recipe.model.channels:
        side //= 2
        down.append(channels * side**2)
    pixels = shape.channels * shape.padded_size**2
    up = [2 * layer for layer in reversed(down[1:])]  # twice the side, half the channels
    hidden = sum(down) + sum(up)
    inputs = outputs = hidden + pixels  # of the convolutions: of each layer, and of the images or the logits
    forward = inputs + outputs + 2 * hidden
    backward = 3 * outputs + 2 * inputs - pixels + 3 * hidden
    return width * (forward + backward) + 50 * pixels


def step_flops(shape: ImageShape, recipe: Recipe) -> float:
    """Return the FLOP of one image in a step, forward and backward: see above."""
    side, in_channels, convolutions = shape.padded_size, shape.channels, 0
    for channels in recipe.model.channels:
        side //= 2
        convolutions += 2 * (9 + 16) * in_channels * channels * side**2
        in_channels = channels
    flat = in_channels * side**2
    forward = convolutions + 2 * flat * recipe.model.z_dim * 3
    return 3.0 * forward
