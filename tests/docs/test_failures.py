"""Check that the tests named in docs/failures.md exist."""

import re

from tests.docs.reading import DOCS, ROOT

PAGE = (DOCS / "failures.md").read_text(encoding="utf-8")


def test_every_test_on_the_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)\(", sources)) == set()
