"""Make the report of a study: an HTML page, charts and tables of images as PNG, and metrics.json."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from aecore.image_grid import grid, titled_sheet, to_png
from jobs.study.charts import css_variables
from jobs.study.findings import make_findings
from jobs.study.metrics import RunArrays, StudyMetrics
from jobs.study.sections import ImageRow, describe_dataset, describe_method, make_model_table, make_sections

PAGE_FILE, METRICS_FILE = "study.html", "metrics.json"
WEBP_QUALITY = 88  # of the images in the page; the PNGs are lossless
TEMPLATE_FOLDERS = [Path(__file__).parent, *(Path(__file__).parents[1] / job for job in ("claims", "tune"))]


def make_report(study: StudyMetrics, arrays: Sequence[RunArrays]) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """Return the report's files by name, the page last, and its findings by heading. `arrays` has those of each run."""
    sections, findings = make_sections(study, arrays), make_findings(study)
    files = {METRICS_FILE: (json.dumps(study, indent=1, sort_keys=True) + "\n").encode()}
    for section in sections:
        files |= {f"chart-{chart.name}.png": chart.png for chart in section.charts}
        for table in (table for group in section.image_tables for table in group):
            files[f"pictures-{table.name}.png"] = image_rows_png(
                f"{table.title}, by {table.label_header}", table.headers, table.rows
            )
    page = render_page(
        "study.html.j2", run_names=", ".join(run["run"] for run in study["runs"]), dataset=describe_dataset(study),
        model_table=make_model_table(study), findings=findings, sections=sections, method=describe_method(study),
    )  # fmt: skip
    files[PAGE_FILE] = page.encode()
    return files, findings


def image_rows_png(title: str, headers: Sequence[str], rows: Sequence[ImageRow]) -> bytes:
    """Return a PNG with the rows of images below one another, each under its label and its cells with their headers."""
    sections = []
    for row in rows:
        cells = [f"{header} {cell}" for header, cell in zip(headers, row.cells, strict=False)]  # some rows have none
        sections.append((", ".join([row.label, *cells]), [row.images]))
    return to_png(titled_sheet(sections, title))


def render_page(template: str, **values: Any) -> str:
    """Render a template to one HTML page that loads nothing from the network."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDERS), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"data_uri": _data_uri, "nonbreaking": _use_nonbreaking_spaces}
    environment.globals["css_variables"] = css_variables()
    return environment.get_template(template).render(**values)


def _data_uri(images: np.ndarray) -> str:
    """Return images uint8 (n, size, size, channels), side by side, as the data URI of a WebP."""
    buffer = io.BytesIO()
    Image.fromarray(grid([images])).save(buffer, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _use_nonbreaking_spaces(text: str) -> str:
    """Keep numbers and their percent signs on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
