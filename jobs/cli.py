"""The `zpoint` command: one parser and one function a command; the jobs are in their own modules.

A user's mistake (ValueError) ends in one line and exit status 2, a failed job in status 1. Heavy packages are imported
by the command's function only, so that `--help` and usage errors are quick.
"""

import argparse
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from functools import partial
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from aecore.errors import one_line
from cluster.network import ENDPOINT_URL, configure_libraries
from cluster.settings import expand_user, hide_credentials, settings
from cluster.tracking import describe_full_database
from jobs.commands import printing

Result = dict[str, Any]
RESUMABLE = ("demo", "ingest", "train", "tune", "study", "claims")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"zpoint: error: {message} (see `{self.prog} --help`)\n")


class SafeFormatter(logging.Formatter):
    """Formats log lines without the credentials in them."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_credentials(super().format(record))


def main(argv: list[str] | None = None) -> None:
    configure_libraries()
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    args, extra = parser.parse_known_args(words or ["--help"])
    # argparse stops collecting words at the first option; a later one is a run of `study`, or with a `=` an override.
    for word in extra:
        if word.startswith("-") or not ("runs" in args or ("overrides" in args and "=" in word)):
            parser.error(f"unknown argument {word}")
        (args.runs if "runs" in args else args.overrides).append(word)
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("zpoint: %(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    args.stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the result alone
            result = args.run(args)
    except KeyboardInterrupt:
        resume = "; run the same command again to resume" if args.command in RESUMABLE else ""
        _exit(f"interrupted{resume}", 130)
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        _exit(f"error: {one_line(error, limit=None)}", 2)
    except Exception as error:
        if settings().debug:
            print(hide_credentials(traceback.format_exc()), file=sys.stderr)
        _exit(f"failed: {describe_full_database(error) or one_line(error, limit=None)}", 1)
    if args.json:  # credentials are hidden before the text is encoded, which escapes its quotes and line breaks
        _print(args.stdout, json.dumps(_without_credentials(result)))
    elif text := args.format(result):
        _print(args.stdout, hide_credentials(text))
    sys.exit(result.get("exit_status", 0))


def _without_credentials(value: Any) -> Any:
    """Return a result with credentials hidden in its strings; what JSON has no type for becomes a string."""
    if isinstance(value, dict):
        return {key: _without_credentials(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(entry) for entry in value]
    return value if isinstance(value, int | float | None) else hide_credentials(str(value))


def _print(stdout: TextIO, text: str, end: str = "\n") -> None:
    """Print to stdout at once; exit with status 1 if its reader, as `head` does, has closed the pipe."""
    try:
        print(text, end=end, file=stdout, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # else Python's exit flushes the rest and fails
        sys.exit(1)


def make_parser() -> Parser:
    """Return the parser of all commands; a parsed command has its function as `run` and its printer as `format`."""
    parser = Parser(
        prog="zpoint", description="Train autoencoders on a Ray cluster, search their settings, and serve the best one."
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show zpoint's version and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add_command(
        name: str, run: Callable[[Any], Result], help: str, format: Callable[[Result], str] = printing.format_fields
    ) -> Any:
        command = subparsers.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        command.set_defaults(run=run, format=format)
        return command

    for add_commands in (_add_data, _add_training, _add_serving, _add_cluster):
        add_commands(add_command)
    return parser


def _add_data(add_command: Callable[..., Any]) -> None:
    demo = add_command("demo", _demo, "ingest, train, tune, promote and serve on generated faces", lambda r: r["text"])
    demo.add_argument("--quick", action="store_true", help="use less data and fewer epochs: a third of the time")

    ingest = add_command("ingest", _ingest, "convert images into shards and a manifest", printing.format_ingest)
    # The job checks dataset, encoding and split: argparse's choices would repeat its lists.
    ingest.add_argument(
        "dataset", metavar="DATASET", help="celeba, mnist, fashion_mnist, cifar10, folder, parquet or generated"
    )
    ingest.add_argument(
        "--source", type=_path, help="folder or zip of the images, local or on S3 (omit it for generated)"
    )
    ingest.add_argument(
        "--to", type=_path, required=True, metavar="URI", help="new dataset: a path or s3://bucket/prefix"
    )
    ingest.add_argument("--size", type=_positive_int, help="pixels a side (default: the dataset's own)")
    ingest.add_argument(
        "--crop", default="square", help="square, a fraction of it (0.8), or left,top,width,height (default: square)"
    )
    ingest.add_argument("--encoding", help="jpeg, png or raw (default: png up to 32 pixels a side, jpeg above)")
    ingest.add_argument("--quality", type=_positive_int, help="jpeg quality, 1 to 100 (default: 95)")
    ingest.add_argument("--split", help="official, identity or hash (default: official if there is one, else hash)")
    ingest.add_argument("--download", action="store_true", help="download mnist, fashion_mnist or cifar10 to --source")
    ingest.add_argument("--limit", type=_positive_int, help="maximum number of images (default: all)")
    ingest.add_argument("--shard-rows", type=_positive_int, default=1024, help="images per shard (default: 1024)")
    ingest.add_argument("--max-bad", type=int, default=0, help="number of bad images to skip (default: 0)")
    ingest.add_argument("--seed", type=int, default=0, help="seed of the generated faces (default: 0)")

    data = add_command("data", _data, "show a dataset or verify its shards", lambda r: r["text"])
    data.add_argument(
        "action", choices=("show", "verify"), help="show its statistics and sample images, or check every shard"
    )
    data.add_argument("uri", type=_path, metavar="URI", help="dataset: a path or s3://bucket/prefix")
    data.add_argument(
        "--out", type=_path, default=".",
        help="folder or s3:// URI for contact-sheet.png and mean-image.png of show (default: .)",
    )  # fmt: skip


def _add_training(add_command: Callable[..., Any]) -> None:
    train = add_command("train", _train, "train a recipe", printing.format_train)
    tune = add_command("tune", _tune, "search values of recipe keys for the best decoder", printing.format_campaign)
    for command in (train, tune):
        command.add_argument("recipe", type=_path, help="name of a recipe in jobs/recipes, or a YAML file")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="recipe keys to override")
    train.add_argument("--fresh", action="store_true", help="delete the earlier run of this name and start over")

    campaign = add_command(
        "campaign",
        _campaign,
        "show a campaign's trials and write its report, or list the campaigns",
        lambda r: r["text"],
    )
    campaign.add_argument("name", nargs="?", metavar="CAMPAIGN", help="name of a campaign (omit it for the list)")
    campaign.add_argument(
        "--out", type=_path, help="folder or s3:// URI of the report (default: ZPOINT_HOME/campaigns/CAMPAIGN)"
    )

    study = add_command(
        "study", _study, "measure which z-points of finished runs decode to meaningful images", printing.format_study
    )
    study.add_argument("runs", nargs="+", metavar="RUN", help="names of runs, or of campaigns: the runs of its front")
    study.add_argument("--out", type=_path, help="folder or s3:// URI of the report (default: in ZPOINT_HOME/studies)")
    study.add_argument(
        "--limit", type=_positive_int, default=6_000, help="maximum number of training images to encode (default: 6000)"
    )
    _add_num_samples(study)
    study.add_argument(
        "--inception", type=_path, metavar="FILE", help="weights for FID, KID, precision and recall (default: none)"
    )
    study.add_argument("--fresh", action="store_true", help="recompute the measurements of an earlier study")

    claims = add_command(
        "claims", _claims, "check published claims about AE and VAE latent spaces", printing.format_claims
    )
    claims.add_argument(
        "overrides",
        nargs="*",
        metavar="DATASET=URI|section.key=value",
        help="datasets to use (default: generated faces), and recipe keys to override. data.uri, model.z_dim, "
        "loss.kl_factor and task.* are refused; optim.batch does not apply to recipes with batch norm, which take 32",
    )
    claims.add_argument("--only", action="append", metavar="CLAIM", help="check this claim only; may be repeated")
    claims.add_argument(
        "--out",
        type=_path,
        help="folder or s3:// URI of the report (default: ZPOINT_HOME/claims, or claims-CLAIM with --only)",
    )
    _add_num_samples(claims)

    promote = add_command("promote", _promote, "register a run's model in MLflow and set an alias to it")
    promote.add_argument("name", metavar="RUN|CAMPAIGN", help="name of a run, or of a campaign: its best run")
    promote.add_argument(
        "--run", dest="campaign_run", metavar="RUN", help="run of the campaign to take instead of its best one"
    )
    promote.add_argument("--alias", default="champion", help="alias in MLflow (default: champion)")

    export = add_command("export", _export, "export a model's decoder or encoder to run without zpoint")
    export.add_argument("name", metavar="RUN|ALIAS", help="name of a finished run, or of an alias in MLflow")
    export.add_argument(
        "--format", dest="file_format", choices=("onnx", "pt2"), default="onnx",
        help="onnx, or pt2 for torch.export (default: onnx)",
    )  # fmt: skip
    export.add_argument(
        "--part", choices=("decoder", "encoder"), default="decoder", help="decoder or encoder (default: decoder)"
    )
    export.add_argument(
        "--out",
        type=_path,
        required=True,
        metavar="FILE",
        help="file or s3:// URI, .onnx or .pt2, replaced if it exists; the z statistics go beside it",
    )

    add_command("runs", _runs, "list the runs in MLflow, newest first", printing.format_runs)


def _add_num_samples(command: Any) -> None:
    command.add_argument(
        "--num-samples", type=_positive_int, default=256, metavar="N",
        help="images decoded and scored for each sampler and sweep value, at most the number of held-out images "
        "(default: 256)",
    )  # fmt: skip
    command.add_argument("--judged", action=_RenamedOption, const="--num-samples", help=argparse.SUPPRESS)


class _ShowVersion(argparse.Action):
    """Print the version of the installed package, which is read only then, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        print(f"zpoint {version('zpoint')}")
        parser.exit()


class _RenamedOption(argparse.Action):
    """Refuse the old name of an option with an error that names the new one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.error(f"{option} has been renamed: use {self.const}")


def _add_serving(add_command: Callable[..., Any]) -> None:
    serve = add_command("serve", _serve, "serve the model version of an alias until Ctrl-C")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    deploy = add_command("deploy", _deploy, "start or change the endpoint of a cluster, show its status, or delete it")
    deploy.add_argument(
        "action", nargs="?", choices=("apply", "status", "delete"), default="apply",
        help="apply: start the endpoint or change it to these options; show its status; delete it (default: apply)",
    )  # fmt: skip
    _add_address(deploy)
    for command in (serve, deploy):
        command.add_argument(
            "--alias", action="append", help="alias in MLflow; give several to serve several models (default: champion)"
        )
        command.add_argument("--port", type=_port, default=8000, help="port to listen on (default: 8000)")
        command.add_argument(
            "--replicas",
            default="1",
            help="number of replica processes, or a minimum and maximum as in 1-4 (default: 1)",
        )
        command.add_argument(
            "--cors", action="append", default=[], metavar="ORIGIN",
            help="origin whose web pages may use the endpoint, as in https://example.org; may be repeated (default: "
            "none)",
        )  # fmt: skip
        command.add_argument(
            "--access-log", type=_path, default="", metavar="FILE",
            help="append a line of JSON for each request, without its content (default: none)",
        )  # fmt: skip

    models = add_command(
        "models", _models, "list the registered model versions, and where they are served", printing.format_models
    )
    models.add_argument(
        "--url", action="append", default=[],
        help=f"URL of an endpoint; may be repeated (default: {ENDPOINT_URL}, if one answers there)",
    )  # fmt: skip

    decode = add_command("decode", _decode, "decode z-points at an endpoint")
    decode.add_argument("z", type=_path, help=".npy file of z-points, float (n, z_dim)")

    sample = add_command("sample", _sample, "sample z-points and decode them at an endpoint")
    sample.add_argument("--n", type=_positive_int, default=64, help="number of z-points (default: 64)")
    sample.add_argument(
        "--sampler", help="cube, normal, sphere, diagonal, gaussian or gmm (default: the model's best one)"
    )

    reconstruct = add_command("reconstruct", _reconstruct, "corrupt an image and reconstruct it at an endpoint")
    reconstruct.add_argument(
        "image", type=_path, metavar="IMAGE", help="image file, or .npy of several, uint8 (n, height, width, 1 or 3)"
    )
    reconstruct.add_argument(
        "--task", default="reconstruct", help="reconstruct, denoise, drop, recolor or inpaint (default: reconstruct)"
    )

    for command, parameters in ((sample, "sampler, as in boundary=3"), (reconstruct, "task, as in sigma=0.4")):
        command.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
        command.add_argument("overrides", nargs="*", metavar="parameter=value", help=f"parameters of the {parameters}")

    interpolate = add_command("interpolate", _interpolate, "interpolate between two images or z-points at an endpoint")
    interpolate.add_argument("start", type=_path, help="image file, or .npy of one z-point")
    interpolate.add_argument("end", type=_path, help="image file, or .npy of one z-point")
    interpolate.add_argument("--steps", type=_positive_int, default=8, help="number of images (default: 8)")
    interpolate.add_argument("--path", default="straight", help="straight, spherical or neighbours (default: straight)")

    for command in (decode, sample, reconstruct, interpolate):
        command.add_argument("--url", default=ENDPOINT_URL, help=f"URL of the endpoint (default: {ENDPOINT_URL})")
        command.add_argument(
            "--out", type=_path, default="decoded.png",
            help="output file or s3:// URI, .png or .npy (default: decoded.png)",
        )  # fmt: skip


def _add_cluster(add_command: Callable[..., Any]) -> None:
    doctor = add_command(
        "doctor", _doctor, "check installation, Ray, storage and MLflow, and suggest fixes", lambda r: r["text"]
    )
    doctor.add_argument("--cluster", action="store_true", help="check every node of the cluster at RAY_ADDRESS")

    submit = add_command("submit", _submit, "submit a job to a cluster through Ray Jobs", printing.format_submit)
    _add_submit_options(submit)
    jobs = add_command("jobs", _jobs, "list the jobs of a cluster", printing.format_jobs)
    logs = add_command("logs", _logs, "print the log of a job", lambda r: r["logs"])
    logs.add_argument("--follow", action="store_true", help="follow the log until the job ends")
    stop = add_command("stop", _stop, "stop a job")
    for command in (jobs, logs, stop):
        _add_address(command)
    for command in (logs, stop):
        command.add_argument("id", metavar="ID", help="job ID, as `zpoint jobs` lists it")
    submit.add_argument(
        "job",
        metavar="JOB ...",
        nargs=argparse.REMAINDER,
        help="ingest, train, tune, study, claims or promote, with its arguments",
    )


def _add_submit_options(command: Any) -> None:
    command.add_argument(
        "--wait", action="store_true", help="follow the log until the job ends; submit it again if its node is lost"
    )
    command.add_argument("--cpus", type=float, default=0, help="CPUs to reserve for the job's driver (default: 0)")
    command.add_argument("--gpus", type=float, default=0, help="GPUs to reserve for the job's driver (default: 0)")
    command.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="variable of the job's environment, by default with its value here; may be repeated",
    )  # fmt: skip
    _add_address(command)


def _add_address(command: Any) -> None:
    command.add_argument(
        "--address", help="URL of the cluster's dashboard (default: RAY_ADDRESS, else http://127.0.0.1:8265)"
    )


def _demo(args: Any) -> Result:
    from jobs.commands.demo import demo

    return demo(quick=args.quick)


def _ingest(args: Any) -> Result:
    from cluster.progress import Bar
    from jobs.ingest.job import ingest

    with closing(Bar("ingest", "images")) as bar:
        return ingest(
            args.dataset, args.source, args.to, size=args.size, crop=args.crop, encoding=args.encoding,
            quality=args.quality, split=args.split, limit=args.limit, shard_rows=args.shard_rows, seed=args.seed,
            max_bad=args.max_bad, download=args.download, progress=bar.update,
        )  # fmt: skip


def _data(args: Any) -> Result:
    from cluster.progress import Bar
    from jobs.commands.data import show, verify

    with closing(Bar(args.action, "images")) as bar:
        if args.action == "verify":
            return verify(args.uri, progress=bar.update)
        return show(args.uri, args.out, progress=bar.update)


def _load_recipe(args: Any) -> tuple[Any, str]:
    """Return the recipe of a command, and its file's name as a default for the run's name."""
    from aecore.config import load_recipe, recipe_path
    from jobs.recipes import RECIPES

    path = recipe_path(args.recipe, RECIPES)
    return load_recipe(path, args.overrides), re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "recipe"


def _train(args: Any) -> Result:
    recipe, stem = _load_recipe(args)
    from jobs.train.job import train

    return train(recipe, stem, fresh=args.fresh)


def _tune(args: Any) -> Result:
    recipe, stem = _load_recipe(args)
    from jobs.tune.job import tune

    return tune(recipe, stem)


def _campaign(args: Any) -> Result:
    from jobs.commands.campaign import show_campaign, show_campaigns

    if args.name is None:
        if args.out:
            raise ValueError("--out takes the folder of one campaign's report: name the campaign")
        return show_campaigns()
    return show_campaign(args.name, args.out)


def _study(args: Any) -> Result:
    from cluster.progress import Bar
    from jobs.study.job import study

    with closing(Bar("study", "measurements")) as bar:
        return study(
            args.runs, args.out, limit=args.limit, num_samples=args.num_samples, inception=args.inception,
            fresh=args.fresh, progress=bar.update,
        )  # fmt: skip


def _claims(args: Any) -> Result:
    from cluster.progress import Bar
    from jobs.claims.job import claims

    with closing(Bar("claims", "claims")) as bar:
        return claims(
            args.overrides, args.out, claim_names=args.only, num_samples=args.num_samples, progress=bar.update
        )


def _promote(args: Any) -> Result:
    from jobs.promote import promote

    return promote(args.name, args.alias, args.campaign_run)


def _export(args: Any) -> Result:
    from jobs.commands.export import export

    return export(args.name, args.file_format, args.part, args.out)


def _runs(args: Any) -> Result:
    from jobs.commands.runs import list_runs

    return {"runs": list_runs()}


def _serve(args: Any) -> Result:
    from jobs.commands.serve import serve

    return serve(
        args.alias or ["champion"], args.host, args.port, args.replicas,
        cors_origins=args.cors, access_log=args.access_log,
    )  # fmt: skip


def _models(args: Any) -> Result:
    from jobs.commands.models import list_models

    return {"models": list_models(args.url)}


def _deploy(args: Any) -> Result:
    from jobs.commands.deploy import delete_deployment, deploy, deployment_status
    from jobs.commands.serve import parse_replicas

    if args.action == "status":
        return deployment_status(args.address)
    if args.action == "delete":
        return delete_deployment(args.address)
    return deploy(
        args.alias or ["champion"], args.port, parse_replicas(args.replicas), args.address,
        cors_origins=args.cors, access_log=args.access_log,
    )  # fmt: skip


def _decode(args: Any) -> Result:
    from jobs.commands.client import decode

    return decode(args.url, args.out, args.z)


def _sample(args: Any) -> Result:
    from jobs.commands.client import sample

    return sample(args.url, args.out, args.sampler, args.n, args.seed, args.overrides)


def _reconstruct(args: Any) -> Result:
    from jobs.commands.client import reconstruct

    return reconstruct(args.url, args.out, args.image, args.task, args.seed, args.overrides)


def _interpolate(args: Any) -> Result:
    from jobs.commands.client import interpolate

    return interpolate(args.url, args.out, args.start, args.end, args.steps, args.path)


def _doctor(args: Any) -> Result:
    from jobs.commands.doctor import doctor, render

    if args.cluster:
        from jobs.commands.cluster_doctor import doctor_cluster

        checks = doctor_cluster()
    else:
        checks = doctor()
    failed = any(check.ok is False for check in checks)
    return {"checks": [vars(check) for check in checks], "text": render(checks), "exit_status": int(failed)}


def _submit(args: Any) -> Result:
    from jobs.commands.submit import submit

    # argparse.REMAINDER takes all words after the job's name; options of submit itself may stand among them.
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true")
    _add_submit_options(parser)
    _, job = parser.parse_known_args(args.job, args)
    job += ["--json"] * (args.json and args.wait)
    return submit(job, args.address, wait=args.wait, cpus=args.cpus, gpus=args.gpus, variables=args.env)


def _jobs(args: Any) -> Result:
    from jobs.commands.submit import list_jobs

    return {"jobs": list_jobs(args.address)}


def _logs(args: Any) -> Result:
    from jobs.commands.submit import job_logs

    if args.follow and not args.json:
        args.format = lambda result: ""  # the log has been written as it grew
        logs = job_logs(args.id, args.address, follow=True, show=partial(_print, args.stdout, end=""))
    else:
        logs = job_logs(args.id, args.address, follow=args.follow)
    return {"id": args.id, "logs": logs}


def _stop(args: Any) -> Result:
    from jobs.commands.submit import stop_job

    return stop_job(args.id, args.address)


def _path(text: str) -> str:
    try:
        return expand_user(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a whole number, not '{text}'") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _port(text: str) -> int:
    value = _positive_int(text)
    if value > 65_535:
        raise argparse.ArgumentTypeError(f"must be 1 to 65535, not {text}")
    return value


def _exit(message: str, status: int) -> NoReturn:
    print(f"zpoint: {hide_credentials(message)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
