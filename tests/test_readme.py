"""What the README tells a reader to type is what the command takes."""

import re
import shlex
from pathlib import Path

import pytest

from aecore.config import load_recipe
from jobs.cli import make_parser
from jobs.recipes import RECIPES

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"(?m)^    (zpoint .*?)(?: {2,}#.*)?$", README)
LINES = [line.strip() for block in BLOCKS for line in block.split(";")]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_understood(line: str):
    args, rest = make_parser().parse_known_args(shlex.split(line)[1:])
    assert not [word for word in rest if word.startswith("-") or "=" not in word]
    if line.split()[1] in ("train", "tune"):
        load_recipe(RECIPES / f"{args.recipe}.yaml", args.overrides + rest)


def test_the_readme_names_every_command():
    listed = set(re.findall(r"`(?:zpoint )?([a-z]+)", "\n".join(re.findall(r"(?m)^\| `zpoint .*?\|", README))))
    known = set(re.findall(r"(?m)^    ([a-z]+)(?: |$)", make_parser().format_help()))
    assert known
    assert known <= listed
