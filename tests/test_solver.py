"""Calibrated rounding of one matrix: its codes and scales against rounding to nearest, a textbook loop, and least squares."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibration.moments import damped
from quant.calibration.solver import DAMPING, Curvature, Solver, _Problem
from quant.tensor.grids import grid_of
from quant.tensor.groups import choose_groups
from quant.tensor.packing import unpack
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # how a compiled loop fails
ROWS, COLUMNS = 6, 40
PLAIN = Solver(refits=0, sweeps=0)
SCHEMES = {
    "float32": Scheme(4, 16),
    "float16": Scheme(3, 16, scale_dtype="float16"),
    "bfloat16": Scheme(3, 16, scale_dtype="bfloat16"),
    "int8": Scheme(4, 16, scale_dtype="int8"),
    "full-int8": Scheme(3, 16, levels="full", scale_dtype="int8", fit="mse"),
    "nf4": Scheme(4, 16, codebook="nf4", fit="mse"),
    "fp4": Scheme(4, 16, codebook="fp4"),
    "full": Scheme(2, 16, levels="full", fit="mse"),
    "asymmetric": Scheme(3, 16, symmetric=False, fit="mse"),
    "whole": Scheme(3, 16, symmetric=False, zeros="whole", scale_dtype="float16"),
    "hqq": Scheme(3, 16, symmetric=False, fit="hqq"),
    "row": Scheme(3, fit="mse"),
    "tensor": Scheme(4, "tensor"),
    "table": Scheme(3, 16, codebook=(-1.0, -0.4, 0.0, 0.1, 0.5)),
}  # the grids whose codes `quantize` chooses under the scales as they are stored
ROUNDED_LATER = {
    "q4_0": Scheme(4, 32, scale_dtype="float16", fit="ggml"),
    "q4_1": Scheme(4, 32, symmetric=False, scale_dtype="float16", fit="ggml"),
    "q8_0": Scheme(8, 32, scale_dtype="float16", fit="ggml"),
    "double": Scheme(4, 16, double_quant=True),
}
EVERY = SCHEMES | ROUNDED_LATER
every_scheme = pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY)


def problem(seed=0, rows=ROWS, columns=COLUMNS, rank=None):
    """A matrix, and the second moments of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rank or 3 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = inputs + torch.randn(len(inputs), 1, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs)


def costs(weight, second, tensor):
    """(w - q) H (w - q)^T of every row, under the damped moments that the solver minimises."""
    error = weight.double() - dequantize(tensor).double()
    return ((error @ damped(second, DAMPING)) * error).sum(-1)


def nearest(weight, second, scheme):
    return Solver(rounding="nearest").solve(weight, Curvature(second), scheme)


def same(one, other):
    return all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


@pytest.mark.parametrize("solver", [Solver(rounding="nearest"), PLAIN, Solver(refits=0, sweeps=2), Solver(rounding="nearest",
                         importance=False)], ids=["nearest", "feedback", "descend", "plain"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_inputs_that_do_not_depend_on_each_other_give_the_codes_and_scales_of_rounding_to_nearest(scheme, solver):
    weight = problem()[0]
    found = solver.solve(weight, Curvature(torch.eye(COLUMNS, dtype=torch.float64)), scheme)
    expected = quantize(weight, scheme)
    assert found.shape == expected.shape and found.tensors().keys() == expected.tensors().keys() and same(found, expected)


@pytest.mark.parametrize("scheme", ROUNDED_LATER.values(), ids=ROUNDED_LATER)
def test_where_the_scales_are_rounded_after_the_codes_each_code_is_nearest_under_the_stored_scale(scheme):
    weight = problem()[0]
    found = PLAIN.solve(weight, Curvature(torch.eye(COLUMNS, dtype=torch.float64)), scheme)
    expected = quantize(weight, scheme)
    assert all(torch.equal(value, expected.tensors()[name]) for name, value in found.tensors().items() if name != "codes")
    error, stored = (((weight - dequantize(tensor)) ** 2).sum(1) for tensor in (found, expected))
    assert (error <= stored * (1 + 1e-6)).all()


@every_scheme
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.sampled_from([None, 3]), refits=st.integers(0, 2), sweeps=st.integers(0, 2))
def test_no_row_costs_more_than_rounding_to_nearest(scheme, seed, rank, refits, sweeps):
    weight, second = problem(seed, rank=rank)
    found = Solver(refits=refits, sweeps=sweeps).solve(weight, Curvature(second), scheme)
    assert (costs(weight, second, found) <= costs(weight, second, nearest(weight, second, scheme)) * (1 + 1e-6)).all()


@every_scheme
def test_feedback_and_sweeps_and_refits_each_help_on_the_whole(scheme):
    totals = []
    for solver in (Solver(rounding="nearest"), PLAIN, Solver(refits=0, sweeps=4), Solver(refits=2, sweeps=4)):
        totals.append(sum(float(costs(weight, second, solver.solve(weight, Curvature(second), scheme)).sum())
                          for weight, second in map(problem, range(4))))
    assert totals[1] < 0.8 * totals[0] and totals[2] < totals[1] and totals[3] <= totals[2]


def textbook(weight, second, scheme, by_activation):
    """GPTQ column by column, with the inverse itself updated after each (Frantar et al. 2022, equations 2 and 3)."""
    columns = weight.shape[1]
    hessian = damped(second, DAMPING)
    order = hessian.diagonal().argsort(descending=True, stable=True) if by_activation else torch.arange(columns)
    groups, grid, left = choose_groups(weight, scheme, hessian.diagonal().float()), grid_of(scheme), weight.double().clone()
    scales, zeros = (None if v is None else v.expand(len(weight), -1) for v in (groups.scale_values(), groups.zero_values()))
    codes, inverse = torch.empty(weight.shape, dtype=torch.uint8), torch.linalg.inv(hessian)
    for column in order.tolist():
        group = scheme.group_index(columns)[column]
        scale, zero = scales[:, group], 0.0 if zeros is None else zeros[:, group]
        codes[:, column] = grid.encode((left[:, column].float() - zero) * torch.where(scale == 0, 0.0, 1 / scale))
        error = left[:, column] - (grid.decode(codes[:, column]) * scale + zero).double()
        left -= torch.outer(error / inverse[column, column], inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0  # only divides by it: the row and the column are done
    return codes


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("scheme", [SCHEMES[name] for name in ("float16", "nf4", "whole", "asymmetric", "tensor", "full-int8")],
                         ids=lambda scheme: scheme.label)
def test_feedback_is_gptq(scheme, order):
    weight, second = problem(5, rows=70, columns=150)  # more than a strip of rows and a block of columns
    curvature, moments = Curvature(second), damped(second, DAMPING)
    task = _Problem(weight, moments, scheme)
    found = task.feedback(choose_groups(weight, scheme, moments.diagonal().float()), *curvature.factor(order))
    codes = found.codes.T
    assert torch.allclose(found.cost, task.solution(found.codes, found.groups).cost, rtol=1e-9)
    expected = textbook(weight, second, scheme, order == "activation")
    assert (codes != quantize(weight, scheme).dequantize_rows(slice(None))).any() and torch.equal(codes, expected)
    solved = Solver(order=order, refits=0, sweeps=0).solve(weight, curvature, scheme)
    better = costs(weight, second, solved) < costs(weight, second, nearest(weight, second, scheme))
    assert better.float().mean() > 0.5 and torch.equal(unpack(solved.codes, scheme.bits, 150)[better], expected[better])


@every_scheme
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.sampled_from([None, 3]))
def test_a_sweep_never_adds_cost(scheme, seed, rank):
    weight, second = problem(seed, rank=rank)
    task = _Problem(weight, damped(second, DAMPING), scheme)
    groups = choose_groups(weight, scheme)
    codes = [task.nearest(groups).codes]
    for _ in range(3):
        codes.append(task.descend(codes[-1], groups, 1).codes)
        assert (task.solution(codes[-1], groups).cost <= task.solution(codes[-2], groups).cost * (1 + 1e-6) + 1e-12).all()
    assert torch.equal(codes[-1], task.descend(codes[0], groups, 3).codes)
    assert float(task.solution(codes[-1], groups).cost.sum()) < float(task.solution(codes[0], groups).cost.sum())


@pytest.mark.parametrize("name", ["float32", "nf4", "full", "asymmetric", "row", "table", "hqq"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.sampled_from([None, 3]))
def test_a_refit_never_adds_cost_and_keeps_signs(name, seed, rank):
    weight, second = problem(seed, rank=rank)
    scheme = SCHEMES[name]  # scales in float32: nothing is lost in storing them
    task = _Problem(weight, damped(second, DAMPING), scheme)
    groups = choose_groups(weight, scheme)
    codes = task.nearest(groups).codes
    fitted = task.refit(codes, groups)
    assert (fitted.scale_values().sign() == groups.scale_values().sign()).all()
    kept = fitted.scale_values() == groups.scale_values()  # a scale that would have changed its sign holds back the others' fit
    free, before, after = ~kept.any(1), task.solution(codes, groups).cost, task.solution(codes, fitted).cost
    assert (after[free] <= before[free] * (1 + 1e-6)).all()


def test_refitted_scales_are_the_least_squares_of_the_outputs():
    generator = torch.Generator().manual_seed(3)
    inputs, weight = torch.randn(500, 32, generator=generator).double(), torch.randn(1, 32, generator=generator)
    scheme = Scheme(3, 8)
    task = _Problem(weight, inputs.T @ inputs, scheme)
    groups = choose_groups(weight, scheme)
    codes = task.nearest(groups).codes
    steps = grid_of(scheme).decode(codes[:, 0]).double()
    design = (inputs * steps).unflatten(1, (4, 8)).sum(-1)
    expected = torch.linalg.lstsq(design, inputs @ weight[0].double().unsqueeze(1)).solution.flatten()
    assert torch.allclose(task.refit(codes, groups).scale_values()[0].double(), expected, rtol=1e-3)


@every_scheme
def test_inputs_that_are_always_zero_and_few_samples(scheme):
    weight, second = problem(1, rank=2)
    dead = [0, 17, 39]
    second[dead], second[:, dead] = 0, 0
    found = Solver().solve(weight, Curvature(second), scheme)
    assert torch.isfinite(dequantize(found)).all()
    assert (costs(weight, second, found) <= costs(weight, second, nearest(weight, second, scheme)) * (1 + 1e-6)).all()
    at_rest = Solver().solve(weight, Curvature(torch.zeros_like(second)), scheme)  # no input at all
    assert torch.isfinite(dequantize(at_rest)).all()
    if scheme in SCHEMES.values():
        assert (dequantize(at_rest)[:, dead] - weight[:, dead]).abs().max() < 2 * weight.abs().max()


@every_scheme
def test_a_matrix_of_zeros_stays_zero(scheme):
    second = problem()[1]
    assert not dequantize(Solver().solve(torch.zeros(3, COLUMNS), Curvature(second), scheme)).any()


def test_rows_of_zeros_and_groups_of_zeros_among_others():
    weight, second = problem(2)
    weight[1], weight[3, :16], weight[:, 32:] = 0, 0, 0
    for scheme in EVERY.values():
        found = dequantize(Solver().solve(weight, Curvature(second), scheme))
        assert torch.isfinite(found).all() and found.abs().max() < 10


@every_scheme
def test_bytes_do_not_change_from_run_to_run_nor_with_rows_beside(scheme):
    weight, second = problem(4)
    found = Solver().solve(weight, Curvature(second), scheme)
    assert same(found, Solver().solve(weight.clone(), Curvature(second.clone()), scheme))
    if scheme.group_size != "tensor" and not scheme.double_quant:
        alone = [dequantize(Solver().solve(weight[rows], Curvature(second), scheme)) for rows in (slice(0, 2), slice(2, None))]
        assert torch.allclose(torch.cat(alone), dequantize(found), atol=1e-5)


def test_a_target_that_differs_from_the_weight_is_what_is_approached():
    weight, second = problem(6)
    solver, scheme = Solver(), Scheme(4, 16)
    shifted = solver.solve(weight.double() + 0.3, Curvature(second), scheme)
    assert costs(weight + 0.3, second, shifted).sum() < 0.05 * costs(weight, second, shifted).sum()


def test_weights_with_the_same_inputs_share_the_factor_of_their_moments():
    weight, second = problem(7)
    curvature = Curvature(second)
    factor, order = curvature.factor("activation")
    assert curvature.factor("activation")[0] is factor
    inverse = torch.linalg.inv(curvature.second)[order][:, order]
    assert torch.allclose(factor.T @ factor, inverse, rtol=1e-8) and torch.equal(factor, factor.triu())
    assert (curvature.second.diagonal()[order].diff() <= 0).all()
    natural = replace(PLAIN, order="natural").solve(weight, curvature, Scheme(3, 16))
    assert not same(natural, PLAIN.solve(weight, curvature, Scheme(3, 16)))
