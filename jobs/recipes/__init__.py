"""The recipes that `zpoint train` and `zpoint tune` know by name."""

from pathlib import Path

RECIPES = Path(__file__).parent
