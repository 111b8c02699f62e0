"""The page that says what becomes of corrections by other programs is what becomes of them."""

import importlib.util
from pathlib import Path

from tests.interop.writers_table import render

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_writers_says_what_becomes_of_their_objects(tmp_path):
    spec = importlib.util.spec_from_file_location("docs_writers", DOCS / "writers.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = (DOCS / "writers.md").read_text(encoding="utf-8")

    assert page.put(text, render(tmp_path)) == text, "the page is stale: run `make docs-writers`"
