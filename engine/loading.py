"""A Hugging Face directory → a config, and a decoder that computes.

    config.json                          architecture and sizes
    generation_config.json               end tokens and sampling defaults (optional)
    model.safetensors                    weights, or
    model.safetensors.index.json         … which of several files holds which tensor
    tokenizer.json, tokenizer_config.json, chat_template.*   for text.py

Only safetensors are read (a pickle runs code when opened) and no code from the directory is ever
executed. `read_checkpoint` looks at everything but the numbers, so a broken directory is refused
before memory is spent; `load_decoder` reads one tensor at a time from the mapped files.

Loading is strict on purpose: a tensor that is missing, left over or of another shape means that
the config and the weights do not belong together, and a model that runs anyway answers nonsense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.kernels.linear import linear
from engine.models import llama, mistral, qwen2, qwen3
from engine.models.config import BadValue, DecoderConfig, Raw, Unsupported
from engine.models.decoder import Decoder
from engine.models.weights import Layout, assemble, tensor_shapes
from engine.sequence import SamplingParams

FAMILIES: dict[str, Callable[[Raw], DecoderConfig]] = {
    "LlamaForCausalLM": llama.configure,
    "MistralForCausalLM": mistral.configure,
    "Qwen2ForCausalLM": qwen2.configure,
    "Qwen3ForCausalLM": qwen3.configure,
}

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FINGERPRINTED = ("*.safetensors", "*.json", "chat_template*")


class LoadError(Exception):
    """Why a checkpoint cannot be served, with the remedy.

    LoadError
    ├── MissingFile       the directory, or a file that it must have
    ├── BrokenFile        a file that is there and cannot be parsed, or is cut short
    ├── UnsupportedModel  an architecture or feature that the engine does not compute
    ├── BadConfig         a value that is missing or impossible
    └── BadTensors        weights that do not fit the config
    """


class MissingFile(LoadError):
    pass


class BrokenFile(LoadError):
    pass


class UnsupportedModel(LoadError):
    pass


class BadConfig(LoadError):
    pass


class BadTensors(LoadError):
    pass


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that has been looked through and can be loaded."""

    directory: Path
    config: DecoderConfig
    eos: tuple[int, ...]
    """Every token that ends an answer."""
    defaults: SamplingParams
    """What applies to a call that does not say: generation_config.json, else greedy."""
    files: dict[str, Path]
    """Which file holds which tensor."""
    dtype: torch.dtype
    """What the weights are stored in."""


def read_checkpoint(directory: Path, *, context: int | None = None) -> Checkpoint:
    """Look through `directory` without reading weights. Raises LoadError.

    `context` lowers the context length (never raises it): less memory for keys and values, and a
    model whose sliding window begins beyond it can be served.
    """
    if not directory.is_dir():
        raise MissingFile(f"{directory}: no such directory; give the path of a checkpoint")
    raw = _read_json(directory / CONFIG)
    config = read_config(_lower_context(raw, context), where=directory / CONFIG)
    generation = _read_json(directory / GENERATION) if (directory / GENERATION).exists() else {}
    where = _find_tensors(directory)
    files, dtype = _check_tensors(directory, config, where)
    try:
        eos, defaults = _eos(raw, generation, config), _defaults(generation)
    except BadValue as error:
        raise BadConfig(f"{directory / GENERATION}: {error}") from error
    return Checkpoint(directory, config, eos, defaults, files, dtype)


def read_config(raw: Raw, *, where: Path = Path(CONFIG)) -> DecoderConfig:
    """A parsed config.json → what to build. Raises UnsupportedModel or BadConfig."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModel(
            f"{where}: architecture {name!r} is not supported; use a model of one of "
            f"{', '.join(FAMILIES)}, or serve it through an OpenAI-compatible server"
        )
    try:
        return family(raw)
    except Unsupported as error:
        raise UnsupportedModel(
            f"{where}: the model uses {error}, which the engine does not compute; use another "
            "model, or serve this one through an OpenAI-compatible server"
        ) from error
    except (BadValue, RecursionError) as error:  # nested so deeply that it cannot be printed
        raise BadConfig(
            f"{where}: {error}; mend the file or download the checkpoint again"
        ) from error


def load_decoder(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    product: Layout = linear,
) -> Decoder:
    """Read the weights, converted to `dtype`, to the CPU or `device`; `product` lays them out.
    Raises BrokenFile on a file cut short."""
    with _OpenFiles(dtype, device) as files:
        return Decoder(
            checkpoint.config,
            assemble(
                checkpoint.config,
                lambda name: files.read(checkpoint.files[name], name),
                product,
            ),
        )


def dummy_decoder(
    config: DecoderConfig,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    product: Layout = linear,
) -> Decoder:
    """Random weights of a given shape, made on the device: as fast as real ones, for measuring
    without a checkpoint."""
    shapes = tensor_shapes(config)
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)

    def read(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=device)
        noise = torch.randn(shape, generator=generator, device=device)
        return noise.mul_(shape[-1] ** -0.5).to(dtype)

    return Decoder(config, assemble(config, read, product))


def fingerprint(directory: Path) -> str:
    """32 hex digits that name weights, config and tokenizer by their content (BLAKE2b).
    Part of every cache key: an answer never outlives the weights that gave it. About 1 GB/s."""
    digest = hashlib.blake2b(digest_size=16)
    files = {path for pattern in FINGERPRINTED for path in directory.glob(pattern)}
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, hashlib.blake2b).digest()
        digest.update(f"{len(path.name)}:{path.name}".encode() + content)
    return digest.hexdigest()


# --------------------------------------------------------------------------- the JSON files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(
            f"{path}: missing; a checkpoint is a Hugging Face directory with {CONFIG}, "
            f"tokenizer.json and {WEIGHTS}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenFile(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise BrokenFile(f"{path}: holds {type(value).__name__}, not an object; download it again")
    return value


def _lower_context(raw: dict[str, Any], context: int | None) -> dict[str, Any]:
    longest = raw.get("max_position_embeddings")
    if context is None or not isinstance(longest, int):
        return raw
    if not 1 <= context <= longest:
        raise BadConfig(f"context length {context} must be from 1 to the model's own, {longest}")
    return {**_keep_original_context(raw, longest), "max_position_embeddings": context}


def _keep_original_context(raw: dict[str, Any], longest: int) -> dict[str, Any]:
    """llama3 scaling falls back to the model's own length, which lowering must not change."""
    changed = dict(raw)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(scaling := raw.get(key), dict):
            changed[key] = {"original_max_position_embeddings": longest, **scaling}
    return changed


def _eos(raw: Raw, generation: Raw, config: DecoderConfig) -> tuple[int, ...]:
    """Both files may name one id or a list; published models disagree: every one ends."""
    found: list[int] = []
    for value in (generation.get("eos_token_id"), raw.get("eos_token_id")):
        found += value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and 0 <= token < config.vocab for token in found):
        raise BadValue(f'"eos_token_id" must be token ids below {config.vocab}, not {found}')
    return tuple(dict.fromkeys(found))


def _defaults(generation: Raw) -> SamplingParams:
    """transformers samples only with `do_sample`; without it its other settings mean nothing."""
    penalty = _setting(generation, "repetition_penalty", 1.0, 0.01, 100.0)
    if not generation.get("do_sample", False):
        return SamplingParams(repetition_penalty=penalty)
    return SamplingParams(
        temperature=_setting(generation, "temperature", 1.0, 0.0, 100.0),
        top_p=_setting(generation, "top_p", 1.0, 1e-6, 1.0),
        top_k=int(_setting(generation, "top_k", 0, 0, 1e9)),
        min_p=_setting(generation, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=penalty,
    )


def _setting(raw: Raw, key: str, default: float, low: float, high: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or not low <= value <= high:
        raise BadValue(f'"{key}" must be from {low} to {high}, not {value!r}')
    return float(value)


# --------------------------------------------------------------------------- the weights


def _find_tensors(directory: Path) -> list[Path]:
    """The safetensors files of a directory: one, or those that the index names."""
    single, index = directory / WEIGHTS, directory / INDEX
    if index.exists():
        where = _read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise BrokenFile(f'{index}: has no "weight_map"; download it again')
        paths = [directory / Path(str(name)).name for name in sorted(set(where.values()))]
    elif not single.exists() and (any(directory.glob("*.bin")) or any(directory.glob("*.pt"))):
        raise MissingFile(
            f"{directory}: has pickled weights only, which run code when opened and are never "
            "read; convert them to safetensors (save_pretrained does)"
        )
    else:
        paths = [single]
    for path in paths:
        if not path.exists():
            raise MissingFile(f"{path}: missing; download the checkpoint again")
    return paths


def _check_tensors(
    directory: Path, config: DecoderConfig, paths: list[Path]
) -> tuple[dict[str, Path], torch.dtype]:
    expected = tensor_shapes(config)
    files: dict[str, Path] = {}
    wrong: list[str] = []
    dtype = torch.float32
    for path, name, shape, kind in _headers(paths):
        files[name] = path
        if name in expected and shape != expected[name]:
            wrong.append(f"{name} has shape {list(shape)}, not {list(expected[name])}")
        if name == "model.embed_tokens.weight":
            dtype = _DTYPES.get(kind, torch.float32)
        if name in expected and kind not in _DTYPES:
            wrong.append(f"{name} is stored as {kind}, which is not a float type")
    wrong += [f"{name} is missing" for name in expected if name not in files]
    wrong += [f"{name} is not expected" for name in files if not _known(name, expected, config)]
    if wrong:
        raise BadTensors(_describe(directory, wrong))
    return {name: files[name] for name in expected}, dtype


_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _known(name: str, expected: dict[str, tuple[int, ...]], config: DecoderConfig) -> bool:
    """Old checkpoints carry the rotary table, and tied ones the head that equals the embedding."""
    if name in expected or name.endswith("rotary_emb.inv_freq"):
        return True
    return config.tied and name == "lm_head.weight"


def _describe(directory: Path, wrong: list[str]) -> str:
    shown = "; ".join(wrong[:4])
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return (
        f"{directory}: the weights do not fit {CONFIG}: {shown}{more}; the files are of different "
        "models or a download is incomplete: get the whole checkpoint again"
    )


def _headers(paths: list[Path]) -> Iterator[tuple[Path, str, tuple[int, ...], str]]:
    """File, name, shape and type of every tensor, from the files' headers alone."""
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                slices = [file.get_slice(name) for name in names]
                found = [(s.get_shape(), s.get_dtype()) for s in slices]
        except (SafetensorError, OSError) as error:
            raise BrokenFile(_cut_short(path, error)) from error
        for name, (shape, kind) in zip(names, found, strict=True):
            yield path, name, tuple(shape), kind


def _cut_short(path: Path, error: Exception) -> str:
    return f"{path}: not a whole safetensors file ({error}); download it again"


class _OpenFiles:
    """Mapped safetensors files, opened when first read from."""

    def __init__(self, dtype: torch.dtype, device: torch.device | None = None) -> None:
        self._dtype = dtype
        self._device = device
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)

    def read(self, path: Path, name: str) -> Tensor:
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BrokenFile(_cut_short(path, error)) from error
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)
