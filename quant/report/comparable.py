"""Groups of variants that can be compared, found from their recipes, so that renamed and new rows take part.

A row may have parameters beyond a recipe's, such as how codes are chosen; variants are compared only where these are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from quant.methods import Method
from quant.model.recipe import Recipe
from quant.report.results import Result, Run
from quant.tensor.codebooks import LINEAR


def equal_but_for_the_grid(run: Run) -> list[list[Result]]:
    """Variants of one method that quantize the same weights at the same width and group size, with different grids."""
    return _groups(run, lambda recipe: (selection_of(recipe), replace(recipe.scheme, codebook=LINEAR)))


def equal_but_for_the_selection(run: Run) -> list[list[Result]]:
    """Variants of one method and one scheme that quantize different weights."""
    return _groups(run, lambda recipe: (recipe.scheme, str(recipe.schemes)))


def equal_but_for_the_bits(run: Run) -> list[list[Result]]:
    """Variants of one method that differ only in the width of their codes, at least three widths, the widest first."""
    def but_for_the_bits(recipe: Recipe) -> Hashable:
        return selection_of(recipe), replace(recipe.scheme, bits=8) if recipe.scheme.is_linear else None

    groups = _groups(run, but_for_the_bits)
    curves = [{r.recipe.scheme.bits: r for r in group if r.recipe.scheme.is_linear} for group in groups]
    return [[curve[bits] for bits in sorted(curve, reverse=True)] for curve in curves if len(curve) > 2]


def curves_but_for_the_fit(run: Run) -> list[tuple[Result, Result]]:
    """Pairs of variants that differ only in how their ranges were chosen, at the narrowest width of two such curves."""
    def kind(result: Result) -> Hashable:
        return (result.method.name, str(beyond_recipe(result)), selection_of(result.recipe),
                replace(result.recipe.scheme, fit="range", bits=8))

    curves = equal_but_for_the_bits(run)
    ends = [(a, b) for i, one in enumerate(curves) for other in curves[i + 1 :] for a in one for b in other
            if kind(a) == kind(b) and a.recipe.scheme.bits == b.recipe.scheme.bits]
    narrowest = {(kind(a), a.recipe.scheme.fit, b.recipe.scheme.fit): (a, b) for a, b in ends}  # the last is the narrowest
    return list(narrowest.values())


def equal_layout(run: Run, result: Result) -> Result | None:
    """A timed variant that stores the same weights in the same way, with values chosen otherwise, so that it is as fast."""
    def layout(one: Result) -> Hashable:
        return _opened_by(one.method), selection_of(one.recipe), replace(one.recipe.scheme, fit="range")

    if result.recipe is None or result.recipe.schemes:
        return None
    return next((one for one in run.timed if one.recipe and not one.recipe.schemes and layout(one) == layout(result)), None)


def same_format(run: Run) -> list[tuple[Result, Result]]:
    """Pairs of variants of different methods that store the same weights under one scheme, from which their codes follow."""
    with_recipe = [result for result in run.results if result.recipe and not beyond_recipe(result)]
    return [(one, other) for i, one in enumerate(with_recipe) for other in with_recipe[i + 1 :]
            if one.method.name != other.method.name and one.recipe.scheme == other.recipe.scheme
            and selection_of(one.recipe) == selection_of(other.recipe)]


def _groups(run: Run, key: Callable[[Recipe], Hashable]) -> list[list[Result]]:
    groups: dict[Hashable, list[Result]] = {}
    for result in run.results:
        if result.recipe:
            groups.setdefault((result.method.name, str(beyond_recipe(result)), key(result.recipe)), []).append(result)
    return [results for results in groups.values() if len(results) > 1]


def beyond_recipe(result: Result) -> dict:
    """The parameters of a row that is written as a recipe, without those of the recipe; {} for other rows."""
    values = result.variant.values
    if result.recipe is None or not set(result.recipe.to_dict()) <= set(values):
        return {}
    return {key: value for key, value in values.items() if key not in result.recipe.to_dict()}


def _opened_by(method: Method) -> str:
    """What opens a method's variants: this project's own code, whatever made them, or the method's library."""
    return "" if method.needs_code else method.name


def selection_of(recipe: Recipe) -> Hashable:
    """Which weights a recipe quantizes, to be compared."""
    return tuple(sorted(recipe.include)), tuple(sorted(recipe.exclude)), recipe.blocks, str(recipe.schemes)
