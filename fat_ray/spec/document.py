"""A YAML file as plain data that remembers its lines: YAML 1.2, no tags, no duplicate keys, no billion laughs."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.events import MappingEndEvent, MappingStartEvent, SequenceEndEvent, SequenceStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fat_ray.errors import Problem
from fat_ray.spec.path import Path, dotted, shorten

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
"""After expansion of aliases."""
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}str", f"{_TAG}timestamp"}  # a date has no field to go to: it stays the text that was written
_PLAIN = {f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"}


@dataclass
class Document:
    """What a YAML text holds.

    Attributes:
        data: Plain dicts, lists, texts, numbers, booleans and None.
        lines: Where each value was written, from 1; for an entry of a mapping the line of its key.
        problems: What is wrong with the YAML itself.
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int | None:
        """Line of the value or, when it is missing, of the nearest section around it that was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def forget(self, path: Path) -> None:
        """Drops the lines of a value that was replaced, and of all that was inside it."""
        self.lines = {known: line for known, line in self.lines.items() if known[: len(path)] != path}


def parse(text: str) -> Document:
    """Reads one YAML document; what is wrong with it is listed in its `problems`, never raised."""
    if len(text.encode()) > MAX_BYTES:
        return Document(problems=[Problem("", None, f"is larger than {MAX_BYTES // 1024} KiB; a study file is a page or two")])
    yaml = YAML(typ="safe", pure=True)
    try:
        if _too_deep(text):
            return Document(problems=[Problem("", None, f"is nested deeper than {MAX_DEPTH} levels")])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it: the latest counts
            node = yaml.compose(text)
    except MarkedYAMLError as error:
        return Document(problems=[_syntax_problem(error)])
    except YAMLError as error:
        return Document(problems=[Problem("", None, f"is not valid YAML: {' '.join(str(error).split())}")])
    builder = _Builder(yaml)
    if node is not None:
        builder.document.data = builder.build(node, ())
    return builder.document


def _too_deep(text: str) -> bool:
    """Looks at the events first: composing nodes recurses, and the scanner's time grows with the square of the depth."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, MappingStartEvent | SequenceStartEvent)
        depth -= isinstance(event, MappingEndEvent | SequenceEndEvent)
        if depth > MAX_DEPTH:
            return True
    return False


def _syntax_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return Problem("", None, f"is not valid YAML: {' '.join(reason.split())}", None if mark is None else mark.line + 1)


class _TooLargeError(Exception):
    """The document is larger than anything a person would write."""


class _Builder:
    """Turns composed nodes into plain data."""

    def __init__(self, yaml: YAML) -> None:
        self.document = Document()
        self._yaml = yaml
        self._count = 0

    def build(self, node: Node, path: Path) -> Any:
        """The plain value of the root node."""
        try:
            return self._value(node, path, None)
        except _TooLargeError as error:
            self.document.problems.append(Problem("", None, str(error)))
            return None

    def _value(self, node: Node, path: Path, line: int | None) -> Any:
        self._count += 1
        if self._count > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLargeError(f"has more than {MAX_NODES} values or {MAX_DEPTH} levels once its aliases are expanded")
        self.document.lines[path] = node.start_mark.line + 1 if line is None else line
        match node:
            case MappingNode():
                return self._mapping(node, path)
            case SequenceNode():
                return [self._value(item, (*path, i), None) for i, item in enumerate(node.value)]
            case ScalarNode():
                return self._scalar(node, path)
        raise AssertionError(node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._problem(path, None, "has a key that is not a single word", line)
                continue
            key = str(key_node.value)
            if key in mapping:
                self._problem((*path, key), None, f"is given twice; first on line {self.document.lines[*path, key]}", line)
                continue
            mapping[key] = self._value(value_node, (*path, key), line)
        return mapping

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if node.tag in _TEXT:
            return str(node.value)
        if node.tag in _PLAIN:
            try:
                return self._yaml.constructor.construct_object(node)
            except (ValueError, YAMLError):  # an integer of thousands of digits, or !!int abc
                self._problem(path, node.value, "is not a number that can be read", self.document.lines[path])
                return None
        self._problem(path, node.value, f"has the tag {node.tag}; tags are not supported", self.document.lines[path])
        return None

    def _problem(self, path: Path, value: object, message: str, line: int) -> None:
        self.document.problems.append(Problem(dotted(path), None if value is None else shorten(value), message, line))
