"""Text to tokens and tokens to bytes, for one model.

Two problems are solved here; template.py renders, stream.py puts bytes together again.

**A user must not be able to write `<|im_end|>`.** A chat is rendered to one string and tokenised,
and a tokenizer turns every special token's name into that token, whoever wrote it. So the caller
could end his turn and speak as the system. What a caller wrote must come out as plain text.

Choice. Before rendering, each special token's name inside the caller's strings is replaced by an
unguessable code word. After rendering, the names that are left are the template's own: each becomes
an alias, a token that only a copy of the tokenizer knows; then the code words turn back. That copy
reads special names as plain text. Its aliases split the text exactly where the real tokens would,
with their flags, so everything between them is tokenised as transformers does it (tested).

    "<|im_start|>user⏎ say <|im_end|><|im_end|>"     rendered, the first <|im_end|> is the caller's
    "«alias 1»user⏎ say <|im_end|>«alias 2»"         what the copy tokenises

Rejected. Tokenising the pieces between special tokens one by one: metaspace tokenizers treat the
first piece of a text differently. Placeholders for whole contents: templates trim, split and test
contents. Deleting the names: a caller may have reason to talk about `<|im_end|>`.

Price. A second tokenizer in memory (30 MB at 150k entries) and one regex pass. Names of added
tokens that are not special (`<think>`) stay tokens, as in transformers. A name that the template
and the caller make together ("<" + "|im_end|>") is not recognised; no known template does it.

**A token's bytes.** A token is bytes, not text: half an emoji is a token. From the tokenizer's
decoder we derive each token's bytes once, on first use; the rest is incremental UTF-8 (stream.py).
Rejected: `DecodeStream` and vLLM's prefix-offset: they decode a window of tokens at each step, hold
back text that rightly ends in "�", and say nothing about the bytes, which logprobs must report.
Price: a decoder of an unknown kind is refused at load; one deviation from `decode`, below.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from engine.contract import BadCall, Call
from engine.sequence import Tokens
from engine.template import ChatTemplate, load_template

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class BadTokenizer(ValueError):
    """The checkpoint's tokenizer is missing or of a kind that we cannot read."""


class Text:
    """One model's tokenizer. Thread-safe: encoding is done in threads, bytes on the engine's."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, *, eos: str | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._guarded = _Guarded(tokenizer)
        self.pieces = Pieces(tokenizer)
        self.eos = None if eos is None else self.id_of(eos)
        """The tokenizer's own end token; generation_config.json may name more, or others."""
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.longest_token = max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
        """In characters of a prompt, at most."""

    @classmethod
    def load(cls, directory: Path) -> Text:
        """Read tokenizer.json, tokenizer_config.json and the template of a checkpoint."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise BadTokenizer(
                f"{directory} has no tokenizer.json; convert the tokenizer with transformers' "
                "AutoTokenizer.from_pretrained(…).save_pretrained(…)."
            )
        config = _read_json(directory / "tokenizer_config.json")
        names = _named_tokens(directory, config)
        template = load_template(directory, config, names)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise BadTokenizer(f"{file}: {error}; download it again") from error
        return cls(tokenizer, template, eos=names.get("eos_token"))

    def encode(self, call: Call) -> Tokens:
        """The call's prompt as token ids, int32 [num_prompt]. Raises BadCall."""
        try:
            return np.array(self._ids(call), dtype=np.int32)
        except (TypeError, UnicodeEncodeError) as error:
            raise BadCall(
                "The text is not valid Unicode (it holds one half of a surrogate pair, such as "
                "\\ud800); send whole characters.",
                param="messages" if call.kind == "chat" else "prompt",
            ) from error

    def id_of(self, token: str) -> int | None:
        """The id of a token's name, such as "</s>"."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def _ids(self, call: Call) -> Iterable[int]:
        if call.kind == "chat":
            return self._chat(call)
        if not isinstance(call.prompt, str):
            return call.prompt
        # A raw prompt is the caller's own template: special names in it are tokens.
        ids: list[int] = self._tokenizer.encode(call.prompt).ids
        return ids

    def _chat(self, call: Call) -> list[int]:
        if self._template is None:
            raise BadCall(
                "This model has no chat template; use /v1/completions, or put a "
                "chat_template.jinja into its directory.",
                param="messages",
            )
        context = self._guarded.disguise(self._template.context(call))
        return self._guarded.encode(self._template.render(context))


class _Guarded:
    """Tokenises rendered chats in which only the template may name special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        specials = _specials(tokenizer)
        nonce = secrets.token_hex(8)
        # Letters and digits only: a code word must survive whatever a template does to text.
        self._code = {name: f"x{nonce}n{at}x" for at, name in enumerate(specials)}
        self._alias = {name: f"\ue000{nonce}:{at}\ue001" for at, name in enumerate(specials)}
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [_renamed(token, self._alias[name]) for name, token in specials.items()]
        )
        self._real = {
            _id(self._tokenizer, self._alias[name]): _id(tokenizer, name) for name in specials
        }
        self._names = _any_of(specials)
        self._codes = _any_of(self._code.values())
        self._name_of = {code: name for name, code in self._code.items()}

    def disguise(self, value: Any) -> Any:
        """`value` with every special name in its strings (keys too) as a code word."""
        if isinstance(value, str):
            return self._names.sub(lambda found: self._code[found[0]], value)
        if isinstance(value, dict):
            return {self.disguise(key): self.disguise(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.disguise(item) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        aliased = self._names.sub(lambda found: self._alias[found[0]], rendered)
        plain = self._codes.sub(lambda found: self._name_of[found[0]], aliased)
        real = self._real
        ids = self._tokenizer.encode(plain, add_special_tokens=False).ids
        return [real.get(token, token) for token in ids]


@dataclass(frozen=True, slots=True)
class _Decoding:
    """What a tokenizer's decoder does, as steps on a single token and on the text's beginning."""

    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    first_drops: str = ""
    """This character is dropped from the first token of a text (metaspace)."""
    strip: int = 0
    """This many spaces are stripped from the beginning of a text (sentencepiece)."""
    spaced: bool = False
    """No decoder at all: tokens are joined by spaces."""


class Pieces:
    """The bytes of each token of one vocabulary, memoised.

    Joined and decoded as UTF-8 they equal `Tokenizer.decode(ids, skip_special_tokens=True)`, but
    for one case: where a sentencepiece byte run is not valid UTF-8 as a whole, `decode` replaces
    all of its bytes, even those of whole characters, which a stream has already sent.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._how = _decoding(json.loads(tokenizer.to_str())["decoder"])
        self._special = {_id(tokenizer, name): name.encode() for name in _specials(tokenizer)}
        self._bytes: dict[int, bytes] = {}
        self.strip = self._how.strip

    def special(self, token: int) -> bool:
        """Whether the token is never part of an answer's text."""
        return token in self._special

    def text_bytes(self, token: int, *, first: bool = False) -> bytes:
        """What the token adds to an answer's text: nothing where it is special or unknown.

        `first`: it begins a text of its own, rather than going on with a prompt's.
        """
        if token in self._special:
            return b""
        if first and (self._how.first_drops or self._how.spaced):
            return self._first(token)
        return self._plain(token)

    def own_bytes(self, token: int) -> bytes:
        """What the token is, special or not: for logprobs."""
        return self._special.get(token) or self._plain(token)

    def _plain(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._derive(self._tokenizer.id_to_token(token))
        return found

    def _first(self, token: int) -> bytes:
        if self._how.spaced:
            return self._plain(token).removeprefix(b" ")
        name = self._tokenizer.id_to_token(token)
        return self._derive(name and name.replace(self._how.first_drops, ""))

    def _derive(self, name: str | None) -> bytes:
        how = self._how
        if name is None:
            return b""
        if how.byte_level:
            return _unmap(name)
        if how.byte_fallback and (found := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(found[1], 16)])
        for old, new in how.replace:
            name = name.replace(old, new)
        return (" " + name if how.spaced else name).encode()


def _decoding(config: Mapping[str, Any] | None) -> _Decoding:
    """Read the `decoder` of a tokenizer.json."""
    if config is None:
        return _Decoding(spaced=True)
    steps = config["decoders"] if config["type"] == "Sequence" else [config]
    found: dict[str, Any] = {"replace": ()}
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            found["byte_level"] = True
        elif kind == "ByteFallback":
            found["byte_fallback"] = True
        elif kind == "Replace" and "String" in step["pattern"]:
            found["replace"] += ((step["pattern"]["String"], step["content"]),)
        elif kind == "Metaspace":
            found["replace"] += ((step["replacement"], " "),)
            found["first_drops"] = _drops(step)
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0:
            found["strip"] = step["start"]
        elif kind != "Fuse":
            raise BadTokenizer(f"tokenizer.json: cannot read a decoder step like {step}")
    return _Decoding(**found)


def _drops(metaspace: Mapping[str, Any]) -> str:
    return "" if metaspace.get("prepend_scheme") == "never" else str(metaspace["replacement"])


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 is itself, the rest counts up."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    stand_ins = {chr(256 + at): byte for at, byte in enumerate(others)}
    return {chr(byte): byte for byte in own} | stand_ins


_BYTE_OF = _byte_alphabet()


def _unmap(name: str) -> bytes:
    """A byte-level token's bytes; an added token with other characters stands for itself."""
    try:
        return bytes([_BYTE_OF[char] for char in name])
    except KeyError:
        return name.encode()


def _specials(tokenizer: Tokenizer) -> dict[str, AddedToken]:
    added = tokenizer.get_added_tokens_decoder().values()
    return {token.content: token for token in added if token.special}


def _id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    assert found is not None, f"{name!r} was added to the tokenizer"
    return int(found)


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(name, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the words that stands at a place; nothing when there are none.

    Alternatives are nested by their common beginnings. Side by side, the thousand control tokens of
    some models are all tried at each "<" or "[" of a text: 59 ms for 100 KB of HTML, nested 0.5.
    """
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_nested(root) or r"(?!)")


def _nested(node: Mapping[str, Any]) -> str:
    rest = [re.escape(char) + _nested(below) for char, below in node.items() if char]
    if not rest:
        return ""
    return f"(?:{'|'.join(rest)}){'?' * ('' in node)}"


def _named_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its like, as tokenizer_config.json and special_tokens_map.json name them."""
    named = {**_read_json(directory / "special_tokens_map.json"), **config}
    tokens = {key: value for key, value in named.items() if key.endswith("_token")}
    texts = {key: v["content"] if isinstance(v, dict) else v for key, v in tokens.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadTokenizer(f"{path} is not JSON: {error}; download it again") from error
    except RecursionError as error:
        raise BadTokenizer(f"{path} nests too deeply; download it again") from error
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path} must hold a JSON object; download it again")
    return value
