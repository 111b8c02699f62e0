"""Write the table of docs/writers.md: what the node makes of corrections by other programs.

``make docs-writers`` runs it; the programs must be installed as for the tests. A test compares the page with
what this program would write.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parent / "writers.md"
TESTS = PAGE.parents[1] / "tests"
BEGIN, END = "<!-- begin: writers -->\n", "<!-- end: writers -->\n"


def put(text: str, table: str) -> str:
    """Put the table between the markers of the page's text."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table}\n{END}{after}"


def main() -> None:
    """Write the page anew."""
    package = ModuleType("tests")  # some libraries install a package of this name, which would be found first
    package.__path__ = [str(TESTS)]
    sys.modules["tests"] = package
    fixtures = importlib.import_module("tests.interop.writers_table")
    with tempfile.TemporaryDirectory() as folder:
        table = fixtures.render(Path(folder))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
