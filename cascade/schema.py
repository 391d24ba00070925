"""Whether a JSON document keeps a JSON Schema: the part of it that answers are asked in.

Types, properties, required, additionalProperties: false, items, enum, const, anyOf and local $ref.
What we do not know of a schema is not checked, and never counts against an answer: this decides
about an escalation, it does not certify a document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
MAX_DEPTH = 32


def violation(document: Any, schema: Any) -> str:
    """The first thing that is wrong, as a sentence with its place; empty: nothing."""
    return _check(document, schema, schema, "$", 0)


def _check(value: Any, schema: Any, root: Any, place: str, depth: int) -> str:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return ""
    if "$ref" in schema:
        return _check(value, _resolve(schema["$ref"], root), root, place, depth + 1)
    if "anyOf" in schema:
        faults = [_check(value, option, root, place, depth + 1) for option in schema["anyOf"]]
        return "" if "" in faults else f"{place} fits no option of the schema"
    return _wrong_value(value, schema, place) or _check_inside(value, schema, root, place, depth)


def _wrong_value(value: Any, schema: Any, place: str) -> str:
    if "const" in schema and value != schema["const"]:
        return f"{place} is not the constant of the schema"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} is not one of the schema's values"
    if not _has_type(value, schema.get("type")):
        return f"{place} is not of type {schema['type']}"
    return ""


def _check_inside(value: Any, schema: Any, root: Any, place: str, depth: int) -> str:
    if isinstance(value, list):
        items = schema.get("items")
        faults = (_check(v, items, root, f"{place}[{i}]", depth + 1) for i, v in enumerate(value))
        return next(filter(None, faults), "")
    if not isinstance(value, dict):
        return ""
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place}.{name} is missing"
    if schema.get("additionalProperties") is False:
        for name in value:
            if name not in properties:
                return f"{place}.{name} is not in the schema"
    known = (name for name in value if name in properties)
    faults = (_check(value[n], properties[n], root, f"{place}.{n}", depth + 1) for n in known)
    return next(filter(None, faults), "")


def _has_type(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return True
    names = wanted if isinstance(wanted, list) else [wanted]
    return any(_is(value, name) for name in names)


def _is(value: Any, name: str) -> bool:
    if name not in _TYPES:
        return True
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _resolve(reference: Any, root: Any) -> Any:
    """A local pointer ("#/$defs/x"); anything else is not checked."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found = root
    for step in reference[2:].split("/"):
        if not isinstance(found, Mapping):
            return None
        found = found.get(step.replace("~1", "/").replace("~0", "~"))
    return found
