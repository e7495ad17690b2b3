"""Targets and biases that make up for what was quantized before, against brute-force least squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibration.moments import TARGET_DAMPING, Moments, damped

ROWS, COLUMNS, TOKENS = 5, 12, 200


def drawn(seed=0, noise=0.3):
    """Inputs of the float and of the quantized model, residuals, and a weight; inputs have a mean."""
    generator = torch.Generator().manual_seed(seed)
    floats = torch.randn(TOKENS, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator) / 3 + 1
    quantized = floats + noise * torch.randn(TOKENS, COLUMNS, generator=generator) - 0.1
    residual = quantized @ torch.randn(COLUMNS, ROWS, generator=generator) / 9 + 0.4
    residual += torch.randn(TOKENS, ROWS, generator=generator)
    return floats, quantized, residual, torch.randn(ROWS, COLUMNS, generator=generator)


def moments_of(floats, quantized, added=None, batches=3):
    """added: the residual and the weight of a layer whose output is added to the residual stream."""
    lack = floats - quantized
    if added is not None:
        residual, weight = added
        lack = lack @ weight.T + residual
    moments = Moments.empty(COLUMNS, None if added is None else ROWS)
    for rows in torch.arange(TOKENS).chunk(batches):
        moments.add(quantized[rows], lack[rows])
    return moments


def test_moments_are_means_over_all_batches():
    floats, quantized, _, _ = drawn()
    moments, x = moments_of(floats, quantized), quantized.double()
    assert moments.count == TOKENS and moments.hessian(False).dtype == torch.float64
    assert torch.allclose(moments.hessian(False), x.T @ x / TOKENS, rtol=1e-5)
    assert torch.allclose(moments.hessian(True), (x - x.mean(0)).T @ (x - x.mean(0)) / TOKENS, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), is_centred=st.booleans(), is_added=st.booleans())
def test_a_corrected_target_is_the_damped_least_squares(seed, is_centred, is_added):
    floats, quantized, residual, weight = drawn(seed)
    moments = moments_of(floats, quantized, (residual, weight) if is_added else None)
    wanted = floats.double() @ weight.T.double() + (residual.double() if is_added else 0)
    x = quantized.double()
    if is_centred:
        x, wanted = x - x.mean(0), wanted - wanted.mean(0)
    error = wanted - x @ weight.T.double()  # what a change of the weight, which the damping keeps small, has to give
    ridge = (TARGET_DAMPING * (x.square().sum(0).mean() / TOKENS) * TOKENS) ** 0.5
    design = torch.cat([x, ridge * torch.eye(COLUMNS, dtype=torch.float64)])
    change = torch.linalg.lstsq(design, torch.cat([error, torch.zeros(COLUMNS, ROWS, dtype=torch.float64)])).solution.T
    assert torch.allclose(moments.corrected(weight, is_centred), weight.double() + change, rtol=1e-3, atol=1e-4)


def test_moments_of_many_columns_are_symmetric(monkeypatch):
    monkeypatch.setattr("quant.calibration.moments.WIDE", 5)  # blocks of 5, 5 and 2 columns
    floats, quantized, _, _ = drawn()
    hessian, x = moments_of(floats, quantized).hessian(False), quantized.double()
    assert torch.equal(hessian, hessian.T) and torch.allclose(hessian, x.T @ x / TOKENS, rtol=1e-5)


def test_without_drift_the_target_is_the_weight():
    floats, _, _, weight = drawn()
    assert torch.allclose(moments_of(floats, floats).corrected(weight, False), weight.double(), atol=1e-9)


@pytest.mark.parametrize("is_centred", [False, True])
def test_a_second_layer_makes_up_for_the_rounding_of_the_first(is_centred):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, COLUMNS, generator=generator) + 0.5
    first = torch.randn(COLUMNS, COLUMNS, generator=generator)
    first += torch.eye(COLUMNS)  # far from singular: the second layer can undo what rounding does to the first
    second, rounded = torch.randn(ROWS, COLUMNS, generator=generator), first.mul(1.5).round().div(1.5)
    moments = Moments.empty(COLUMNS)
    moments.add(x @ rounded.T, x @ first.T - x @ rounded.T)
    corrected = moments.corrected(second, is_centred)
    optimum = second.double() @ first.double() @ torch.linalg.inv(rounded.double())
    wanted, given_ = (x @ first.T @ second.T).double(), (x @ rounded.T).double()

    def error(weight):
        left = wanted - given_ @ weight.T
        return float((left - left.mean(0) if is_centred else left).square().mean())

    assert error(optimum) < 1e-8 and error(corrected) < 0.5 * error(second.double())


@pytest.mark.parametrize("is_added", [False, True])
def test_a_bias_makes_the_mean_output_that_of_the_float_model(is_added):
    floats, quantized, residual, weight = drawn(3)
    rounded = weight.mul(2).round().div(2)
    change = moments_of(floats, quantized, (residual, weight) if is_added else None).bias_change(weight, rounded)
    wanted = (floats.double() @ weight.T.double() + (residual.double() if is_added else 0)).mean(0)
    assert torch.allclose((quantized.double() @ rounded.T.double() + change).mean(0), wanted, atol=1e-5)
    assert change.abs().max() > 0.01


def test_damping_is_relative_and_gives_unused_inputs_the_mean():
    second = torch.diag(torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64))
    assert torch.allclose(damped(second, 0.5).diagonal(), torch.tensor([5.0, 3.0, 3.0], dtype=torch.float64))
    assert torch.equal(second.diagonal(), torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64))
    assert (torch.linalg.eigvalsh(damped(torch.zeros(4, 4, dtype=torch.float64), 0.01)) > 0).all()
