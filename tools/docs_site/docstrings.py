"""Makes the docstrings of the packages readable for the site's generator."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Examples"]

_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Treats `Example:` as `Examples:`, the only name under which griffe knows doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
