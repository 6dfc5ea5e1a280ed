"""Doctests under `Example:` as code."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Calls the section `Examples:`, the only name by which doctests are known."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
