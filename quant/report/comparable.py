"""Groups of variants that can be compared, found from their recipes, so that renamed and new rows take part."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from quant.model.recipe import Recipe
from quant.report.results import Result, Run
from quant.tensor.codebooks import LINEAR


def equal_but_for_the_grid(run: Run) -> list[list[Result]]:
    """Variants of one method that quantize the same weights at the same width and group size, with different grids."""
    return _groups(run, lambda recipe: (_selection(recipe), replace(recipe.scheme, codebook=LINEAR)))


def equal_but_for_the_selection(run: Run) -> list[list[Result]]:
    """Variants of one method and one scheme that quantize different weights."""
    return _groups(run, lambda recipe: (recipe.scheme, str(recipe.schemes)))


def same_format(run: Run) -> list[tuple[Result, Result]]:
    """Pairs of variants of different methods that store the same weights under the same scheme."""
    with_recipe = [result for result in run.results if result.recipe]
    return [(one, other) for i, one in enumerate(with_recipe) for other in with_recipe[i + 1 :]
            if one.method.name != other.method.name and one.recipe.scheme == other.recipe.scheme
            and _selection(one.recipe) == _selection(other.recipe)]


def _groups(run: Run, key: Callable[[Recipe], Hashable]) -> list[list[Result]]:
    groups: dict[Hashable, list[Result]] = {}
    for result in run.results:
        if result.recipe:
            groups.setdefault((result.method.name, key(result.recipe)), []).append(result)
    return [results for results in groups.values() if len(results) > 1]


def _selection(recipe: Recipe) -> Hashable:
    return tuple(sorted(recipe.include)), tuple(sorted(recipe.exclude)), recipe.blocks, str(recipe.schemes)
