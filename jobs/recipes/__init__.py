"""The recipes that `zpoint train` and `zpoint tune` take by name."""

from pathlib import Path

RECIPES = Path(__file__).parent
