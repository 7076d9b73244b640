"""The report of a study: figures and pictures become charts, sheets of pictures, one HTML page and metrics.json."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from aecore.pictures import grid, titled_sheet, to_png
from jobs.study.charts import css_variables
from jobs.study.findings import Figures, findings
from jobs.study.sections import Arrays, Section, about, make_sections, method, models

PAGE, METRICS = "study.html", "metrics.json"
WEBP_QUALITY = 88  # of the pictures in the page; the PNGs beside it are exact
TEMPLATE = Path(__file__).with_name("page.html.j2")


def make_report(figures: Figures, arrays: Arrays) -> tuple[dict[str, bytes], dict[str, list[str]]]:
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


def render(figures: Figures, sections: list[Section], said: dict[str, list[str]]) -> str:
    """The page: one HTML file that loads nothing from anywhere."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"data_uri": data_uri, "unbroken": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")}
    return environment.from_string(TEMPLATE.read_text()).render(
        names=", ".join(run["run"] for run in figures["runs"]), about=about(figures), variables=css_variables(),
        models=models(figures), findings=said, sections=sections, method=method(figures),
    )  # fmt: skip


def data_uri(pictures: np.ndarray) -> str:
    """Pictures uint8 (n, size, size, channels) in a row, as a WebP that a page holds within itself."""
    out = io.BytesIO()
    Image.fromarray(grid([pictures])).save(out, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
