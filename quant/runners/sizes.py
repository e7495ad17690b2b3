"""Bytes of a model's weights: in memory by role and part, and in its files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from quant.model.architectures import GROUPS
from quant.runners import Runner, StoredTensor

WEIGHT_FILES = ("*.safetensors", "*.gguf")


def size_breakdown(tensors: list[StoredTensor]) -> list[dict]:
    """Bytes in memory as rows with the keys group, role, part, dtype, bytes and tensors (their number); see StoredTensor."""
    total: Counter[tuple] = Counter()
    count: Counter[tuple] = Counter()
    for tensor in tensors:
        row = (_group(tensor.roles), "+".join(tensor.roles), tensor.part, tensor.dtype)
        total[row] += tensor.bytes
        count[row] += 1
    keys = ("group", "role", "part", "dtype")
    return [{**dict(zip(keys, row, strict=True)), "bytes": total[row], "tensors": count[row]} for row in sorted(total)]


def held_bytes(runner: Runner) -> dict[str, int]:
    """Bytes of the weights in memory by dtype, including scales, zeros and codebooks; shared storage is counted once."""
    total: Counter[str] = Counter()
    for tensor in runner.tensors():
        total[tensor.dtype] += tensor.bytes
    return dict(sorted(total.items()))


def bytes_per_token(tensors: list[StoredTensor]) -> int:
    """Bytes of weights read to decode one token: all except an embedding (one row is read), unless it is also the head."""
    return sum(tensor.bytes for tensor in tensors if tensor.roles != ("embedding",))


def disk_bytes(folder: Path) -> int:
    """Bytes of the weight files in a model's folder."""
    return sum(path.stat().st_size for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern))


def _group(roles: tuple[str, ...]) -> str:
    """attention or mlp for roles of a block, else the first role: a tied head counts as embedding."""
    return next((group for group, members in GROUPS.items() if roles[0] in members), roles[0])
