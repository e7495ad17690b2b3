"""A checkpoint larger than the memory allowed is quantized within it, and what that takes is told beforehand."""

import json
import re
import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT

from quant.errors import InputError
from quant.files import sha256_of
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.tensor.scheme import Scheme

HIDDEN, INTERMEDIATE, LAYERS, SHARDS = 2048, 8192, 5, 4
LARGEST = INTERMEDIATE * HIDDEN * 4

CHILD = """
import re, sys
from pathlib import Path
from quant.model.artifact import write_artifact
from quant.tensor.scheme import Scheme
from quant.model.recipe import Recipe
import torch
torch.ones(2**20).add_(1).sum()  # torch's own threads belong to the imports
def peak():  # of this process alone, in bytes
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
write_artifact(Path(sys.argv[1]), Recipe.from_dict(eval(sys.argv[3]), Scheme()), Path(sys.argv[2]))
print(peak() - before)
"""


def sparse_llama(folder: Path) -> int:
    """A Llama of several shards whose weights are all zero, in files that take no room on the disk; its size in bytes."""
    shapes = {"model.embed_tokens.weight": (INTERMEDIATE, HIDDEN), "lm_head.weight": (INTERMEDIATE, HIDDEN)}
    for i in range(LAYERS):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{role}_proj.weight": (HIDDEN, HIDDEN) for role in "qkvo"}
        shapes |= {f"{block}.mlp.{role}_proj.weight": (INTERMEDIATE, HIDDEN) for role in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE), f"{block}.input_layernorm.weight": (HIDDEN,)}
    names, places, total = list(shapes), {}, 0
    for shard in range(SHARDS):
        header, offset = {}, 0
        for name in names[shard::SHARDS]:
            size = 4
            for n in shapes[name]:
                size *= n
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [offset, offset + size]}
            offset += size
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + offset)
        places |= dict.fromkeys(names[shard::SHARDS], file)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of a process is read from /proc")
@pytest.mark.parametrize("recipe", [
    {"include": ["*"]},
    {"bits": 4, "group_size": 64, "codebook": "nf4", "double_quant": True, "blocks": [0]},
], ids=["int8", "nf4"])  # fmt: skip
def test_the_peak_memory_depends_on_the_largest_tensor_only(tmp_path, recipe):
    total = sparse_llama(tmp_path)
    bound = 2.5 * LARGEST + 400e6
    assert total > 2 * bound
    child = subprocess.run([sys.executable, "-c", CHILD, tmp_path, tmp_path / "out", repr(recipe)], cwd=ROOT, text=True,
                           capture_output=True, check=True)
    assert int(child.stdout) < bound


def test_what_it_takes_is_told_before(make_model, tmp_path):
    lines = []
    write_artifact(make_model("llama"), Recipe.from_dict({"include": ["*"]}, Scheme()), tmp_path / "out", tell=lines.append)
    assert len(lines) == 1 and re.fullmatch(
        r"reads \d+ MB, writes \d+ MB \([\d,]+ MB free\), needs \d+ MB of memory and about \d+ s", lines[0])


def test_a_disk_too_small_is_refused_before_anything_is_written(make_model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match=r"out needs 0 MB and its disk has 0 MB free; free some space or choose fewer bits"):
        write_artifact(make_model("llama"), Recipe.from_dict({}, Scheme()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_killed_and_run_again_it_gives_the_same_bytes(make_model, tmp_path):
    """A killed run leaves a partial folder beside the place of the artifact; the next run takes no notice of it."""
    recipe = Recipe.from_dict({}, Scheme())
    write_artifact(make_model("llama"), recipe, tmp_path / "whole")
    leftover = tmp_path / ".again.0123abcd.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    write_artifact(make_model("llama"), recipe, tmp_path / "again")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all(sha256_of(tmp_path / "whole" / name) == sha256_of(tmp_path / "again" / name) for name in files)
    assert not leftover.exists()
