"""Other projects' quantizers: what a row may ask, what is taken over and each package for real where it is installed."""

import json
import sys

import pytest
import torch
from conftest import EMBEDDED, preparation

from quant.benches.peers import ROWS
from quant.benches.peers_study import compared, draw
from quant.benches.study import keep
from quant.errors import InputError
from quant.methods import load
from quant.methods.peers.environment import VARIABLE, missing
from quant.methods.peers.imported import as_asked, qtensor_of
from quant.methods.peers.spec import PACKAGES, Spec
from quant.model.checkpoint import Checkpoint
from quant.model.selection import select
from quant.report.readme import quantizers_table
from quant.runners import open_runner
from quant.tensor.qtensor import dequantize
from quant.variants import variant

PEERS = load("peers")
SMALLEST = {  # the fastest row of each package, and one for each algorithm
    "hqq": {"package": "hqq", "bits": 3}, "torchao": {"package": "torchao", "bits": 4},
    "torchao symmetric": {"package": "torchao", "bits": 8, "symmetric": True, "group_size": "row"},
    "quanto": {"package": "quanto", "bits": 4}, "quanto 8": {"package": "quanto", "bits": 8, "group_size": "row"},
    "gptq": {"package": "llmcompressor", "bits": 3}, "awq": {"package": "llmcompressor", "algorithm": "awq", "bits": 4},
    "auto-round": {"package": "auto_round", "bits": 2, "iterations": 1},
    "gptqmodel": {"package": "gptqmodel", "bits": 3, "symmetric": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    PEERS.prepare(preparation(EMBEDDED, folder / "text", []), folder / "prepared")
    return folder / "prepared"


@pytest.mark.parametrize(("row", "message"), [
    ({}, "needs a package"), ({"package": "gptq"}, "package is 'gptq'; expected one of hqq"),
    ({"package": "hqq", "bits": 5}, "bits is 5; hqq has 2, 3, 4, 8"),
    ({"package": "hqq", "symmetric": True}, "hqq has asymmetric steps only"),
    ({"package": "llmcompressor", "algorithm": "rtn"}, "algorithm of llmcompressor is 'rtn'"),
    ({"package": "torchao", "group_size": "tensor"}, "group_size is 'tensor'"), ({"package": "hqq", "typo": 1}, "typo"),
    ({"package": "auto_round", "iterations": 0}, "iterations is 0"),
])  # fmt: skip
def test_a_wrong_row_is_refused(row, message):
    with pytest.raises(InputError, match=message):
        PEERS.resolve({}, row)


def test_rows_of_the_bench_are_valid():
    for row in ROWS.values():
        variant("row", {"variants": {"row": {"method": "peers", **row}}})


def test_an_absent_environment_is_told_in_a_line(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    with pytest.raises(InputError, match="make peers"):
        PEERS.build(EMBEDDED, prepared, PEERS.resolve({}, {"package": "hqq"}), tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_an_absent_package_is_told_in_a_line(package, monkeypatch):
    monkeypatch.setenv(VARIABLE, sys.executable)
    assert f"has no {PACKAGES[package].name}; make peers installs it" in missing(package)


@pytest.mark.parametrize("row", [{"package": "hqq", "bits": 3}, {"package": "torchao", "bits": 4},
                                 {"package": "torchao", "bits": 4, "symmetric": True}], ids=["real", "whole", "full"])
def test_codes_are_taken_over_as_they_are(row):
    scheme, random = Spec(**row).scheme, torch.Generator().manual_seed(0)
    top = 2**scheme.bits
    codes = torch.randint(0, top, (6, 128), generator=random, dtype=torch.uint8)
    scales = torch.rand(6, 2, generator=random).half().float() + 0.5
    zeros = {"real": 3.3, "whole": 5.0}.get(scheme.zeros, 0.0) * torch.ones(6, 2)
    middle = top / 2 * torch.ones(6, 2) if scheme.symmetric else zeros
    weight = ((codes.view(6, 2, 64) - middle.unsqueeze(-1)) * scales.unsqueeze(-1)).view(6, 128)
    taken = qtensor_of(codes, scales, None if scheme.symmetric else zeros, weight, (6, 128), scheme)
    assert (dequantize(taken) - weight).abs().max() < 2**-9 * top
    wrong = weight.clone()
    wrong[2, 70] += scales[2, 1]
    with pytest.raises(InputError, match="other weights than the package restores, by up to 1 steps"):
        qtensor_of(codes, scales, None if scheme.symmetric else zeros, wrong, (6, 128), scheme)


def test_what_a_package_does_otherwise_is_said_and_kept(make_model):
    inventory = Checkpoint(make_model("gpt2")).inventory
    weights = select(inventory, Spec("torchao", group_size=32).recipe)
    names = [selected.weight.module for selected in weights if selected.is_quantized]
    found, notes = as_asked(weights, {**dict.fromkeys(names[1:], 32), names[1]: 16}, tied=False, was_tied=True)
    assert notes == [f"1 of {len(names)} matrices were not quantized, such as {names[0]}",
                     f"1 matrices have groups of 16 weights, not as asked, such as {names[1]}", "embedding and head were untied"]
    schemes = {selected.weight.module: selected.parts[0].scheme for selected in found}
    assert schemes[names[0]] is None and schemes[names[1]].group_size == 16 and schemes[names[2]].group_size == 32
    assert as_asked(weights, dict.fromkeys(names, 32), tied=True, was_tied=True)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("row", SMALLEST.values(), ids=SMALLEST)
def test_a_package_quantizes_the_embedded_model(prepared, tmp_path, row):
    reason = missing(row["package"])
    if reason:
        pytest.skip(reason)
    told = []
    PEERS.build(EMBEDDED, prepared, PEERS.resolve({}, row), tmp_path / "out", told.append)
    peer = json.loads((tmp_path / "out" / "manifest.json").read_text())["peer"]
    assert peer["package"] == PACKAGES[row["package"]].name and peer["own_bits_per_weight"] > row["bits"]
    assert all(any(note in line for line in told) for note in peer["notes"])
    regrouped = [note for note in peer["notes"] if "groups of 128" in note]
    assert len(regrouped) == (row == SMALLEST["quanto"]), "quanto's 4 bits have groups of 128, whatever is asked"
    tokens = torch.arange(40).view(1, -1)
    base, out = (open_runner(folder).logits(tokens).log_softmax(-1) for folder in (EMBEDDED, tmp_path / "out"))
    assert 0 < (base.exp() * (base - out)).sum(-1).mean() < {2: 3.0, 3: 0.5, 4: 0.2, 8: 0.01}[row["bits"]]


def measured(name, kld):
    """A row of the bench, made up."""
    n, bits = 40, int(name.split()[-1])
    blocks = {"bytes_per_block": 9, "text_sha256": "x", "tokens": [5] * n, "bytes": [9] * n, "nll": [1.0] * n,
              "kld": [5 * kld] * n, "top1": [1] * n}
    return {"name": name, "bits": bits, "package": None if name.startswith("ours") else "hqq", "blocks": blocks,
            "cpu_seconds": 2.0,
            "decode": {"speedup": {"median": 3.0, "mad": 0.1}, "is_noisy": bits == 3},
            "bits_per_weight": bits + 0.25, "own_bits_per_weight": None, "kld_mnats": 1000 * kld,
            "kld_interval": [900 * kld, 1100 * kld]}


def test_differences_are_of_rows_of_equal_width():
    found = compared([measured("ours 3", 0.001), measured("hqq 3", 0.004), measured("hqq 4", 0.004)])
    differences = {row["name"]: row["difference"] and row["difference"]["value"] for row in found}
    assert differences == {"hqq 4": None, "ours 3": None, "hqq 3": pytest.approx(3)}
    assert list(differences) == ["hqq 4", "ours 3", "hqq 3"] and not any("blocks" in row for row in found)


def test_models_measured_one_after_another_stand_in_one_figure_and_table(tmp_path):
    path = tmp_path / "reports" / "quantizers.json"
    path.parent.mkdir()
    assert "make peers-report" in quantizers_table(tmp_path)
    keep(path, "tiny", {"rows": [measured("stale 4", 0.1)]})
    keep(path, "tiny", {"rows": compared([measured("ours 3", 0.001), measured("hqq 3", 0.004)])})
    study = keep(path, "other", {"rows": compared([measured("ours 4", 0.002), measured("ours 3", 0.001)])})
    assert study == json.loads(path.read_text())
    lines = quantizers_table(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ours 4", "| ours 3", "| hqq 3"]
    assert "| 4.000 | +3.00 (+3.00 to +3.00) |" in lines[4] and "| 3.0 (!) / 3.0 (!) |" in lines[3]
    draw(study, path.with_suffix(".svg"))
    assert path.with_suffix(".svg").read_text().startswith("<?xml")
