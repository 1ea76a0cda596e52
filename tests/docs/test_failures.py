"""The catalogue of failures names tests: they exist."""

import re

from tests.docs.reading import DOCS, ROOT

CATALOGUE = (DOCS / "failures.md").read_text(encoding="utf-8")


def test_every_test_that_the_catalogue_names_exists() -> None:
    """A scenario without its test is a wish."""
    named = set(re.findall(r"`(test_\w+)`", CATALOGUE))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)\(", sources)) == set()
