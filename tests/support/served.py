"""What the end-to-end tests are served by: the bundled models, or tiny random ones in their place.

The tests state what holds for any model (greedy answers repeat, a stream says what JSON says), so
that they run before the bundled models are there and without them. Random models talk nonsense,
break characters in the middle and seldom stop, which is a harder customer for a server than sense.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.checkpoints import make_checkpoint
from tests.support.program import ROOT

BUNDLED = ROOT / "demo"
ALICE, BOB, LIMITED, SHARED = "sk-alice", "sk-bob", "sk-limited", "sk-shared"
LEFT, RIGHT = "sk-left", "sk-right"
"""Keys of the tenants below. A caller without a key is the tenant "default"."""
MAX_BODY_BYTES = 1 << 20
MAX_RUNNING = 8
"""Few, so that more callers than that have to queue."""

# float32: in bf16 an answer may depend, by rounding, on who shares its batch and on how much of its
# prompt was in the prefix tree, and the tests compare answers that were computed in company with
# answers that were computed alone.

_SETTINGS = """
[server]
port = 0
body_timeout_s = 8.0
head_timeout_s = 20.0
max_body_bytes = {max_body_bytes}
shutdown_grace_s = 20.0

[models.small]
path = "{small}"
dtype = "float32"
price_in = 0.05
price_out = 0.20

[models.large]
path = "{large}"
dtype = "float32"
price_in = 0.50
price_out = 2.00

[engine]
threads = 1
kv_memory_mib = {kv_memory_mib}
max_running = {max_running}

[cache.semantic]
enabled = false
store = "memory://"

[logs]
level = "info"
format = "json"

[[tenants]]
name = "default"

[[tenants]]
name = "alice"
keys = ["{alice}"]
aliases = {{ "gpt-4o" = "large" }}

[[tenants]]
name = "bob"
keys = ["{bob}"]
models = ["small"]

[[tenants]]
name = "limited"
keys = ["{limited}"]
rpm = 1

[[tenants]]
name = "shared"
keys = ["{shared}"]
cache_scope = "user"

[[tenants]]
name = "left"
keys = ["{left}"]
cache_scope = "group:pair"

[[tenants]]
name = "right"
keys = ["{right}"]
cache_scope = "group:pair"
"""


@dataclass(frozen=True, slots=True)
class Models:
    """Two checkpoint directories. `bundled`: they answer in English."""

    small: Path
    large: Path
    bundled: bool

    @property
    def what(self) -> str:
        return "the bundled models" if self.bundled else "tiny random checkpoints"

    @property
    def settings(self) -> str:
        """A sluice.toml that serves them to several tenants."""
        return _SETTINGS.format(
            small=self.small,
            large=self.large,
            kv_memory_mib=192 if self.bundled else 4,
            max_running=MAX_RUNNING,
            max_body_bytes=MAX_BODY_BYTES,
            alice=_hash(ALICE),
            bob=_hash(BOB),
            limited=_hash(LIMITED),
            shared=_hash(SHARED),
            left=_hash(LEFT),
            right=_hash(RIGHT),
        )

    def never_stops(self) -> dict[str, int]:
        """A logit_bias with which neither model ends its answer by itself."""
        ids = set()
        for directory in (self.small, self.large):
            generation = json.loads((directory / "generation_config.json").read_text("utf-8"))
            ends = generation["eos_token_id"]
            ids.update(ends if isinstance(ends, list) else [ends])
        return {str(token): -100 for token in sorted(ids)}

    def long(self, text: str, tokens: int = 400, **more: Any) -> dict[str, Any]:
        """A chat whose answer takes seconds: `tokens` of them, not one less."""
        never = {"logit_bias": self.never_stops(), "max_tokens": tokens}
        return chat(text, **{**never, **more})


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A chat of one question with a short answer."""
    messages = [{"role": "user", "content": text}]
    return {"model": "small", "messages": messages, "max_tokens": 12, **more}


def find_models(directory: Path) -> Models:
    """The bundled models where they are trained, else tiny ones made in `directory`.
    E2E_MODELS=tiny takes the tiny ones in any case."""
    trained = all(list((BUNDLED / n).glob("model*.safetensors")) for n in ("small", "large"))
    if trained and os.environ.get("E2E_MODELS") != "tiny":
        return Models(BUNDLED / "small", BUNDLED / "large", bundled=True)
    small = make_checkpoint(directory / "small", "llama", seed=1, context=2048)
    large = make_checkpoint(directory / "large", "qwen3", seed=2, context=2048, layers=3)
    return Models(small, large, bundled=False)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
