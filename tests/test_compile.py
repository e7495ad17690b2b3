"""torch.compile takes an artifact whole: one graph without a break, the same logits, and the same tokens from `generate`."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CompileConfig

import quant.transformers_format  # noqa: F401  registers the format
from quant.kernels import operator
from quant.kernels.operands import Operands
from quant.kernels.operator import multiply
from quant.kernels.reference import Matmul as Reference
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.nn.classes import ClassedWeight
from quant.nn.modules import QWeight
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

# Every kind of module: q, k and v of GPT-2 in one matrix, heads that share the embedding's weight, norms, and rows in classes.
RECIPES = {
    "int8": {"include": ["*"]},
    "roles apart": {"include": ["*"], "exclude": ["k"], "bits": 4, "group_size": 32, "symmetric": False, "schemes": {
        "v": {"bits": 3}, "down": {"symmetric": True, "codebook": "nf4", "double_quant": True}}},
    "floats left": {"bits": 2, "group_size": 32, "symmetric": False, "zeros": "whole", "scale_dtype": "int8"},
}
SCHEMES = [Scheme(), Scheme(4, 32, False), Scheme(3, 24), Scheme(4, 64, codebook="nf4", double_quant=True), Scheme(8, "tensor"),
           Scheme(5, 7, False), Scheme(4, 32, False, zeros="whole", scale_dtype="int8")]  # fmt: skip


@pytest.fixture(scope="module")
def opened(lively, tmp_path_factory):
    """opened(architecture, recipe) -> an artifact's model, loaded anew."""
    made = {}

    def load(architecture, recipe):
        if (architecture, recipe) not in made:
            made[architecture, recipe] = tmp_path_factory.mktemp("artifact") / "out"
            write_artifact(lively(architecture), Recipe.from_dict(RECIPES[recipe], Scheme()), made[architecture, recipe])
        return AutoModelForCausalLM.from_pretrained(made[architecture, recipe], local_files_only=True).eval()

    return load


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def no_breaks() -> bool:
    return not torch._dynamo.utils.counters["graph_break"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("architecture", "recipe", "is_used"), [
    ("gpt2", "int8", False), ("gpt2", "roles apart", True), ("llama-tied", "roles apart", False), ("llama", "int8", True),
    ("llama", "floats left", False),
])  # fmt: skip
def test_a_model_is_one_graph_and_computes_the_same(opened, ids, architecture, recipe, is_used, backend):
    """is_used: whether the model has run before it is compiled, and so has kernels."""
    model = opened(architecture, recipe)
    with torch.no_grad():
        expected = opened(architecture, recipe)(ids, use_cache=False).logits
        if is_used:
            model(ids, use_cache=False)
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model.forward, fullgraph=True, backend=backend)
        for _ in range(2):
            assert torch.allclose(compiled(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert no_breaks() and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.allclose(model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(("architecture", "recipe"), [("gpt2", "roles apart"), ("llama", "int8"), ("llama-tied", "roles apart")])
def test_generate_with_a_static_cache_compiles_and_writes_the_same_tokens(opened, ids, architecture, recipe):
    model = opened(architecture, recipe)
    usual = model.generate(ids, max_new_tokens=8, do_sample=False)
    compiling = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiling._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    found = model.generate(ids, max_new_tokens=8, do_sample=False, cache_implementation="static", compile_config=compiling)
    assert torch.equal(found, usual)
    assert no_breaks() and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize(("architecture", "recipe"), [("gpt2", "roles apart"), ("llama", "int8"), ("llama-tied", "roles apart")])
def test_on_a_gpu_generate_replays_cuda_graphs(opened, ids, architecture, recipe):
    """As a user calls it, with no configuration of compiling; nothing that a model does keeps it out of a CUDA graph."""
    model, ids = opened(architecture, recipe).to("cuda"), ids.to("cuda")
    usual = model.generate(ids, max_new_tokens=16, do_sample=False)
    torch._dynamo.utils.counters.clear()
    assert torch.equal(model.generate(ids, max_new_tokens=16, do_sample=False, cache_implementation="static"), usual)
    assert no_breaks() and not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_the_operator_is_the_reference(scheme):
    tensor, x, bias = quantize(normal(24, 96), scheme), normal(2, 7, 96, seed=1), normal(24, seed=2)
    operands = Operands.of(tensor)
    for given in (bias, None):
        assert torch.allclose(multiply(x, given, operands), Reference(tensor)(x, given), rtol=1e-5, atol=1e-5)
    assert torch.equal(operands.dequantize(torch.tensor([5, 0, 5])), dequantize(tensor)[[5, 0, 5]])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that torch makes."""

    count = 0

    def __torch_dispatch__(self, function, kinds, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        is_view = function._schema.returns and function._schema.returns[0].alias_info is not None
        if isinstance(made, torch.Tensor) and not is_view:
            self.count = max(self.count, made.numel())
        return made


@pytest.mark.parametrize("scheme", SCHEMES[:6], ids=lambda scheme: scheme.label)
def test_a_few_rows_are_gathered_without_the_others(scheme):
    """Nothing is as large as the weight, or as its scales: of 4000 rows, 3 are wanted."""
    weight = quantize(normal(4000, 96), scheme)
    operands = Operands.of(weight)
    for gather in (operands.dequantize, weight.dequantize_rows):
        with Largest() as largest:
            assert gather(torch.tensor([5, 0, 3999])).shape == (3, 96)
        assert largest.count <= 8 * 3 * 96


def test_a_product_never_dequantizes_the_whole_weight(monkeypatch):
    monkeypatch.setattr(operator, "TILE", 100 * 96)
    tensor, x = quantize(normal(4000, 96), Scheme(4, 32)), normal(2, 96)
    operands = Operands.of(tensor)
    with Largest() as largest:
        found = multiply(x, None, operands)
    assert torch.allclose(found, Reference(tensor)(x, None), atol=1e-5)
    assert largest.count <= 100 * 96


def test_operands_are_the_stored_tensors():
    """Only what is stored in 8 bits, and whole zeros, is expanded."""
    tensor = quantize(normal(40, 96), Scheme(4, 32, False))
    operands = Operands.of(tensor)
    assert [part.data_ptr() for part in operands.tensors()] == [tensor.codes.data_ptr(), tensor.scales.scales.data_ptr(),
                                                                tensor.zeros.data_ptr()]


def test_the_operator_obeys_torchs_rules():
    operands = Operands.of(quantize(normal(24, 64), Scheme(4, 32, codebook="nf4")))
    o = operands
    fields = (o.codes, o.scales, o.zeros, o.table, o.columns, o.bits, o.offset, o.group)
    torch.library.opcheck(torch.ops.quant.multiply.default, (normal(3, 64), normal(24), *fields))


def test_gradients_pass_through_a_compiled_product():
    weight = QWeight((24, 64), Scheme(4, 32))
    weight.load_state_dict(quantize(normal(24, 64), Scheme(4, 32)).tensors())
    x = normal(3, 64).requires_grad_()
    torch.compile(weight.multiply, fullgraph=True, backend="aot_eager")(x, None).sum().backward()
    assert torch.allclose(x.grad, dequantize(weight.qtensor).sum(0).expand(3, -1), atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_rows_in_classes(backend):
    weight = ClassedWeight([5, 9, 10], 32, [Scheme(8), Scheme(4, 32), None])
    classes = torch.tensor([0] * 5 + [1] * 9 + [2] * 10)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    weight.classes.data.copy_(classes)
    for number, part in enumerate(weight.parts):
        matrix = normal(*part.shape, seed=number)
        part.load_state_dict(quantize(matrix, part.scheme).tensors()) if isinstance(part, QWeight) else part.copy_(matrix)
    x, rows = normal(2, 3, 32), torch.tensor([[3, 23, 0], [3, 7, 12]])
    products = torch.compile(weight.multiply, fullgraph=True, backend=backend)(x, None)
    gathered = torch.compile(weight.gather, fullgraph=True, backend=backend)(rows)
    assert torch.allclose(products, weight.multiply(x, None), atol=1e-5)
    assert torch.equal(gathered, weight.gather(rows)) and gathered.shape == (2, 3, 32)
