"""Read YAML from any source: every problem is a ValueError of one line.

The content is text, numbers, booleans, null, lists and mappings; dates stay text. Aliases are
refused, because a few lines of them can expand to any size.
"""

from pathlib import Path
from typing import Any

import yaml

from crkd_cli.text import shorten

MAX_BYTES = 1 << 22  # a split of 100,000 patients
_LARGEST = 2**63
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_PREFIX = "tag:yaml.org,2002:"


def parse_yaml(text: str) -> Any:
    """Return the content of `text`. Raises ValueError."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES >> 20} MB")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_one_line(error)) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load_yaml(file: Path) -> Any:
    """Return the content of `file`. Raises OSError, or ValueError if it is invalid."""
    return parse_yaml(read_text(file))


def read_text(file: Path) -> str:
    """Return the text of `file`. Raises OSError, or ValueError if it is too long or not UTF-8."""
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES >> 20} MB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8, at byte {error.start}") from None


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise ValueError
            if isinstance(value, str):
                value.encode()  # an escape may be half of a surrogate pair
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            tag = node.tag.removeprefix(_PREFIX)
            problem = f"{shorten(repr(node.value), 40)} is not a valid {tag}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is not a plain word"
            elif (key.tag, key.value) in keys:
                problem = f"{shorten(key.value, 40)} occurs twice"
            else:
                keys.add((key.tag, key.value))
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_PREFIX) in _TAGS
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _one_line(error: yaml.MarkedYAMLError) -> str:
    problem = shorten(error.problem or error.context or "it cannot be parsed")
    mark = error.problem_mark
    return problem if mark is None else f"{problem}, line {mark.line + 1}"
