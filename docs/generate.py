"""Write the parts of the documentation that can be derived from the code, between their markers.

`make docs` runs it; a test fails when a page is not what it would write.
"""

import json
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import sop_class

from dicomnode.conditions import Range
from dicomnode.configfile import Key, Section, keys
from dicomnode.scp.admission import ACCEPTED_CLASSES, ACCEPTED_SYNTAXES
from dicomnode.settings import AggregatorSettings, NodeSettings

DOCS = Path(__file__).resolve().parent
PAGES = ("configuration.md", "conformance.md")
_BLOCK = re.compile(r"(<!-- begin: (\S+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_KEYWORDS = {str(uid): keyword for keyword, uid in vars(sop_class).items() if isinstance(uid, UID)}


def render(page: str) -> str:
    """Put what the code says between the markers of a page's text."""
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}{block[3]}", page)


def _settings(model: type[Section]) -> str:
    tables = []
    for section, group in groupby(keys(model), key=lambda key: key.name.rpartition(".")[0]):
        plain = section.replace("[]", "")
        title = f"[[{plain}]]" if section.endswith("[]") else f"[{plain}]"
        rows = "\n".join(_row(key) for key in group)
        tables.append(f"### {title}\n\n| Key | Meaning | Allowed | Default |\n|---|---|---|---|\n{rows}\n")
    return "\n" + "\n".join(tables) + "\n"


def _row(key: Key) -> str:
    name = key.name.rpartition(".")[2]
    cells = (f"`{name}`", key.meaning, key.allowed, "required" if key.required else _default(key.default))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Range):
        limits = ((name, getattr(value, name)) for name in ("min", "max"))
        return f"`{{ {', '.join(f'{name} = {limit}' for name, limit in limits if limit is not None)} }}`"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def _name(uid: str) -> str:
    """Name a UID; pydicom's table lacks some classes that pynetdicom knows by keyword."""
    name = UID(uid).name
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _KEYWORDS[uid]) if name == uid else name


def _uids(uids: frozenset[str], heading: str) -> str:
    named = sorted((_name(uid), uid) for uid in uids)
    rows = "\n".join(f"| {name} | {uid} |" for name, uid in named)
    return f"\n{len(named)} in all.\n\n| {heading} | UID |\n|---|---|\n{rows}\n\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "node": lambda: _settings(NodeSettings),
    "aggregator": lambda: _settings(AggregatorSettings),
    "classes": lambda: _uids(ACCEPTED_CLASSES, "SOP class"),
    "syntaxes": lambda: _uids(ACCEPTED_SYNTAXES, "Transfer syntax"),
}


def main() -> None:
    """Write every page anew and say which changed."""
    for name in PAGES:
        path = DOCS / name
        before = path.read_text(encoding="utf-8")
        after = render(before)
        path.write_text(after, encoding="utf-8")
        sys.stdout.write(f"{path.name}: {'unchanged' if after == before else 'written'}\n")


if __name__ == "__main__":
    main()
