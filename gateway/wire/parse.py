"""From bytes to a typed request, and from a decoder's complaint to an error a caller can mend.

msgspec decodes and validates in one pass in C (about 5 µs for a chat request; json + pydantic takes
some 40). Its complaints end in a path, `Expected int, got str - at $.max_tokens`, from which the
`param` of the error is taken. A request with a field that the struct does not know is decoded
again, leniently, and the unknown rest is handed back as canonical JSON: never dropped.
"""

from __future__ import annotations

import json
import re
from typing import Any, Generic, TypeVar

import msgspec
import orjson

from engine.contract import BadCall, Json

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r"^(?P<what>.*?) - at `(?:key in )?\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MODALITY = re.compile(r"Invalid value '(?P<kind>[^']*)'")
_ALLOWED = (
    (".role", "system, developer, user, assistant or tool"),
    ("response_format.type", "text, json_object or json_schema"),
    ("service_tier", "auto or default"),
    ("tool_choice", "none, auto, required, or a function's name"),
    (".type", "function"),
)
_MODALITIES = frozenset({"image_url", "input_audio", "file", "video_url", "input_image"})


def canonical(value: Any, param: str | None = None) -> Json:
    """Sorted keys, no spaces: equal values give equal text. Raises BadCall for what JSON libraries
    do not agree on."""
    try:
        return Json(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode())
    except orjson.JSONEncodeError as error:
        named = f"{param} holds" if param else "The body holds"
        raise BadCall(
            f"{named} what cannot be passed on: {str(error).lower()}. Send integers of 64 bits and "
            "fewer levels.",
            param=param,
            code="invalid_value",
        ) from None


class Decoder(Generic[T]):
    """Decodes one request shape, strictly first: nearly all requests hold no unknown field, and
    finding out which are unknown costs a second pass."""

    def __init__(self, lenient: type[T]) -> None:
        self._known = frozenset(lenient.__struct_encode_fields__)
        strict: type[T] = msgspec.defstruct(  # type: ignore[assignment]
            f"Strict{lenient.__name__}", [], bases=(lenient,), forbid_unknown_fields=True
        )
        self._strict = msgspec.json.Decoder(strict)
        self._lenient = msgspec.json.Decoder(lenient)

    def decode(self, body: bytes) -> tuple[T, Json | None]:
        """The request, and the canonical JSON of what it held beyond the shape.

        Raises BadCall that names the field and the remedy.
        """
        try:
            return self._strict.decode(body), None
        except msgspec.ValidationError as error:
            found = _UNKNOWN.search(str(error))
            if found is None or " - at `" in str(error):
                raise _mendable(error) from None
        except msgspec.DecodeError as error:
            raise _malformed(body, error) from None
        except UnicodeDecodeError as error:
            raise _malformed(body, error) from None
        except RecursionError:
            raise _too_deep() from None
        return self._with_rest(body)

    def _with_rest(self, body: bytes) -> tuple[T, Json | None]:
        try:
            request = self._lenient.decode(body)
        except msgspec.ValidationError as error:
            raise _mendable(error) from None
        except RecursionError:
            raise _too_deep() from None
        whole = msgspec.json.decode(body)
        rest = {name: value for name, value in whole.items() if name not in self._known}
        kept = {name: value for name, value in rest.items() if value is not None}
        return request, canonical(kept) if kept else None


def _malformed(body: bytes, error: Exception) -> BadCall:
    if not body.strip():
        return BadCall("The body is empty; send a JSON object.", code="invalid_json")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as broken:
        return BadCall(
            f"The body is not valid UTF-8 (byte {broken.start}); send JSON encoded as UTF-8.",
            code="invalid_utf8",
        )
    if _has_half_a_pair(body):
        return BadCall(
            "The body holds one half of a surrogate pair (an escape such as \\ud800 alone), which "
            "is not a character; send the whole pair, or the character in UTF-8.",
            code="invalid_json",
        )
    return BadCall(f"The body is not valid JSON: {error}.", code="invalid_json")


def _has_half_a_pair(body: bytes) -> bool:
    """Whether that is all that is wrong with it: Python's own reader takes it."""
    if not _SURROGATE.search(body):
        return False
    try:
        json.loads(body, parse_constant=lambda _: 1 // 0)
    except (ValueError, ArithmeticError, RecursionError):
        return False
    return True


def _too_deep() -> BadCall:
    return BadCall("The body is nested too deeply; send fewer levels.", code="invalid_json")


def _mendable(error: msgspec.ValidationError) -> BadCall:
    """A validation error in the caller's words."""
    text = str(error)
    match = _PATH.match(text)
    what, path = (match["what"], match["path"]) if match else (text, "")
    unknown = _UNKNOWN.search(what)
    if unknown:
        field = f"{path}.{unknown['name']}" if path else unknown["name"]
        return BadCall(f"{field}: this field is not known; leave it out.", param=field,
                       code="unknown_parameter")  # fmt: skip
    modality = _MODALITY.search(what)
    if modality and modality["kind"] in _MODALITIES:
        return BadCall(
            f"{path}: content of type {modality['kind']!r} is not supported; "
            "these models read text only, so send parts of type 'text'.",
            param=path,
            code="unsupported_modality",
        )
    missing = re.search(r"missing required field `([^`]*)`", what)
    if missing:
        field = f"{path}.{missing[1]}" if path else missing[1]
        return BadCall(f"{field} is missing; it is required.", param=field, code="missing_field")
    reason = what.replace("`", "").replace("Expected", "expected", 1)
    if reason.startswith("Invalid enum value"):
        allowed = next((values for end, values in _ALLOWED if path.endswith(end)), "another value")
        reason = f"expected {allowed}, got {reason.removeprefix('Invalid enum value ')}"
    return BadCall(f"{path or 'body'}: {reason}.", param=path or None, code="invalid_value")
