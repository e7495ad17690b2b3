"""Bytes of a model's weights: in memory, by role and by what they are, and in its files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from quant.model.architectures import GROUPS
from quant.runners import Runner, StoredTensor

WEIGHT_FILES = ("*.safetensors", "*.gguf")


def size_breakdown(tensors: list[StoredTensor]) -> list[dict]:
    """Bytes by role, part and dtype, tied storage once: rows of group, role, part, dtype, bytes, tensors."""
    total: Counter[tuple] = Counter()
    count: Counter[tuple] = Counter()
    for held in tensors:
        row = (_group(held.roles), "+".join(held.roles), held.part, held.dtype)
        total[row] += held.bytes
        count[row] += 1
    keys = ("group", "role", "part", "dtype")
    return [{**dict(zip(keys, row, strict=True)), "bytes": total[row], "tensors": count[row]} for row in sorted(total)]


def held_bytes(runner: Runner) -> dict[str, int]:
    """Bytes of the weights in memory by dtype; scales, zeros and codebooks included, tied storage once."""
    total: Counter[str] = Counter()
    for held in runner.tensors():
        total[held.dtype] += held.bytes
    return dict(sorted(total.items()))


def bytes_per_token(tensors: list[StoredTensor]) -> int:
    """Bytes of weights that decoding one token reads: all but embeddings, of which it reads a row, unless they are the head."""
    return sum(held.bytes for held in tensors if held.roles != ("embedding",))


def disk_bytes(folder: Path) -> int:
    """Bytes of the files of weights in a model's folder."""
    return sum(path.stat().st_size for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern))


def _group(roles: tuple[str, ...]) -> str:
    """attention or mlp for the roles of a block, else the first role: a tied head counts as the embedding it is."""
    return next((group for group, members in GROUPS.items() if roles[0] in members), roles[0])
