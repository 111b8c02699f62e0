"""The page that says what the node makes of real series is what the node makes of them."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_real_series_says_what_is_made_of_them(data_dir):
    spec = importlib.util.spec_from_file_location("docs_series", DOCS / "series.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = (DOCS / "series.md").read_text(encoding="utf-8")

    assert page.render(text, data_dir) == text, "the page is stale: run `make docs-series`"
