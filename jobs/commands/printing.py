"""What the `zpoint` command prints of a result, as lines for people."""

from typing import Any

Result = dict[str, Any]


def table(result: Result) -> str:
    """`key  value` lines, nested dicts indented."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {k:<22} {_cell(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key:<24} {_cell(value)}")
    return "\n".join(lines)


def _rows(rows: list[Result], columns: list[str]) -> str:
    cells = [columns, *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def campaign(result: Result) -> str:
    figures = ["valid_psnr", "hog_frechet_normal", "hog_frechet_gaussian"]
    trials = _rows(result["trials"], ["run", "z_dim", "kl_factor", *figures])
    return f"{trials}\nbest: {result['best']}\nrule: {result['rule']}\nnext: zpoint promote {result['campaign']}"


def study(result: Result) -> str:
    return "\n".join([*(s for group in result["findings"].values() for s in group), f"report: {result['report']}"])


def claims(result: Result) -> str:
    lines = [f"{'yes' if c['holds'] else 'NO ':<4}{c['text']}\n    {c['figures']}" for c in result["claims"]]
    return "\n".join([*lines, f"report: {result['report']}"])


def runs(result: Result) -> str:
    columns = ["run", "status", "started", "epochs", "valid_psnr", "hog_frechet_normal", "images_per_second", "version"]
    return _rows(result["runs"], columns) if result["runs"] else "no runs yet: `zpoint train RECIPE data.uri=...`"


def jobs(result: Result) -> str:
    return _rows(result["jobs"], ["id", "status", "started", "entrypoint"]) if result["jobs"] else "no jobs"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
