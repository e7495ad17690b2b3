"""GGUF variants that look at a text: importance matrices, and calibrated codes in llama.cpp's types, on a tiny GPT-2."""

import json
from pathlib import Path

import pytest
import torch
from test_gguf_export import base  # noqa: F401  a fixture

from quant.calibration.activity import mean_squares
from quant.errors import InputError
from quant.gguf.imatrix import read_imatrix, write_imatrix
from quant.gguf.tensors import dequantized, overwrite, places, types_of
from quant.methods import Preparation, load
from quant.model.checkpoint import Checkpoint
from quant.runners import open_runner
from quant.text.corpus import write_corpus
from quant.text.read import read_corpus
from quant.text.source import TextSource

METHOD = load("llama_cpp")
ROWS = {
    "plain": {"type": "Q2_K"},
    "imatrix": {"type": "Q2_K", "imatrix": True},
    "calibrated": {"type": "Q2_K", "calibrated": True},
    "iq": {"type": "IQ2_XS", "imatrix": True},
    "budget": {"calibrated": True, "budget": 9.0},
}
WORDS = "the cat sat on a mat and the dog ran to it while all were glad of the sun in the garden by that old house".split()


def text(path: Path, seed: int) -> Path:
    """Lines of random words."""
    picks = torch.randint(len(WORDS), (60, 12), generator=torch.Generator().manual_seed(seed)).tolist()
    path.write_text("".join(" ".join(WORDS[i] for i in line) + "\n" for line in picks))
    return path


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):  # noqa: F811
    """The folder of each row, and of what they share."""
    folder = tmp_path_factory.mktemp("rows")
    write_corpus(read_corpus(TextSource(str(text(folder / "test.txt", 0)))), folder / "text", folder / "private")
    calibration = {"text": str(text(folder / "train.txt", 1)), "windows": 8, "length": 32, "seed": 0}
    values = {name: METHOD.resolve({}, row) for name, row in ROWS.items()}
    wants = [want for want in map(METHOD.wants, values.values()) if want]
    METHOD.prepare(Preparation(base, folder / "text", folder / "private", calibration, {"source": str(folder / "test.txt")},
                               {"line": "{}\n"}, wants), folder / "prepared")
    for name, row in values.items():
        METHOD.build(base, folder / "prepared", row, folder / name, lambda _: None)
    return folder


def test_the_file_of_importance_is_llama_cpps_and_holds_mean_squares(base, made):  # noqa: F811
    from gguf import GGUFReader

    reader = GGUFReader(made / "prepared" / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix" and "general.architecture" not in reader.fields
    assert reader.fields["imatrix.chunk_size"].contents() == 32
    found = read_imatrix(made / "prepared" / "imatrix.gguf")
    assert set(found) == {"token_embd.weight", *(f"blk.{i}.{name}.weight" for i in (0, 1)
                                                 for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))}
    assert found["blk.1.ffn_down.weight"].shape == (1024,) and all((values >= 0).all() for values in found.values())
    tokens = torch.arange(5, 69).view(2, 32)
    squares = mean_squares(base, Checkpoint(base).inventory, tokens)
    seen = []
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    model.transformer.h[1].mlp.c_fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(tokens)
    assert torch.allclose(squares["transformer.h.1.mlp.c_fc.weight"], seen[0].flatten(0, 1).square().mean(0), rtol=1e-4)


def test_an_importance_matrix_survives_its_file(tmp_path):
    values = {"blk.0.ffn_up.weight": torch.rand(64), "output.weight": torch.rand(32)}
    write_imatrix(tmp_path / "imatrix.gguf", values, "text", 3, 16)
    found = read_imatrix(tmp_path / "imatrix.gguf")
    assert set(found) == set(values) and all(torch.allclose(found[name], values[name], rtol=1e-6) for name in values)


def test_other_gguf_files_are_no_importance_matrix(made):
    with pytest.raises(InputError, match=r"is not an importance matrix: its general\.type is 'model'"):
        read_imatrix(made / "plain" / "model.gguf")


def test_importance_changes_codes_and_makes_i_quants_possible(base, made):  # noqa: F811
    plain, weighted = (dequantized(made / name / "model.gguf") for name in ("plain", "imatrix"))
    assert not torch.equal(plain["blk.0.ffn_up.weight"], weighted["blk.0.ffn_up.weight"])
    assert "IQ2_XS" in types_of(made / "iq" / "model.gguf").values()
    inventory = Checkpoint(base).inventory
    with pytest.raises(InputError, match="type IQ2_XS needs an importance matrix; set imatrix: true in its row"):
        METHOD.sizes(inventory, base, METHOD.resolve({}, {"type": "IQ2_XS"}))
    assert METHOD.sizes(inventory, base, METHOD.resolve({}, ROWS["iq"])).file_bytes is None


def test_calibrated_codes_stand_in_llama_cpps_own_file(base, made):  # noqa: F811
    ours, theirs = made / "calibrated" / "model.gguf", made / "imatrix" / "model.gguf"
    assert types_of(ours) == types_of(theirs) and ours.stat().st_size == theirs.stat().st_size
    start = 100_000  # within the metadata: the tokenizer's
    assert ours.read_bytes()[:start] == theirs.read_bytes()[:start]
    assert json.loads((made / "calibrated" / "manifest.json").read_text())["calibrated"] is True
    tokens = torch.arange(5, 37).view(1, -1)
    original = open_runner(base).logits(tokens)
    errors = {name: float((open_runner(made / name, threads=1).logits(tokens) - original).square().mean())
              for name in ("plain", "imatrix", "calibrated")}
    assert errors["calibrated"] < errors["imatrix"] < 2 * errors["plain"], errors
    assert not (made / ".calibrated.calibrating").exists()


def test_a_budget_is_kept_and_gives_tensors_types_of_their_own(base, made):  # noqa: F811
    from gguf import GGUFReader

    reader = GGUFReader(made / "budget" / "model.gguf")
    bits = 8 * sum(int(tensor.n_bytes) for tensor in reader.tensors) / Checkpoint(base).inventory.parameters
    assert 6.0 < bits <= 9.0
    assert json.loads((made / "budget" / "manifest.json").read_text())["predicted_kld_mnats"] >= 0


def test_data_of_another_size_is_refused(made):
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight takes .* bytes as Q2_K; found 4"):
        overwrite(made / "plain" / "model.gguf", {"blk.0.ffn_up.weight": torch.zeros(4, dtype=torch.uint8)})


def test_rows_in_another_order_are_recognized_and_other_values_are_not(base, made, tmp_path):  # noqa: F811
    import shutil

    path = tmp_path / "model.gguf"
    shutil.copyfile(made / "prepared" / "model.gguf", path)
    weight = Checkpoint(base).read("transformer.h.0.mlp.c_fc.weight").T
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    overwrite(path, {"blk.0.ffn_up.weight": weight[order].contiguous()})
    place = places(path, Checkpoint(base))["blk.0.ffn_up.weight"]
    assert torch.equal(place.arranged(weight), weight[order])
    overwrite(path, {"blk.0.ffn_up.weight": weight * 2})
    with pytest.raises(InputError, match=r"converter changes the values of blk\.0\.ffn_up\.weight"):
        places(path, Checkpoint(base))


@pytest.mark.parametrize(("row", "message"), [
    ({}, "a llama_cpp row needs a type"),
    ({"type": "Q4_0", "budget": 4.0, "calibrated": True}, "budget chooses a type for each tensor"),
    ({"budget": 4.0}, "budget chooses a type for each tensor"),
    ({"budget": "x", "calibrated": True}, "expected bits a weight"),
    ({"type": "Q4_0", "imatrix": 1}, "imatrix is 1; expected true or false"),
    ({"type": "Q4_0", "distill": 8}, "expected calibrated: true beside it"),
])
def test_wrong_rows_are_told_in_a_line(row, message):
    with pytest.raises(InputError, match=message):
        METHOD.resolve({}, row)


def test_names_on_the_hub():
    names = [METHOD.published_name(METHOD.resolve({}, row), "gpt2") for row in ROWS.values()]
    assert names == ["gpt2-Q2_K.gguf", "gpt2-Q2_K-imatrix.gguf", "gpt2-Q2_K-calibrated.gguf", "gpt2-IQ2_XS-imatrix.gguf",
                     "gpt2-9.0bit-calibrated.gguf"]
