"""The `zpoint` command: one parser, one function a command, the jobs themselves elsewhere.

A user's mistake (ValueError) ends in one line and exit status 2, a failed job in 1. Nothing heavy is imported before
the command is known.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from typing import Any, NoReturn

from aecore.errors import one_line
from cluster.settings import disable_telemetry, settings
from jobs.commands import printing

Result = dict[str, Any]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"zpoint: error: {message} (see `{self.prog} --help`)\n")


def main(argv: list[str] | None = None) -> None:
    disable_telemetry()
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse stops collecting overrides at the first option; what follows it is still one when it has a `=`.
    stray = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if stray:
        parser.error(f"unknown argument {stray[0]}")
    if rest:
        args.overrides += rest
    logging.basicConfig(format="zpoint: %(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the result alone
            result = args.call(args)
    except KeyboardInterrupt:
        _end("stopped; the same command goes on from here", 130)
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        _end(f"error: {one_line(error, limit=None)}", 2)
    except Exception as error:
        if settings().debug:
            raise
        _end(f"failed: {one_line(error, limit=None)}", 1)
    if args.json:
        print(json.dumps(result, default=str))
    elif text := args.show(result):
        print(text)
    sys.exit(result.get("exit_status", 0))


def make_parser() -> Parser:
    parser = Parser(prog="zpoint", description="Train, search and serve autoencoders on a Ray cluster.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(
        name: str, call: Callable[[Any], Result], help: str, show: Callable[[Result], str] | None = None
    ) -> Any:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="print the result as one JSON object")
        added.set_defaults(call=call, show=show or printing.table)
        return added

    for add in (_add_data, _add_training, _add_serving, _add_cluster):
        add(command)
    return parser


def _add_data(command: Callable[..., Any]) -> None:
    demo = command("demo", _demo, "the whole way on generated faces, from ingest to decode", lambda r: r["text"])
    demo.add_argument("--quick", action="store_true", help="a smaller one, about a third of the time")

    ingest = command("ingest", _ingest, "put images into shards and a manifest")
    # What is no dataset, encoding or split the job refuses: argparse's choices would be a second list of each.
    ingest.add_argument("dataset", metavar="DATASET", help="celeba, mnist, fashion_mnist, cifar10, folder, generated")
    ingest.add_argument("--source", help="folder or zip of the images, here or on S3 (none for generated)")
    ingest.add_argument("--to", required=True, help="where the dataset goes: a path or s3://bucket/prefix")
    ingest.add_argument("--size", type=_count, help="pixels a side (the set's own by default)")
    ingest.add_argument("--crop", default="square", help="square, a fraction of it (0.8), or left,top,width,height")
    ingest.add_argument("--encoding", help="jpeg, png or raw (jpeg, but png up to 32 pixels a side)")
    ingest.add_argument("--quality", type=_count, help="of jpeg, 1 to 100 (95)")
    ingest.add_argument("--split", help="official, identity or hash (official if there is one, else hash)")
    ingest.add_argument("--download", action="store_true", help="fetch mnist, fashion_mnist or cifar10 into --source")
    ingest.add_argument("--limit", type=_count, help="at most this many images")
    ingest.add_argument("--shard-rows", type=_count, default=1024, help="images in a shard (1024)")
    ingest.add_argument("--max-bad", type=int, default=0, help="images that may fail to decode (0)")
    ingest.add_argument("--seed", type=int, default=0, help="seed of generated faces (0)")

    data = command("data", _data, "look at a dataset, or check every byte of it", lambda r: r["text"])
    data.add_argument("what", choices=("show", "verify"))
    data.add_argument("uri", help="the dataset: a path or s3://bucket/prefix")
    data.add_argument("--out", default=".", help="where show puts contact-sheet.png and mean-image.png (.)")


def _add_training(command: Callable[..., Any]) -> None:
    train = command("train", _train, "train a recipe")
    tune = command("tune", _tune, "search z_dim and kl_factor", printing.campaign)
    for added in (train, tune):
        added.add_argument("recipe", help="a name in jobs/recipes or a YAML file")
        added.add_argument("overrides", nargs="*", metavar="section.key=value")
    train.add_argument("--fresh", action="store_true", help="forget an earlier run of this name")

    study = command("study", _study, "which z-points of finished runs decode to meaningful images", printing.study)
    study.add_argument("runs", nargs="+", metavar="RUN")
    study.add_argument("--out", help="the report's folder (one in ZPOINT_HOME/studies)")
    study.add_argument("--limit", type=_count, default=6_000, help="training images encoded at most (6000)")
    _add_num_samples(study)
    study.add_argument("--inception", metavar="FILE", help="weights for FID, KID, precision and recall (none)")
    study.add_argument("--fresh", action="store_true", help="measure again what an earlier study measured")

    claims = command("claims", _claims, "put what is said of AE and VAE latent spaces to the test", printing.claims)
    claims.add_argument("overrides", nargs="*", metavar="SET=URI|section.key=value", help="none: drawn faces")
    claims.add_argument("--only", action="append", metavar="CLAIM", help="this claim alone; may be given again")
    claims.add_argument("--out", help="the report's folder (ZPOINT_HOME/claims, or claims-CLAIM of --only)")
    _add_num_samples(claims)

    promote = command("promote", _promote, "register a run's model and point an alias to it")
    promote.add_argument("name", metavar="RUN|CAMPAIGN")
    promote.add_argument("--alias", default="champion")

    command("runs", _runs, "the runs in MLflow, newest first", printing.runs)


def _add_num_samples(command: Any) -> None:
    command.add_argument(
        "--num-samples", type=_count, default=256, metavar="N",
        help="images decoded and scored for each sampler and sweep value (256)",
    )  # fmt: skip
    command.add_argument("--judged", action=_RenamedOption, const="--num-samples", help=argparse.SUPPRESS)


class _RenamedOption(argparse.Action):
    """Refuse the old name of an option with an error that names the new one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.error(f"{option} has been renamed: use {self.const}")


def _add_serving(command: Callable[..., Any]) -> None:
    serve = command("serve", _serve, "serve the model that an alias names, until Ctrl-C")
    serve.add_argument("--alias", default="champion")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=_count, default=8000)
    serve.add_argument("--replicas", default="1", help="processes: a number, or the least and the most as in 1-4 (1)")

    decode = command("decode", _ask, "decode z-points at a served endpoint")
    decode.add_argument("z", help=".npy file of z-points, float (n, z_dim)")
    sample = command("sample", _ask, "choose z-points at a served endpoint and decode them")
    sample.add_argument("--n", type=_count, default=64)
    reconstruct = command("reconstruct", _ask, "do a task to a picture and rebuild it at a served endpoint")
    reconstruct.add_argument("picture", help="an image file, or a .npy of several, uint8 (n, height, width, 1 or 3)")
    for added, option, default in ((sample, "--sampler", "normal"), (reconstruct, "--task", "reconstruct")):
        added.add_argument(option, default=default)
        added.add_argument("--seed", type=int, default=0)
        added.add_argument("overrides", nargs="*", metavar="parameter=value", help="as in boundary=3 or sigma=0.4")
    interpolate = command("interpolate", _ask, "go from one picture or z-point to another at a served endpoint")
    interpolate.add_argument("start", help="an image file, or a .npy of one z-point")
    interpolate.add_argument("end", help="the same")
    interpolate.add_argument("--steps", type=_count, default=8)
    interpolate.add_argument("--path", default="straight")
    for added in (decode, sample, reconstruct, interpolate):
        added.add_argument("--url", default="http://127.0.0.1:8000")
        added.add_argument("--out", default="decoded.png", help="where the pictures go: .png or .npy (decoded.png)")


def _add_cluster(command: Callable[..., Any]) -> None:
    command("doctor", _doctor, "what is and is not in order, and how to mend it", lambda r: r["text"])

    submit = command("submit", _submit, "run a job on a cluster, through Ray Jobs")
    submit.add_argument("--wait", action="store_true", help="follow the job to its end")
    jobs = command("jobs", _jobs, "the cluster's jobs", printing.jobs)
    logs = command("logs", _logs, "a job's log", lambda r: r["logs"])
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")
    stop = command("stop", _stop, "stop a job")
    for added in (submit, jobs, logs, stop):
        added.add_argument("--address", help="the cluster's dashboard URL (RAY_ADDRESS, http://127.0.0.1:8265)")
    for added in (logs, stop):
        added.add_argument("id")
    submit.add_argument("job", nargs=argparse.REMAINDER, help="ingest, train, tune, study, claims, promote; arguments")


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

    with closing(Bar(args.what, "images")) as bar:
        if args.what == "verify":
            return verify(args.uri, progress=bar.update)
        return show(args.uri, args.out, progress=bar.update)


def _recipe(args: Any) -> tuple[Any, str]:
    from aecore.config import load_recipe, recipe_path
    from jobs.recipes import RECIPES

    path = recipe_path(args.recipe, RECIPES)
    return load_recipe(path, args.overrides), re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "recipe"


def _train(args: Any) -> Result:
    recipe, stem = _recipe(args)
    from jobs.train.job import train

    return train(recipe, stem, fresh=args.fresh)


def _tune(args: Any) -> Result:
    recipe, stem = _recipe(args)
    from jobs.tune.job import tune

    return tune(recipe, stem)


def _study(args: Any) -> Result:
    from cluster.progress import Bar
    from jobs.study.job import study

    with closing(Bar("study", "parts")) as bar:
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

    return promote(args.name, args.alias)


def _serve(args: Any) -> Result:
    from jobs.commands.serve import serve

    return serve(args.alias, args.host, args.port, args.replicas)


def _ask(args: Any) -> Result:
    from jobs.commands import client

    given = {name: value for name, value in vars(args).items() if name not in ("command", "json", "call", "show")}
    return getattr(client, args.command)(**given)


def _runs(args: Any) -> Result:
    from jobs.commands.runs import list_runs

    return {"runs": list_runs()}


def _doctor(args: Any) -> Result:
    from jobs.commands.doctor import doctor, render

    checks = doctor()
    broken = any(check.ok is False for check in checks)
    return {"checks": [vars(c) for c in checks], "text": render(checks), "exit_status": int(broken)}


def _submit(args: Any) -> Result:
    from jobs.commands.submit import submit

    # argparse leaves everything after the job's name to the job; these are submit's wherever they stand.
    options = Parser(add_help=False)
    options.add_argument("--address", default=args.address)
    options.add_argument("--wait", action="store_true", default=args.wait)
    options.add_argument("--json", action="store_true", default=args.json)
    mine, job = options.parse_known_args(args.job)
    args.json = mine.json
    return submit(job, mine.address, wait=mine.wait)


def _jobs(args: Any) -> Result:
    from jobs.commands.submit import list_jobs

    return {"jobs": list_jobs(args.address)}


def _logs(args: Any) -> Result:
    from jobs.commands.submit import job_logs

    return {"id": args.id, "logs": job_logs(args.id, args.address, follow=args.follow)}


def _stop(args: Any) -> Result:
    from jobs.commands.submit import stop_job

    return stop_job(args.id, args.address)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _end(text: str, status: int) -> NoReturn:
    print(f"zpoint: {text}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
