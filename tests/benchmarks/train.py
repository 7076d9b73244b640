"""Compare the training speed of zpoint, a bare step, a tutorial loop and pythae: images/s of the reference network.

    python tests/benchmarks/train.py [--images 4000] [--size 96] [--batch 64] [--seconds 20] [--rounds 3]
    python tests/benchmarks/train.py --whole 25        # zpoint's own command too, and how its time is spent
    python tests/benchmarks/train.py --images 100000 --batch 512 --epochs 25      # on a GPU: the reference run too
    python tests/benchmarks/train.py --batch 64 --compile on                      # the step compiled, in both

Each round runs all contenders in turn, in this process, for `seconds` each; the best round counts. All but `--whole`
needs aecore alone: it runs without Ray, with torch 2.11 and Python 3.12 too. A contender whose package (torchvision,
pythae) is missing is skipped.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from aecore.config import Recipe, check_recipe  # noqa: E402
from aecore.data.loaders import DeviceLoader, NodeLoader  # noqa: E402
from aecore.data.shuffle import BatchSampler  # noqa: E402
from aecore.data.synthetic_faces import draw_face  # noqa: E402
from aecore.model.autoencoder import ImageShape, build_model, default_device  # noqa: E402
from aecore.model.losses import loss_terms  # noqa: E402
from aecore.training import loop  # noqa: E402
from tests.benchmarks.limits import peak_bytes, peak_flops, step_bytes, step_flops  # noqa: E402

Rate = Callable[[float], float]  # trains for about that many seconds and returns images/s


class Setting:
    """The recipe, the images and the device of all contenders."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = default_device()
        self.recipe: Recipe = check_recipe({
            "model": {"z_dim": 200},
            "optim": {"batch": args.batch, "epochs": 10_000, "precision": args.precision, "compile": args.compile},
        })  # fmt: skip
        faces = [draw_face(0, index, args.size)[0] for index in range(min(args.images, 500))]  # 6 ms each
        self.images = np.stack([faces[index % len(faces)] for index in range(args.images)])
        self.shape = ImageShape(args.size, 3)
        loop.configure_cuda(self.device, self.recipe.optim.deterministic)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def bare_step(setting: Setting, channels: int = 3) -> Rate:
    """Run forward, loss, backward and fused Adam on one random batch on the device, and nothing else.

    With `--compile on`, network and loss are compiled, without a CUDA graph. With more than 3 `channels` the input of
    the first convolution is padded with zeros: tensor cores take multiples of 4 or 8.
    """
    batch, device = setting.recipe.optim.batch, setting.device
    model = build_model(setting.recipe, setting.shape)
    if channels > 3:
        first = torch.nn.Conv2d(channels, setting.recipe.model.channels[0], 3, stride=2, padding=1)
        model.encoder[0] = first.to(memory_format=torch.channels_last)
        model.encoder.register_forward_pre_hook(lambda _, x: F.pad(x[0], (0, 0, 0, 0, 0, channels - 3)))
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    size = setting.shape.size
    images = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    objective, kl_factor = loop.Objective(model, setting.recipe), torch.ones((), device=device)
    if setting.recipe.optim.compile == "on":
        objective.compile(dynamic=False)

    def step() -> int:
        loss, _, _ = objective(images, images, torch.randn(batch, 200, device=device), kl_factor)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        return batch

    return timed(setting, step)


def zpoint_fit(setting: Setting) -> Rate:
    """Run zpoint's loop in this process, as `zpoint train ... scale.workers=0` does between two epochs."""
    # Evaluation is measured by --whole: here the validation split is 8 images, and epochs seldom decode samples.
    run = make_run(setting, setting.recipe, num_valid=8)
    steps = iter(loop.fit(run))

    def step() -> int:
        before = run.state.samples
        while run.state.samples == before:
            next(steps)
        return run.state.samples - before

    return timed(setting, step)


def whole_loop(setting: Setting, epochs: int) -> str:
    """Run `epochs` epochs by aecore alone, from the first step on, with validation and decoded samples."""
    recipe = setting.recipe.model_copy(update={"optim": setting.recipe.optim.model_copy(update={"epochs": epochs})})
    run = make_run(setting, recipe, num_valid=len(setting.images) // 20)
    setting.wait()
    start, metrics = time.perf_counter(), {}
    for event in loop.fit(run):
        if isinstance(event, loop.EpochEnd):
            metrics = event.metrics
    seconds = time.perf_counter() - start
    count = epochs * len(setting.images)
    memory_mb = metrics.get("gpu_memory_mb", metrics["memory_mb"])
    return (
        f"{epochs} epochs of {len(setting.images):,} images: {seconds:.1f} s, {count / seconds:,.0f} images/s; "
        f"valid PSNR {metrics['valid_psnr']:.1f} dB, memory {memory_mb:,.0f} MB"
    )


def make_run(setting: Setting, recipe: Recipe, num_valid: int) -> loop.TrainingRun:
    model = build_model(recipe, setting.shape).to(setting.device)
    sampler, loader_class = (
        BatchSampler(0, recipe.optim.batch),
        DeviceLoader if setting.device.type == "cuda" else NodeLoader,
    )
    train = loader_class(setting.images, sampler, setting.device)
    valid = NodeLoader(setting.images[:num_valid], sampler, setting.device)
    return loop.TrainingRun(recipe, model, train, valid)


def tutorial(setting: Setting) -> Rate:
    """Train with ImageFolder, DataLoader, Adam and loss.item() at each step, as tutorials do."""
    import torchvision.transforms as transforms
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    folder = Path(tempfile.mkdtemp(prefix="zpoint-bench-"))
    write_folder(setting.images, folder / "faces")
    data = ImageFolder(str(folder), transforms.ToTensor())
    loader = DataLoader(data, setting.recipe.optim.batch, shuffle=True, num_workers=2, persistent_workers=True)
    model = build_model(setting.recipe, setting.shape).to(setting.device).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches() -> Iterator[int]:
        while True:
            for images, _ in loader:
                images = images.to(setting.device)
                logits, latent = model(images, torch.randn(len(images), 200, device=setting.device))
                recon, kl, _ = loss_terms(setting.recipe.loss, logits, latent, images)
                loss = (recon + kl).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                yield len(images)

    steps = batches()
    return timed(setting, lambda: next(steps))


def pythae(setting: Setting) -> Rate:
    """Train the same network with pythae's VAE and trainer, with the images as floats in memory."""
    os.environ["TQDM_DISABLE"] = "1"
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    net = build_model(setting.recipe, setting.shape).to(memory_format=torch.contiguous_format)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.to_latent = net.encoder, net.to_latent

        def forward(self, x: torch.Tensor) -> ModelOutput:
            mean, logvar = self.to_latent(self.layers(x)).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.from_latent = net.decoder, net.from_latent

        def forward(self, z: torch.Tensor) -> ModelOutput:
            grid = self.from_latent(z).view(
                len(z), 256, setting.shape.padded_size // 16, setting.shape.padded_size // 16
            )
            return ModelOutput(reconstruction=self.layers(grid).sigmoid())

    size = setting.shape.size
    config = VAEConfig(input_dim=(3, size, size), latent_dim=200, reconstruction_loss="bce")
    model = VAE(model_config=config, encoder=Encoder(), decoder=Decoder())
    images = torch.from_numpy(setting.images[:2_000]).permute(0, 3, 1, 2).float() / 255
    data = BaseDataset(images, torch.zeros(len(images)))
    options = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(prefix="zpoint-bench-"), learning_rate=1e-3,
        per_device_train_batch_size=setting.recipe.optim.batch, train_dataloader_num_workers=2,
    )  # fmt: skip
    trainer = BaseTrainer(model=model, train_dataset=data, training_config=options)
    trainer.prepare_training()

    def epoch() -> int:
        trainer.train_step(1)
        return len(images)

    return timed(setting, epoch)


def write_folder(images: np.ndarray, folder: Path) -> None:
    import simplejpeg

    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / f"{index:06d}.jpg").write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95))


def timed(setting: Setting, step: Callable[[], int]) -> Rate:
    """Return a Rate that repeats `step`, which returns its number of images, after five warm-up steps."""
    for _ in range(5):
        step()

    def rate(seconds: float) -> float:
        setting.wait()
        start, num_images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            num_images += step()
        setting.wait()
        return num_images / (time.perf_counter() - start)

    return rate


def whole_runs(args: argparse.Namespace) -> list[str]:
    """Run `zpoint train` with one worker and with two: images/s, and the time not spent on steps."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as home:
        environment = os.environ | {"ZPOINT_HOME": home, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-m", "jobs.cli"]
        data = f"{home}/faces"
        count = -(-args.images * 5 // 4)
        ingest = ["ingest", "generated", "--size", str(args.size), "--limit", str(count), "--to", data]
        subprocess.run([*command, *ingest], env=environment, check=True)
        for workers in (1, 2):
            name = f"bench-{workers}"
            recipe = [f"name={name}", f"data.uri={data}", f"optim.batch={args.batch}", f"optim.epochs={args.whole}"]
            recipe += [f"scale.workers={workers}"]
            subprocess.run([*command, "train", "celeba-vae", *recipe], env=environment, check=True)
            lines.append(time_fractions(Path(home, "runs", name), workers))
    return lines


def time_fractions(run: Path, workers: int) -> str:
    """Return images/s of a finished run's median epoch, and the fraction of its time not spent on steps."""
    epochs = [json.loads(path.read_text())["metrics"] for path in sorted(run.glob("epochs/*.json"))]
    first = (run / "epochs/epoch-001.json").stat().st_mtime
    seconds = (run / "model/config.json").stat().st_mtime - first
    count = round(epochs[0]["epoch_seconds"] * epochs[0]["images_per_second"])
    steps = sum(count / epoch["images_per_second"] for epoch in epochs[1:])
    median = sorted(epoch["images_per_second"] for epoch in epochs)[len(epochs) // 2]
    data_wait = sum(epoch["data_wait"] for epoch in epochs) / len(epochs)
    return (
        f"| zpoint train, workers: {workers}, {len(epochs)} epochs of {count:,} images | {median:,.0f} (median epoch) "
        f"| all but steps {1 - steps / seconds:.1%} of the time, waiting for data {data_wait:.1%} |"
    )


OWN_CONTENDERS = {
    "bare step, resident random batch": bare_step,
    "zpoint's loop": zpoint_fit,
}
PADDED_CONTENDERS = {
    "bare step, input padded to 4 channels": partial(bare_step, channels=4),
    "bare step, input padded to 8 channels": partial(bare_step, channels=8),
}
PEERS = {
    "ImageFolder + DataLoader loop": tutorial,
    "pythae's trainer": pythae,
}


def main() -> None:
    """Print a table for README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="other loops too")
    parser.add_argument("--padded", action="store_true", help="bare steps with a padded input too")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="off", choices=["off", "on", "auto"])
    parser.add_argument("--whole", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--epochs", type=int, default=0, help="of a whole run by aecore alone")
    args = parser.parse_args()
    setting, contenders = Setting(args), {}
    makers = OWN_CONTENDERS | (PADDED_CONTENDERS if args.padded else {}) | (PEERS if args.peers else {})
    for name, make_rate in makers.items():
        try:
            contenders[name] = make_rate(setting)
        except ImportError as error:
            print(f"skipped: {name} ({error})", file=sys.stderr)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, rate in contenders.items():
            rates[name].append(rate(args.seconds))
            print(f"{name}: {rates[name][-1]:,.0f}/s", file=sys.stderr, flush=True)
    machine = torch.cuda.get_device_name() if setting.device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    print(f"{date.today()}, {machine}, {threads} threads, torch {torch.__version__}, batch {args.batch}")
    print("| contender | images/s, best round | of the bare step, median of the rounds |\n|---|---|---|")
    bare_rates = next(iter(rates.values()))
    for name, round_rates in rates.items():
        ratios = sorted(rate / bare for rate, bare in zip(round_rates, bare_rates, strict=True))
        print(f"| {name} | {max(round_rates):,.0f} | {ratios[len(ratios) // 2]:.2f} |")
    if args.epochs:
        print(whole_loop(setting, args.epochs))
    if args.whole:
        print("\n".join(whole_runs(args)))
    peak, flops = peak_flops(setting.device), step_flops(setting.shape, setting.recipe)
    bandwidth = peak_bytes(setting.device)
    bytes_per_value = 2 if setting.device.type == "cuda" and args.precision != "float32" else 4
    bytes_moved = step_bytes(setting.shape, setting.recipe, bytes_per_value)
    print(
        f"\na step takes {flops / 1e6:,.0f} MFLOP per image and moves {bytes_moved / 1e6:,.1f} MB; the bare step "
        f"reaches {max(bare_rates) * flops / peak:.0%} of the {peak / 1e9:,.0f} GFLOP/s of a matrix product and "
        f"{max(bare_rates) * bytes_moved / bandwidth:.0%} of the {bandwidth / 1e9:,.0f} GB/s of a copy"
    )


if __name__ == "__main__":
    main()
