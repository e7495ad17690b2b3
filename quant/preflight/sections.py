"""Checks all of params.yaml at once, and describes it as a JSON schema for editors. Needs no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from quant.calibration.plan import CalibrationPlan
from quant.config import NULL, either, list_of, one_of, properties_of, section, whole
from quant.device import DEVICES, check_device
from quant.errors import InputError
from quant.family import family_recipes
from quant.hub.source import ModelSource
from quant.methods import load, names
from quant.outside import shown
from quant.quality.protocol import PROTOCOLS, UNK_MODES, ScoringProtocol
from quant.quality.sensitivity_plan import SensitivityPlan
from quant.speed.plan import TimingPlan
from quant.text.source import TextSource
from quant.variants import NAME, rows, variant

SECTIONS = {"model": ModelSource, "data": TextSource, "evaluate": ScoringProtocol, "benchmark": TimingPlan,
            "calibration": CalibrationPlan}
OTHERS = ("device", "sensitivity", "variants", "family")  # beside them, and sections named after methods
OWN = "x-"  # begins the name of a section of the user's own, such as one that holds YAML anchors
SCHEMA = "params.schema.json"


def problems(params: Mapping) -> list[str]:
    """Every mistake in params.yaml, in a line each, in the order of its sections."""
    found: list[str] = []

    def attempt(check: Callable, *arguments) -> None:
        try:
            check(*arguments)
        except InputError as error:
            found.append(str(error))

    for name in params:
        attempt(_check_name, name)
    for name, checked in SECTIONS.items():
        attempt(_check_section, params, name, checked)
    attempt(check_device, params.get("device"))
    attempt(_check_sensitivity, params)
    for name in names():
        if params.get(name) is not None:
            attempt(_check_defaults, name, params[name])
    if not isinstance(params.get("variants"), Mapping):
        found.append(f"variants is {shown(params.get('variants'))}; expected rows such as int4: {{method: quant, bits: 4}}")
        return found
    wrong = _wrong_rows(params)
    found += wrong
    if not wrong:  # else the rows that it names may be the wrong ones
        attempt(_check_family, params)
    return found


def require_valid(params: Mapping) -> None:
    """Raise InputError with the first mistake in params.yaml, and the number of the others."""
    found = problems(params)
    if found:
        more = f"; and {len(found) - 1} more in params.yaml, which python -m quant.check lists" if len(found) > 1 else ""
        raise InputError(found[0] + more)


def schema() -> dict:
    """The JSON schema (draft 7) of params.yaml."""
    methods = {name: load(name) for name in names()}
    sections = {name: section((method.defaults or method.properties)()) for name, method in methods.items()}
    row = {"type": "object", "required": ["method"], "properties": {"method": one_of(list(methods))}, "allOf": [
        {"if": {"properties": {"method": {"const": name}}}, "then": section(
            {"method": {}, "benchmark": {"type": "boolean"}} | method.properties())} for name, method in methods.items()]}
    model = section(properties_of(ModelSource), ["source"])
    named = {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}}
    group_size = either(one_of(["row", "tensor"]), whole())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "params.yaml",
        "type": "object",
        "required": [*SECTIONS, *OTHERS],
        "additionalProperties": False,
        "patternProperties": {f"^{OWN}": {}},
        "properties": sections | {
            "model": model,
            "data": section(properties_of(TextSource, sentences=either(whole(), NULL)), ["source"]),
            "device": one_of(DEVICES),
            "calibration": section(properties_of(CalibrationPlan, windows=whole(), length=whole(8), seed=whole(0))),
            "variants": named | {"additionalProperties": row},
            "family": section({"variants": list_of({"type": "string"}, uniqueItems=True),
                               "models": named | {"additionalProperties": model}}, ["models"]),
            "sensitivity": either(section(properties_of(
                SensitivityPlan, bits=whole(2, 8), group_size=group_size, windows=whole())), NULL),
            "evaluate": section(properties_of(
                ScoringProtocol, protocol=one_of(PROTOCOLS), unk=one_of(UNK_MODES), context=whole(), stride=whole(),
                line={"type": "string", "pattern": "\\{\\}"})),
            "benchmark": section(properties_of(
                TimingPlan, prompts=list_of(whole(), minItems=1, maxItems=2), tokens=whole(), rounds=whole(), threads=whole(),
                wait=whole(0))),
        },
    }  # fmt: skip


def _check_name(name: str) -> None:
    known = (*SECTIONS, *OTHERS, *names())
    if name not in known and not name.startswith(OWN):
        similar = get_close_matches(name, known, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"expected {', '.join(known)}, or {OWN}... for your own"
        raise InputError(f"params.yaml has a section {shown(name)}, which nothing reads; {hint}")


def _check_section(params: Mapping, name: str, checked: type) -> None:
    values = params.get(name)
    if not isinstance(values, Mapping):
        raise InputError(f"{name} is {shown(values)} in params.yaml; expected a section of keys and values")
    if name in ("model", "data") and "source" not in values:
        raise InputError(f"{name} has no source in params.yaml; expected one")
    checked.from_dict(values)


def _check_sensitivity(params: Mapping) -> None:
    if "sensitivity" not in params:
        raise InputError("params.yaml has no section sensitivity; expected its keys and values, or null to skip it")
    SensitivityPlan.from_section(params["sensitivity"])


def _check_defaults(name: str, values) -> None:
    method = load(name)
    known = (method.defaults or method.properties)()
    if not isinstance(values, Mapping):
        raise InputError(f"the section {name} is {shown(values)}; expected keys and values, of {', '.join(known)}")
    unknown = [shown(key) for key in values if key not in known]
    if unknown:
        raise InputError(f"the section {name} has unknown keys {', '.join(unknown)}; known: {', '.join(known)}")


def _wrong_rows(params: Mapping) -> list[str]:
    """A line for each mistake in rows; one that several rows share, as they do a section's defaults, is told once."""
    by_reason: dict[str, list[str]] = {}
    for name in rows(params):
        try:
            variant(name, params)
        except InputError as error:
            before, _, reason = str(error).partition(f"variants.{name}: ")
            by_reason.setdefault(reason or before, []).append(str(error))
    return [first + (f" (and the same in {len(others)} more rows)" if others else "") for first, *others in by_reason.values()]


def _check_family(params: Mapping) -> None:
    values = params.get("family")
    if not isinstance(values, Mapping) or not isinstance(values.get("models"), Mapping):
        raise InputError(f"family is {shown(values)}; expected variants: [names of rows] and models: {{name: {{source: ...}}}}, "
                         "or models: {} for none")
    family_recipes(params)
