"""Format the result of a command as text for the terminal."""

import textwrap
from typing import Any

Result = dict[str, Any]
HOURS = {"GPU hours": "gpu_hours", "core hours": "core_hours"}


def format_fields(result: Result) -> str:
    """Format `result` as lines of `key  value`, with nested dicts indented."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {field:<22} {_format(nested)}" for field, nested in value.items())]
        else:
            lines.append(f"{key:<24} {_format(value)}")
    return "\n".join(lines)


def format_ingest(result: Result) -> str:
    """Format what `zpoint ingest` found in the source and wrote, 80 columns wide."""
    counts = ", ".join(f"{split} {count:,}" for split, count in result["counts"].items())
    passed_over = [_format_count(names, reason) for reason, names in result["passed_over"].items()]
    written = f"{result['shards']:,} shards, {result['bytes']:,} bytes"
    written += ", unchanged" if result["unchanged"] else f", {result['images_per_second']:,.0f} images/s"
    fields = [
        ("dataset", [result["uri"]]),
        ("splits", [counts]),
        ("split rule", [result["split_rule"]]),
        ("classes", [_format_count(result["classes"])]),
        ("attributes", [_format_count(result["attributes"])]),
        ("notes", result["notes"]),
        ("passed over", passed_over or ["nothing"]),
        ("bad images", [f"{result['rejects']:,} skipped, listed in rejects.jsonl"] if result["rejects"] else ["none"]),
        ("written", [written]),
        ("digest", [result["digest"]]),
    ]
    lines = []
    for name, texts in fields:
        for text in texts:
            wrapped = textwrap.wrap(text, 66, break_long_words=False, break_on_hyphens=False)
            lines += [f"{name if i == 0 else '':<12}  {line}" for i, line in enumerate(wrapped)]
            name = ""
    return "\n".join(lines)


def _format_count(names: Result, reason: str = "") -> str:
    if not names["count"]:
        return "none"
    more = ", ..." if names["count"] > len(names["first"]) else ""
    return f"{names['count']:,}{' ' * bool(reason)}{reason}: {', '.join(names['first'])}{more}"


def format_train(result: Result) -> str:
    """Format the metrics of `zpoint train`'s run with their units, and the commands that usually follow."""
    from aecore.config import STORED_SAMPLERS, sampler_distances

    metrics, run = result["metrics"], result["run"]
    hours = next((f"{metrics[key]:.3g} {unit}" for unit, key in HOURS.items() if key in metrics), "")
    distances = sampler_distances(metrics)
    best = min(distances, key=distances.__getitem__, default="")
    shown = [f"{value:.2f} of {STORED_SAMPLERS[name]}" for name, value in distances.items() if name in ("normal", best)]
    values = {
        "run": f"{run} at {result['uri']}" + ", finished before" * result["already_finished"],
        "PSNR": _format_metric(metrics, "valid_psnr", "{:.1f} dB of the validation images"),
        "SSIM": _format_metric(metrics, "valid_ssim", "{:.2f}"),
        "KL": _format_metric(metrics, "valid_kl", "{:,.1f} nats an image"),
        "active units": _format_metric(metrics, "valid_active_units", "{:.0f}"),
        "distance": "; ".join(shown),
        "speed": ", ".join(filter(None, [_format_metric(metrics, "images_per_second", "{:,.0f} images/s"), hours])),
        "next": f"zpoint study {run}, zpoint promote {run}, zpoint serve",
    }
    fields = [(name, text) for name, text in values.items() if text]
    return "\n".join(f"{name:<12}  {text}" for name, text in fields)


def _format_metric(metrics: Result, key: str, template: str) -> str:
    return template.format(metrics[key]) if key in metrics else ""


def format_campaign(result: Result) -> str:
    """Format the trials of `zpoint tune`, the best one, and the command that promotes it."""
    from jobs.tune.campaign import from_json
    from jobs.tune.table import format_campaign

    return f"{format_campaign(from_json(result))}\nreport: zpoint campaign {result['campaign']}"


def format_study(result: Result) -> str:
    """Format the findings of `zpoint study`, one a line, and the path of its report."""
    lines = [finding for section in result["findings"].values() for finding in section]
    return "\n".join([*lines, f"report: {result['report']}"])


def format_claims(result: Result) -> str:
    """Format the verdict and the measurements of each claim of `zpoint claims`, and the path of its report."""
    lines = [
        f"{'yes' if claim['holds'] else 'NO ':<4}{claim['text']}\n    {claim['figures']}" for claim in result["claims"]
    ]
    return "\n".join([*lines, f"report: {result['report']}"])


def format_runs(result: Result) -> str:
    """Format the table of `zpoint runs`."""
    columns = {
        "run": "run", "status": "status", "started": "started", "epochs": "epochs", "PSNR": "valid_psnr",
        "distance of N(0, 1)": "hog_frechet_normal", "images/s": "images_per_second", "version": "version",
    }  # fmt: skip
    if not result["runs"]:
        return "no runs yet: train one with `zpoint train RECIPE data.uri=...`"
    return _format_table(result["runs"], columns)


def format_models(result: Result) -> str:
    """Format the table of `zpoint models`, a line for each alias, and the command that moves one."""
    columns = {
        "version": "version", "alias": "alias", "sampler": "sampler", "PSNR": "psnr", "distance": "distance",
        "created": "created", "run": "run",
    }  # fmt: skip
    if not result["models"]:
        return "no models yet: register one with `zpoint promote RUN`"
    rows = []
    for model in result["models"]:
        first, *others = model["aliases"] or [""]
        rows += [model | {"alias": first, "created": model["created"][:10]}, *({"alias": alias} for alias in others)]
    served = [f"version {model['version']} is served at {at}" for model in result["models"] for at in model["served"]]
    move = "to move an alias, also back: zpoint promote RUN --alias ALIAS"
    return "\n".join([_format_table(rows, columns), *served, move])


def format_submit(result: Result) -> str:
    """Format the result of `zpoint submit`: after a wait as `zpoint jobs` does."""
    return format_jobs({"jobs": [result]}) if "exit_status" in result else format_fields(result)


def format_jobs(result: Result) -> str:
    """Format the list of `zpoint jobs`: a line for each job, and below it the command and the error of a failed one."""
    lines = []
    for job in result["jobs"]:
        hours = f"{job['gpu_hours']:.2f} GPU hours" if job["gpu_hours"] else f"{job['core_hours']:.2f} core hours"
        minutes = f"{(job['seconds'] or 0) / 60:.1f} min"
        lines.append(f"{job['id']:<24} {job['status']:<9}  {job['started']:<16.16}  {minutes:>8}  {hours:>15}".rstrip())
        details = [job["entrypoint"], *([job["message"]] if job["status"] == "FAILED" else [])]
        lines += [line for text in details for line in _indent(text)]
    return "\n".join(lines) or "no jobs"


def _indent(text: str) -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _format_table(rows: list[Result], columns: dict[str, str]) -> str:
    """Format a table of `rows`; `columns` are the keys of their cells by header."""
    cells = [list(columns), *([_format(row.get(key, "")) for key in columns.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _format(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
