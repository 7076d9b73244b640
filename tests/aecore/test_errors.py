import pytest

from aecore.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(2, "No such file or directory", "/a"), "/a: No such file or directory"),
        (OSError(28, "No space left on device", "/a/b"), "/a/b: No space left on device; free some space there"),
        (OSError(122, "Disk quota exceeded", "/from", None, "/to"), "/to: Disk quota exceeded; free some space there"),
        (ValueError("x" * 500), "x" * 300),
    ],
)
def test_an_error_becomes_one_line(error: Exception, line: str):
    assert one_line(error) == line


def test_the_limit_can_be_lifted():
    assert one_line(ValueError("x" * 500), limit=None) == "x" * 500
