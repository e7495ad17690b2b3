"""The report's templates: report.md.jinja, the sentences of the findings, and the texts of the methods."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from quant.report.metrics import METRICS
from quant.report.wording import code, ending, joined, literal, plain, signed, span

HERE = Path(__file__).parent


@cache
def environment() -> jinja2.Environment:
    """The jinja environment of every template. An undefined name in a template is an error.

    Filters: those of quant.report.wording; `metric(key)` shows a number as the tables show that metric.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )
    made.filters |= {"plain": plain, "ending": ending, "signed": signed, "joined": joined, "code": code, "literal": literal,
                     "metric": lambda value, key: METRICS[key].format(value),
                     "metric_span": lambda values, key: span(values, METRICS[key].form)}
    return made
