"""Artifacts as GGUF: the same values in llama.cpp's blocks, in a file that llama.cpp opens, scores and generates from."""

import numpy
import pytest
import torch
from conftest import ROOT, save_model

import quant.transformers_format  # noqa: F401  opens the artifact itself, to compare with
from quant.errors import InputError
from quant.export import export
from quant.gguf.tensors import dequantized, types_of
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.runners import open_runner
from quant.tensor.ggml import scheme_of
from quant.tensor.ggml_blocks import from_bytes
from quant.tensor.ggml_exact import as_type, fitting_type
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import K_TYPES, Scheme

HALF = {"scale_dtype": "float16"}
FITTING = {
    "Q4_0": Scheme(4, 32, levels="full", **HALF), "Q4_0 by rows": Scheme(4, **HALF), "Q4_0 of 3 bits": Scheme(3, 64, **HALF),
    "Q4_1": Scheme(4, 32, False, **HALF), "Q4_1 of 64": Scheme(4, 64, False, **HALF), "Q5_1": Scheme(5, 32, False, **HALF),
    "Q5_0": Scheme(5, 128, **HALF), "Q5_0 of whole zeros": Scheme(4, 64, False, zeros="whole", **HALF),
    "Q4_0 of whole zeros": Scheme(3, 64, False, zeros="whole", **HALF), "Q8_0": Scheme(8, 32, **HALF),
    "Q8_0 of the whole tensor": Scheme(6, "tensor", **HALF), **{name: scheme_of(name) for name in K_TYPES},
}  # fmt: skip
REFUSED = {
    "is a table of values": Scheme(4, 64, codebook="nf4", **HALF),
    "has a real zero; .* at 5 bits and fewer": Scheme(6, 32, False, **HALF),
    "groups of 16 in rows of 256": Scheme(4, 16, **HALF),
    "are not float16 numbers": Scheme(4, 32),
    "has -255 to 255 steps": Scheme(8, 32, False, zeros="whole", **HALF),
}


@pytest.mark.parametrize("name", FITTING)
def test_blocks_hold_the_same_values(name):
    from gguf import GGMLQuantizationType, quants

    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    tensor, kind = quantize(weight, FITTING[name]), name.split()[0]
    assert fitting_type(tensor.scheme, 256) == kind
    data = as_type(tensor, kind)
    assert numpy.array_equal(quants.dequantize(data.numpy(), GGMLQuantizationType[kind]), dequantize(tensor).numpy())
    assert torch.equal(dequantize(from_bytes(data, scheme_of(kind, "mse"))), dequantize(tensor))


@pytest.mark.parametrize("message", REFUSED)
def test_what_no_block_holds_exactly_is_refused(message):
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=message):
        as_type(quantize(weight, REFUSED[message]), fitting_type(REFUSED[message], 256))


def gpt2(folder):
    """A GPT-2 with rows of 256 and the tokenizer of the embedded model."""
    import shutil

    import transformers

    config = transformers.GPT2Config(n_embd=256, n_layer=2, n_head=4, n_ctx=64, n_positions=64, vocab_size=4096, bos_token_id=0,
                                     eos_token_id=0)
    torch.manual_seed(0)
    save_model(config, folder)
    for path in (ROOT / "models" / "embedded").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from quant.gguf.library import library_folder

    try:
        library_folder()
    except InputError as error:
        pytest.skip(f"needs llama.cpp: {error}")
    return gpt2(tmp_path_factory.mktemp("gguf") / "base")


@pytest.mark.parametrize("recipe", [
    {"include": ["*"], "exclude": ["norm"], **scheme_of("Q4_K").to_dict()},
    {"include": ["attention"], "bits": 4, "group_size": 64, "scale_dtype": "float16",
     "schemes": {"q": {"bits": 5}, "k": {"bits": 3}}},
], ids=["Q4_K", "a fused matrix of three widths"])
def test_llama_cpp_opens_scores_and_generates(base, tmp_path, recipe):
    artifact, out = tmp_path / "artifact", tmp_path / "out"
    write_artifact(base, Recipe.from_dict(recipe, Scheme()), artifact)
    out.mkdir()
    export(artifact, out / "model.gguf", "gguf")
    kinds = types_of(out / "model.gguf")
    assert kinds["blk.0.attn_qkv.weight"] == ("Q4_K" if recipe["include"] == ["*"] else "Q5_0")
    assert kinds["token_embd.weight"] == ("Q4_K" if recipe["include"] == ["*"] else "F32")
    (out / "manifest.json").write_text('{"runtime": "llama_cpp"}')
    ours, theirs = open_runner(artifact), open_runner(out, threads=1)
    values = dequantized(out / "model.gguf")
    output = ours.model.transformer.h[0].attn.c_proj.weight
    assert torch.equal(values["blk.0.attn_output.weight"], dequantize(output.qtensor))
    tokens = torch.arange(5, 37).view(1, -1)
    found, expected = theirs.logits(tokens), ours.logits(tokens)
    assert (found - expected).square().mean().sqrt() < 0.02 * expected.std(), "llama.cpp rounds activations to 8 bits"
    assert 0 <= theirs.prefill(tokens[0]) < 4096 and 0 <= theirs.decode(7) < 4096


def test_metadata_and_tokenizer_are_those_of_the_converter(base, tmp_path):
    from gguf import GGUFReader

    from quant.methods.llama_cpp.convert import convert
    from quant.methods.llama_cpp.quantize import quantize
    from quant.methods.llama_cpp.spec import Spec

    recipe = {"include": ["*"], "exclude": ["norm"], **scheme_of("Q6_K").to_dict()}
    write_artifact(base, Recipe.from_dict(recipe, Scheme()), tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out.gguf", "gguf")
    convert(base, tmp_path / "converted")
    quantize(tmp_path / "converted" / "model.gguf", Spec("Q6_K"), tmp_path / "llama")
    ours, theirs = (GGUFReader(path).fields for path in (tmp_path / "out.gguf", tmp_path / "llama" / "model.gguf"))
    assert list(ours) == list(theirs)
    assert {key for key in theirs if ours[key].contents() != theirs[key].contents()} <= {"general.name", "general.description"}


def test_a_file_needs_the_ending(base, tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends in \.gguf"):
        export(base, tmp_path / "out", "gguf")
    with pytest.raises(InputError, match="is not an artifact of this pipeline"):
        export(base, tmp_path / "out.gguf", "gguf")
