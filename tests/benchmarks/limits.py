"""What a training step does and moves, counted by hand, and what the device can do, measured.

At 96x96x3, z_dim 200, channels 32 64 128 256, a step does for one image (multiply and add are
two; forward, and twice that again backward): convolutions down 2 * 9 * (3*32*48^2 + 32*64*24^2 + 64*128*12^2 +
128*256*6^2) = 67.7 MFLOP, up, with windows of 16, 120.4 MFLOP, linear 2 * 9,216 * (400 + 200) = 11.1 MFLOP; so 199
MFLOP forward and 597 MFLOP a step. The bytes that a step moves where each operation reads its input and writes its
output once: with activations of hidden layers of 138,240 in the encoder and 129,024 in the decoder, 27,648 pixels and
as many logits, forward 1.1 million (convolutions and SiLU), backward 2.2 million (both gradients of a convolution, of
its bias, of SiLU), at 2 bytes in bf16 and 4 in float32; and the loss, in float32, 1.4 MB. So 8 and 15 MB an image.

What the device can do is measured: by a large matrix product and a large copy.
"""

import time

import torch

from aecore.config import Recipe
from aecore.model.autoencoder import ImageShape


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product, in the precision that a step multiplies in."""
    side, kind = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a = torch.rand(side, side, dtype=kind, device=device)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def peak_bytes(device: torch.device) -> float:
    """Bytes/s that a large copy reads and writes together."""
    source = torch.empty(1 << 28 if device.type == "cpu" else 1 << 31, dtype=torch.uint8, device=device)
    target, best = torch.zeros_like(source), 0.0
    for _ in range(5):
        target[0].item()
        began = time.perf_counter()
        target.copy_(source)
        target[0].item()
        best = max(best, 2 * len(source) / (time.perf_counter() - began))
    return best


def step_bytes(shape: ImageShape, recipe: Recipe, width: int) -> float:
    """Of one image in a step, with activations of `width` bytes: see above."""
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
    """Of one image in a step: see above; forward and, twice that, backward."""
    side, before, convolutions = shape.padded_size, shape.channels, 0
    for channels in recipe.model.channels:
        side //= 2
        convolutions += 2 * (9 + 16) * before * channels * side**2
        before = channels
    flat = before * side**2
    forward = convolutions + 2 * flat * recipe.model.z_dim * 3
    return 3.0 * forward
