"""What is claimed of AE and VAE latent spaces, on which runs each claim is put to the test, and by what rule it holds.

Add a claim by writing the function that judges it in `jobs.claims.verdicts` and naming it in CLAIMS; a run that it
needs is named in RUNS.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.claims import verdicts
from jobs.claims.verdicts import Runs, Verdict

SETS = ("faces", "mnist", "fashion", "cifar10")  # what the claims are on; a claim's runs are trained on one of them
NORMED = "optim.batch=32"  # of batch norm, which the small batches of small sets do not suit
# a run's name: its recipe, and what is changed of it
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ae": ("celeba-ae", ()),
    "ae, z_dim 64": ("celeba-ae", ("model.z_dim=64",)),
    "ae, z_dim 512": ("celeba-ae", ("model.z_dim=512",)),
    "near-ae": ("celeba-near-ae", (NORMED,)),
    "vae": ("celeba-vae", (NORMED,)),
    "vae, kl_factor 1": ("celeba-vae", (NORMED, "loss.kl_factor=1")),
    "vae, kl_factor 1e-6": ("celeba-vae", (NORMED, "loss.kl_factor=1e-6")),  # a near-AE that is as those in all else
    "denoise": ("celeba-denoise", ()),
    "drop": ("celeba-drop", ()),
    "recolor": ("celeba-recolor", ()),
    "mnist-z2": ("mnist-z2", ()),
    "mnist-z4": ("mnist-z4", ()),
    "mnist-z12": ("mnist-z12", ()),
    "mnist-z32": ("mnist-z12", ("model.z_dim=32",)),
    "fashion-z8": ("fashion-z32", ("model.z_dim=8",)),
    "fashion-z32": ("fashion-z32", ()),
    "fashion-z64": ("fashion-z32", ("model.z_dim=64",)),
    "cifar10-recolor": ("cifar10-recolor", ()),
}


@dataclass(frozen=True)
class Claim:
    """`name` is what the command calls it; `holds_if` says what `judge` asks of the runs named in `runs`."""

    name: str
    on: str
    text: str
    holds_if: str
    runs: tuple[str, ...]
    judge: Callable[[Runs], Verdict]


CLAIMS = (
    Claim(
        "reconstruct", "faces", "A plain AE reconstructs unseen faces.",
        "reconstructions show a face at least 0.9 times as often as real images do", ("ae",), verdicts.reconstructs,
    ),
    Claim(
        "denoise", "faces", "A plain AE denoises unseen faces that noise all but hides.",
        "the PSNR rises by 0.5 dB or more, and outputs show a face at least 0.9 times as often as real images do",
        ("denoise",), verdicts.does_its_task("denoise"),
    ),
    Claim(
        "drop", "faces", "A plain AE restores unseen faces of which four pixels in five are dropped.",
        "as for denoise", ("drop",), verdicts.does_its_task("drop"),
    ),
    Claim(
        "recolor", "faces", "A plain AE colours gray pictures of unseen faces.",
        "the PSNR of the colours (Cb, Cr) is 0.5 dB or more above that of gray and above that of the training images' "
        "mean, and outputs show a face at least 0.9 times as often as real images do",
        ("recolor",), verdicts.colours("recolor"),
    ),
    Claim(
        "ae-random", "faces", "Random points of an AE's latent space decode to no face.",
        "N(0, 1) and every cube of boundary 0.5 to 20 show a face in 10 % of the pictures at most",
        ("near-ae",), verdicts.ae_random_points,
    ),
    Claim(
        "vae-origin", "faces", "Random points near the origin of a VAE's latent space decode to faces.",
        "the cube of boundary 1 shows a face in more than half of the pictures, that of boundary 20 in fewer of them",
        ("vae",), verdicts.vae_near_the_origin,
    ),
    Claim(
        "vae-sphere", "faces", "So do a VAE's points on the sphere of radius sqrt(z_dim).",
        "more than half of the pictures there show a face", ("vae",), verdicts.vae_on_the_sphere,
    ),
    Claim(
        "vae-radius", "faces", "A VAE's z-points lie about sqrt(z_dim) from the origin.",
        "their mean radius is within 10 % of it", ("vae", "near-ae"), verdicts.vae_radius,
    ),
    Claim(
        "one-region", "faces", "An AE's z-points form one region: off-centre, correlated, near-normal.",
        "they hang together and are no better divided than one Gaussian; the centre lies further out than a tenth of "
        "the mean radius; correlations are over twice those of independent components; the core is under 0.03 from "
        "normal",
        ("near-ae",), verdicts.one_region,
    ),
    Claim(
        "fitted", "faces", "So points of a Gaussian that is fitted to an AE's z-points decode to faces.",
        "pictures from the full Gaussian show a face at least 0.9 times as often as real images do",
        ("near-ae",), verdicts.fit_rescues_the_ae,
    ),
    Claim(
        "kl-factor", "faces", "The KL factor trades sharpness for meaningful random points.",
        "with each step up the PSNR falls, and from the least to the greatest N(0, 1) shows more faces, beyond chance",
        ("vae, kl_factor 1e-6", "vae, kl_factor 1", "vae"), verdicts.kl_factor_trades,
    ),
    Claim(
        "z-dim-faces", "faces", "Faces want a z_dim of 200 or more.",
        "from 64 to 200 the PSNR rises by 0.5 dB or more", ("ae, z_dim 64", "ae", "ae, z_dim 512"),
        verdicts.z_dim(200, no_more=False),
    ),
    Claim(
        "z-dim-mnist", "mnist", "For MNIST a z_dim of 12 is enough.",
        "the PSNR rises by 0.5 dB or more from 2 to 12, and by less from 12 to 32",
        ("mnist-z2", "mnist-z4", "mnist-z12", "mnist-z32"), verdicts.z_dim(12, no_more=True),
    ),
    Claim(
        "z-dim-fashion", "fashion", "Fashion-MNIST wants a z_dim of 20 to 40.",
        "the PSNR rises by 0.5 dB or more from 8 to 32, and by less from 32 to 64",
        ("fashion-z8", "fashion-z32", "fashion-z64"), verdicts.z_dim(32, no_more=True),
    ),
    Claim(
        "recolor-cifar10", "cifar10", "An AE colours gray CIFAR-10 pictures.",
        "as for recolor, and outputs show a class at least 0.9 times as often as real images do",
        ("cifar10-recolor",), verdicts.colours("cifar10-recolor"),
    ),
)  # fmt: skip
