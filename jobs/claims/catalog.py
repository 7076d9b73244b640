"""List the claims about AE and VAE latent spaces, the rule of each, and the runs that it is checked on.

Add a claim: write the function that checks it in `jobs.claims.verdicts` and list it in CLAIMS; list the runs that it
needs in RUNS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jobs.claims import verdicts
from jobs.claims.verdicts import Runs, Verdict

# dataset: the sources of `zpoint ingest` that have its images; the others, such as a folder, may have any
DATASETS = {
    "faces": ("celeba", "generated"), "mnist": ("mnist",), "fashion": ("fashion_mnist",), "cifar10": ("cifar10",),
}  # fmt: skip
BATCH_NORM_BATCH = "optim.batch=32"  # batch norm needs more images than the small batches that suit small datasets
# run: its recipe, and the overrides
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ae": ("celeba-ae", ()),
    "ae, z_dim 64": ("celeba-ae", ("model.z_dim=64",)),
    "ae, z_dim 512": ("celeba-ae", ("model.z_dim=512",)),
    "near-ae": ("celeba-near-ae", (BATCH_NORM_BATCH,)),
    "vae": ("celeba-vae", (BATCH_NORM_BATCH,)),
    # They differ only in kl_factor. Without batch norm, since with it a near-AE needs more epochs than a VAE.
    "kl_factor 1e-6": ("celeba-ae", ("loss.kl_factor=1e-6",)),
    "kl_factor 1": ("celeba-ae", ("loss.kl_factor=1",)),
    "kl_factor 6": ("celeba-ae", ("loss.kl_factor=6",)),
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
    """A claim, its rule in words, and the function that checks it on the runs `run_names` of one dataset."""

    name: str
    dataset: str
    text: str
    rule: str
    run_names: tuple[str, ...]
    check: Callable[[Runs], Verdict]


# The limits of `verdicts.NEAR_REAL` and of `HALF` for real images.
AS_OFTEN_AS_REAL = "at least 0.9 times as often as real images, of which at least half show one"
# The rule of `verdicts.check_task`.
TASK_RULE = (
    "the PSNR of the outputs is 0.5 dB or more above that of the inputs and above that of the mean training image, and "
    f"outputs show a face {AS_OFTEN_AS_REAL}"
)

CLAIMS = (
    Claim(
        "reconstruct", "faces", "A plain AE reconstructs held-out faces.",
        "the PSNR is 0.5 dB or more above that of the mean training image, and reconstructions show a face "
        f"{AS_OFTEN_AS_REAL}",
        ("ae",), verdicts.check_reconstruction,
    ),
    Claim(
        "denoise", "faces", "A plain AE denoises held-out faces that noise nearly hides.",
        TASK_RULE, ("denoise",), verdicts.check_task,
    ),
    Claim(
        "drop", "faces", "A plain AE restores held-out faces of which four pixels in five are dropped.",
        TASK_RULE, ("drop",), verdicts.check_task,
    ),
    Claim(
        "recolor", "faces", "A plain AE colours gray images of held-out faces.",
        "the PSNR of the colours (Cb, Cr) is 0.5 dB or more above that of the gray image and above that of the mean "
        f"training image, and outputs show a face {AS_OFTEN_AS_REAL}",
        ("recolor",), verdicts.check_recolor,
    ),
    Claim(
        "ae-random", "faces", "Random points of an AE's latent space decode to no face.",
        "at most 10 % of the images from N(0, 1), and from each cube of boundary 0.5 to 20, show a face, and at least "
        "half of the real images do",
        ("near-ae",), verdicts.check_ae_random_points,
    ),
    Claim(
        "vae-origin", "faces", "Random points near the origin of a VAE's latent space decode to faces.",
        "more than half of the images from the cube of boundary 1 show a face, and significantly fewer from that of "
        "boundary 20",
        ("vae",), verdicts.check_vae_near_origin,
    ),
    Claim(
        "vae-sphere", "faces", "A VAE's points on the sphere of radius sqrt(z_dim) decode to faces.",
        "more than half of the images from this sphere show a face", ("vae",), verdicts.check_vae_sphere,
    ),
    Claim(
        "vae-radius", "faces", "A VAE's z-points lie about sqrt(z_dim) from the origin.",
        "their mean radius is within 10 % of sqrt(z_dim)", ("vae", "near-ae"), verdicts.check_vae_radius,
    ),
    Claim(
        "one-region", "faces", "An AE's z-points form one region: off-centre, correlated, near-normal.",
        "they are one connected part and cluster no better than one Gaussian; their mean is further from the origin "
        "than a tenth of the mean radius; the mean |correlation| is over 0.05 and over twice that of independent "
        "dimensions; the core is less than 0.03 from normal",
        ("near-ae",), verdicts.check_one_region,
    ),
    Claim(
        "fitted", "faces", "Points of a Gaussian fitted to an AE's z-points decode to faces.",
        f"images from the full Gaussian show a face {AS_OFTEN_AS_REAL}",
        ("near-ae",), verdicts.check_fitted_gaussian,
    ),
    Claim(
        "kl-factor", "faces", "The KL factor trades sharpness for meaningful random points.",
        "the PSNR falls by 0.1 dB or more with each larger kl_factor, and N(0, 1) shows significantly more faces with "
        "the largest than with the smallest",
        ("kl_factor 1e-6", "kl_factor 1", "kl_factor 6"), verdicts.check_kl_factor,
    ),
    Claim(
        "z-dim-faces", "faces", "Faces need a z_dim of 200 or more.",
        "from 64 to 200 the PSNR rises by 0.5 dB or more", ("ae, z_dim 64", "ae", "ae, z_dim 512"),
        partial(verdicts.check_z_dim, z_dim=200, is_sufficient=False),
    ),
    Claim(
        "z-dim-mnist", "mnist", "For MNIST a z_dim of 12 is enough.",
        "the PSNR rises by 0.5 dB or more from 2 to 12, and by less from 12 to 32",
        ("mnist-z2", "mnist-z4", "mnist-z12", "mnist-z32"),
        partial(verdicts.check_z_dim, z_dim=12, is_sufficient=True),
    ),
    Claim(
        "z-dim-fashion", "fashion", "Fashion-MNIST needs a z_dim of 20 to 40.",
        "the PSNR rises by 0.5 dB or more from 8 to 32, and by less from 32 to 64",
        ("fashion-z8", "fashion-z32", "fashion-z64"),
        partial(verdicts.check_z_dim, z_dim=32, is_sufficient=True),
    ),
    Claim(
        "recolor-cifar10", "cifar10", "An AE colours gray CIFAR-10 images.",
        "the PSNR of the colours (Cb, Cr) is 0.5 dB or more above that of the gray image and above that of the mean "
        f"training image, and outputs show a class {AS_OFTEN_AS_REAL}",
        ("cifar10-recolor",), verdicts.check_recolor,
    ),
)  # fmt: skip
