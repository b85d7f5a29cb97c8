"""An extension of Griffe: the API page lists the fields of classes with their comments."""

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Adds a section Attributes to the docstrings of classes with annotated fields."""

    def on_class_members(self, *, cls: griffe.Class, **unused: Any) -> None:
        """List the public fields of a class, unless its docstring does."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        fields = [_describe(member) for member in cls.attributes.values() if _is_field(member)]
        if fields:
            lines = [cls.docstring.value, "", "Attributes:", *fields]
            cls.docstring.value = "\n".join(lines)


def _is_field(attribute: griffe.Attribute) -> bool:
    is_property = "property" in attribute.labels
    return not (attribute.is_private or is_property or attribute.annotation is None)


def _describe(attribute: griffe.Attribute) -> str:
    assert attribute.lineno is not None
    line = attribute.lines_collection[attribute.filepath][attribute.lineno - 1]
    _, _, comment = line.partition("  # ")
    words = attribute.docstring.value if attribute.docstring else comment
    return f"    {attribute.name}: {words}"
