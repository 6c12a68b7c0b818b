"""For griffe, which reads the docstrings: our `Example:` is its `Examples:`."""

import re
from typing import Any

import griffe

SINGULAR = re.compile(r"^(\s*)Example:$", re.M)


class Examples(griffe.Extension):
    """Shows the example of a docstring as code, with its results."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = SINGULAR.sub(r"\1Examples:", obj.docstring.value)
