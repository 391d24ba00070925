"""Small tokenizers of the kinds that real checkpoints have, trained on the spot."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TRAINING = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there! It's 42 degrees.\n",
    "Grüße aus Zürich: naïve café, déjà vu. 你好，世界！你好吗？ привет мир 😀😃🎉 done.\n",
]
KINDS = ("byte_level", "fallback", "legacy", "metaspace")


@functools.cache
def make_tokenizer(kind: str) -> Tokenizer:
    """byte_level: GPT-2, Llama 3, Qwen. fallback: Mistral, Gemma. legacy: Llama 2, whose normalizer
    writes the first space. metaspace: sentencepiece's own decoder, without bytes."""
    tokenizer, alphabet = _empty(kind)
    trainer = BpeTrainer(
        vocab_size=700,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIALS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    if kind in ("fallback", "legacy"):
        trainer.special_tokens = [
            *trainer.special_tokens,
            *(AddedToken(f"<0x{byte:02X}>", special=True) for byte in range(256)),
        ]
    tokenizer.train_from_iterator(TRAINING * 5, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _without_special_bytes(tokenizer)


def _empty(kind: str) -> tuple[Tokenizer, list[str]]:
    spaces = decoders.Replace("▁", " ")
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        return tokenizer, []
    if kind == "fallback":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer, []


def _without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Byte tokens are ordinary entries in real vocabularies: they were special only to train."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(state))
