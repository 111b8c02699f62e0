"""JSON for human eyes."""

import json

_WIDTH = 110


def render_json(value: object, *, indent: int = 0) -> str:
    """Write plain values as JSON: what fits on a line stands on one, and nothing is broken without need."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + len(line) <= _WIDTH or not isinstance(value, dict | list):
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        items = [
            f"{inner}{json.dumps(key)}: {render_json(item, indent=indent + 2)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    items = [inner + render_json(item, indent=indent + 2) for item in value]
    return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"
