"""The report of a study: figures and pictures become charts, sheets of pictures, one HTML page and metrics.json."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from aecore.image_grid import grid, titled_sheet, to_png
from jobs.study.charts import css_variables
from jobs.study.findings import Metrics, findings
from jobs.study.sections import Arrays, Section, about, make_sections, method, models

PAGE, METRICS = "study.html", "metrics.json"
WEBP_QUALITY = 88  # of the pictures in the page; the PNGs beside it are exact
TEMPLATES = [Path(__file__).parent, Path(__file__).parents[1] / "claims"]


def make_report(figures: Metrics, arrays: Arrays) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """The report's files by name, the page last, and its sentences by what they are on; `arrays` are each run's."""
    sections, said = make_sections(figures, arrays), findings(figures)
    files = {METRICS: (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode()}
    for section in sections:
        files |= {f"chart-{chart.name}.png": chart.png for chart in section.charts}
        for number, card in enumerate((card for row in section.cards for card in row), 1):
            sheet = [("  ".join([row.label, *row.cells]), [row.pictures]) for row in card.rows]
            files[f"pictures-{section.id}-{number}.png"] = to_png(titled_sheet(sheet))
    files[PAGE] = render(figures, sections, said).encode()
    return files, said


def render(figures: Metrics, sections: list[Section], said: dict[str, list[str]]) -> str:
    """The page: one HTML file that loads nothing from anywhere."""
    return fill(
        "page.html.j2", names=", ".join(run["run"] for run in figures["runs"]), about=about(figures),
        models=models(figures), findings=said, sections=sections, method=method(figures),
    )  # fmt: skip


def fill(template: str, **values: Any) -> str:
    """A page of this folder's templates, with the look that they share."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"data_uri": data_uri, "unbroken": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")}
    return environment.get_template(template).render(variables=css_variables(), **values)


def data_uri(pictures: np.ndarray) -> str:
    """Pictures uint8 (n, size, size, channels) in a row, as a WebP that a page holds within itself."""
    out = io.BytesIO()
    Image.fromarray(grid([pictures])).save(out, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
