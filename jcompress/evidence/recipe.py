"""The recipe of a report as TOML."""

import json
import re
from collections.abc import Mapping
from typing import Any

from jcompress.evidence.reading import Found


def recipe_text(found: Found) -> str:
    """Steps or settings, as the file that they came from would say them."""
    if "steps" in found:
        steps = [dict(step.items()) for step in found.at("steps").each()]
        tables = [
            _table("[[step]]", "step", {key: each.value for key, each in step.items()})
            for step in steps
        ]
    elif "recipe" in found:
        values = {name: each.value for name, each in found.at("recipe").items()}
        tables = [_table("", "", values)]
    else:
        return ""
    return re.sub(r"\n+\[", "\n\n[", "\n".join(tables)).strip()


def _table(head: str, name: str, values: Mapping[str, Any]) -> str:
    """A table of TOML with those in it."""
    # TOML has no null: what is not there has its default.
    values = {k: v for k, v in values.items() if v is not None}
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    inner = {k: v for k, v in values.items() if isinstance(v, Mapping) and v}
    first = f"{name}." if name else ""
    return "\n".join(
        [
            *([head] if head else []),
            *(f"{_key(key)} = {json.dumps(value)}" for key, value in plain.items()),
            *(
                _table(f"[{first}{_key(key)}]", first + _key(key), value)
                for key, value in inner.items()
            ),
            "",
        ]
    )


def _key(name: object) -> str:
    text = str(name)
    bare = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if bare else json.dumps(text)
