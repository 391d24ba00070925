"""A model's chat template: messages in, one string out, in a sandbox.

Problem. A template is a program that comes with the weights, in the dialect that Hugging Face made
of Jinja, and it runs on text that strangers wrote.

Choice. The dialect is rebuilt here: trimmed blocks, loop controls, `{% generation %}`,
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML. It runs in Jinja's
immutable sandbox and sees plain JSON values only. What it raises is the caller's to mend
("roles must alternate"), so it becomes a `BadCall` with the template's own words.

Rejected. transformers' apply_chat_template: it would make transformers a dependency of the engine.
Guessing a format for a model without a template: it answers, badly, and nobody learns why.

Price. We follow the dialect by hand; a test renders the same chats with transformers.
Source: transformers' chat_template_utils (conventions only).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from engine.contract import BadCall, Call, Message

GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What a caller's chat_template_kwargs may not replace."""


class BadTemplate(ValueError):
    """The checkpoint's template does not compile."""


class ChatTemplate:
    """One compiled template with the special tokens that it may name (`bos_token`, …)."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._has_developer = "developer" in source
        try:
            self._template = _environment(now).from_string(source)
        except TemplateSyntaxError as error:
            raise BadTemplate(f"chat template, line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise BadTemplate("chat template: nests too deeply") from error

    def context(self, call: Call) -> dict[str, Any]:
        """The caller's part of what the template sees, as plain JSON values."""
        kwargs = json.loads(call.chat_template_kwargs or "{}")
        taken = GIVEN.union(self._special_tokens).intersection(kwargs)
        if taken:
            raise BadCall(
                f"chat_template_kwargs may not set {', '.join(sorted(taken))}; remove it.",
                param="chat_template_kwargs",
            )
        messages = [self._message(at, message) for at, message in enumerate(call.messages)]
        return {**kwargs, "messages": messages}

    def render(self, context: Mapping[str, Any]) -> str:
        """The prompt, ending where the assistant begins to speak."""
        try:
            return self._template.render(
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
                **context,
            )
        except TemplateError as error:
            raise BadCall(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except (TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError) as error:
            raise BadCall(
                f"The model's chat template cannot render these messages ({error}); it expects "
                "plain text contents and the usual roles.",
                param="messages",
            ) from error

    def _message(self, at: int, message: Message) -> dict[str, Any]:
        """One message as templates expect it: content is a string, arguments are an object."""
        for part in message.parts:
            if part.kind != "text":
                raise BadCall(
                    f"This model reads text only; remove the {part.kind!r} part or ask a model "
                    "that accepts it.",
                    param=f"messages[{at}].content",
                )
        # Most templates know no developer; OpenAI treats the two as one.
        is_system = message.role == "developer" and not self._has_developer
        out: dict[str, Any] = {"role": "system" if is_system else message.role}
        out["content"] = message.text
        if message.name is not None:
            out["name"] = message.name
        if message.tool_call_id is not None:
            out["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            out["tool_calls"] = [
                {
                    "id": made.id,
                    "type": "function",
                    "function": {"name": made.name, "arguments": _arguments(made.arguments)},
                }
                for made in message.tool_calls
            ]
        return out


def load_template(
    directory: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a checkpoint: its own file, else tokenizer_config's string or list. Raises
    BadTemplate with the file and what to do."""
    file = directory / "chat_template.jinja"
    if not file.is_file():
        file = directory / "tokenizer_config.json"
    try:
        source = _in_config(config) if file.suffix == ".json" else file.read_text(encoding="utf-8")
        return None if source is None else ChatTemplate(source, special_tokens)
    except (BadTemplate, UnicodeDecodeError) as error:
        raise BadTemplate(
            f"{file}: {error}; mend the template or download the file again"
        ) from error


def _in_config(config: Mapping[str, Any]) -> str | None:
    found = config.get("chat_template")
    if isinstance(found, list):
        try:
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        except (TypeError, KeyError) as error:
            raise BadTemplate('chat_template: a list must hold {"name", "template"}') from error
    return found if isinstance(found, str) else None


def _arguments(text: str) -> Any:
    """A tool call's arguments: an object where they are JSON, else as the model wrote them."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: now().strftime(form),
        namespace=_PlainNamespace,
    )
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what training learns from; here it is text."""

    tags = {"generation"}  # noqa: RUF012 — read by jinja under this name, never changed

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """Jinja's `namespace`, without names that reach into Python's objects."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise TemplateError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)
