import pytest

from aecore.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(2, "No such file or directory", "/a"), "/a: No such file or directory"),
        (ValueError("x" * 500), "x" * 300),
    ],
)
def test_an_error_becomes_one_line(error: Exception, line: str):
    assert one_line(error) == line


def test_the_limit_can_be_lifted():
    assert one_line(ValueError("x" * 500), limit=None) == "x" * 500
