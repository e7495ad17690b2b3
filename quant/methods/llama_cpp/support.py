"""Architectures and tokenizers that llama.cpp's converter supports, read from its source without running it."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

from quant.errors import InputError
from quant.gguf.library import home
from quant.model.config import open_tokenizer_file, translating_tokenizers
from quant.model.inventory import Inventory

PROBE = "Hello  world's 3 cats,\tand\n\n2026 don't -- naïve ✅ 我想 x=1;  end "


def obstacle(inventory: Inventory, folder: Path) -> str | None:
    """Why llama.cpp can't convert a model: its weights or its tokenizer; None where it can. folder: holds the tokenizer."""
    reason = weights_obstacle(inventory)
    if reason:
        return reason
    if (folder / "tokenizer.model").is_file() or not (folder / "tokenizer.json").is_file():
        return None  # SentencePiece, which it reads; or files that only a conversion can check
    tokenizer = open_tokenizer_file(folder / "tokenizer.json")
    tokens, places = max(tokenizer.get_vocab().values(), default=-1) + 1, inventory.config.get("vocab_size")
    if places is not None and tokens > places:
        return f"the tokenizer has {tokens:,} tokens, the model's vocabulary {places:,}; llama.cpp's converter refuses that"
    is_byte_level = type(tokenizer.model).__name__ == "BPE" and not tokenizer.model.byte_fallback
    with translating_tokenizers(f"{folder}: its tokenizer can't encode a test string"):
        if is_byte_level and not knows_pre_tokenizer(tokenizer) and not splits_like_gpt2(tokenizer):
            return "llama.cpp does not know this BPE tokenizer, and it splits text unlike GPT-2's"
    return None


def weights_obstacle(inventory: Inventory) -> str | None:
    """Why llama.cpp can't convert a model's weights: its architecture, or the name of a tied weight; None where it can."""
    names, head = inventory.config.get("architectures") or [], inventory.head
    if not names:
        return "config.json names no architectures, and llama.cpp's converter needs one"
    if not set(names) & supported_architectures():
        return f"llama.cpp has no architecture for {', '.join(names)}"
    if inventory.architecture.full_name(head.tensor) != head.name:  # the converted file would lack the embedding
        return f"llama.cpp's converter needs the weight of embedding and head as {head.name}, which is stored as {head.tensor}"
    return None


def supported_architectures() -> set[str]:
    """Architectures that the converter supports, by their names in config.json."""
    tree = ast.parse((home() / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "TEXT_MODEL_MAP":
            return set(ast.literal_eval(node.value))
    raise InputError(f"{home()}/conversion has no TEXT_MODEL_MAP; expected llama.cpp of llama-cpp-python 0.3.36 or close to it")


def knows_pre_tokenizer(tokenizer) -> bool:
    """Whether the converter recognizes a BPE tokenizer (tokenizers.Tokenizer), by the hash of its ids for a test string."""
    source = (home() / "conversion" / "base.py").read_text(encoding="utf-8")
    probe = re.search(r"^ +chktxt = ('.*')$", source, re.MULTILINE)
    known = set(re.findall(r'if chkhsh == "([0-9a-f]{64})"', source))
    if probe is None or not known:
        raise InputError(f"{home()}/conversion/base.py has no list of tokenizers; expected llama.cpp of llama-cpp-python 0.3.36 "
                         "or close to it")
    ids = tokenizer.encode(ast.literal_eval(probe[1])).ids
    return hashlib.sha256(str(ids).encode()).hexdigest() in known


def splits_like_gpt2(backend) -> bool:
    """Whether a tokenizers.Tokenizer splits text into words exactly as GPT-2's byte-level BPE does."""
    from tokenizers import pre_tokenizers

    if backend is None or backend.pre_tokenizer is None or backend.normalizer is not None:
        return False
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return backend.pre_tokenizer.pre_tokenize_str(PROBE) == gpt2.pre_tokenize_str(PROBE)
