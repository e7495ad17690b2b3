"""params.yaml: every usual mistake is one clear line at once, and the JSON schema for editors says the same as the checks."""

import copy
import json
import re
import resource
import subprocess
import sys
from contextlib import suppress
from itertools import product

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import InputError
from quant.files import write_json
from quant.methods import load, names
from quant.preflight.sections import SCHEMA, problems, require_valid, schema

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
TYPES = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "null": type(None), "array": (list, tuple),
         "object": dict}


def fits(value, form) -> bool:
    """Whether a value fits a JSON schema of the words that this project's schema uses."""
    unknown = set(form) - {"$schema", "title", "type", "enum", "const", "anyOf", "allOf", "if", "then", "properties", "items",
                           "required", "additionalProperties", "patternProperties", "propertyNames", "pattern", "minimum",
                           "maximum", "exclusiveMinimum", "minItems", "maxItems", "uniqueItems"}
    assert not unknown, unknown
    kinds = form.get("type", list(TYPES))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds):
        return False
    if "enum" in form and not any(value == one and type(value) is type(one) for one in form["enum"]):
        return False
    if "const" in form and value != form["const"]:
        return False
    if "anyOf" in form and not any(fits(value, one) for one in form["anyOf"]):
        return False
    for one in form.get("allOf", []):
        if fits(value, one["if"]) and not fits(value, one["then"]):
            return False
    if isinstance(value, dict):
        named, patterns = form.get("properties", {}), form.get("patternProperties", {})
        others = [key for key in value if key not in named and not any(re.search(one, key) for one in patterns)]
        more = form.get("additionalProperties", True)
        return (set(form.get("required", [])) <= set(value) and all(fits(value[key], named[key]) for key in value if key in named)
                and all(fits(key, form.get("propertyNames", {})) for key in value)
                and (more is True or all(more is not False and fits(value[key], more) for key in others)))
    if isinstance(value, list | tuple):
        return (form.get("minItems", 0) <= len(value) <= form.get("maxItems", len(value))
                and not (form.get("uniqueItems") and len({repr(one) for one in value}) < len(value))
                and all(fits(one, form.get("items", {})) for one in value))
    if isinstance(value, str):
        return re.search(form.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return form.get("minimum", value) <= value <= form.get("maximum", value) and not value <= form.get(
            "exclusiveMinimum", value - 1)
    return True


def changed(path, value):
    """The params with one value replaced, or taken away where it is ...; a new key is added."""
    params = copy.deepcopy(PARAMS)
    *way, last = path.split("/")
    inner = params
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return params


def test_the_committed_params_are_right_by_both():
    assert problems(PARAMS) == [] and fits(PARAMS, schema())
    require_valid(PARAMS)


def test_the_committed_schema_is_current_and_named_in_params(tmp_path):
    write_json(tmp_path / "schema", schema())
    assert (ROOT / SCHEMA).read_text() == (tmp_path / "schema").read_text(), "python -m quant.check --schema writes it"
    assert (ROOT / "params.yaml").read_text().startswith(f"# yaml-language-server: $schema={SCHEMA}\n")


MISTAKES = [  # where, what, words of the one line
    ("quant/bit", 4, "the section quant has unknown keys 'bit'; known: bits"),
    ("quant/bits", 9, "bits is 9; expected a whole number from 2 to 8"),
    ("quant/bits", "four", "bits is 'four'"),
    ("quant", 5, "the section quant is 5; expected keys and values"),
    ("evalute", {}, "a section 'evalute', which nothing reads; did you mean evaluate"),
    ("variants/nf4/bits", 3, "variants.nf4: codebook nf4 has 16 values: bits must be 4, found 3"),
    ("variants/nf4/codebok", "nf4", "variants.nf4: unknown recipe key 'codebok'"),
    ("variants/int4/include", "attention", "variants.int4: recipe key include is 'attention'; expected a list"),
    ("variants/int4/include", [1], "variants.int4: recipe key include holds [1]"),
    ("variants/int4/blocks", ["3-x"], "variants.int4: blocks holds '3-x'; expected a number or a range"),
    ("variants/int4/schemes", {"mpl": {"bits": 4}}, "variants.int4: schemes names 'mpl'"),
    ("variants/int4/schemes", {"mlp": {"bits": 99}}, "variants.int4: bits is 99"),
    ("variants/int4/benchmark", "no", "variants.int4.benchmark is 'no'; expected true or false"),
    ("variants/int4/method", "qaunt", "variants.int4: method is 'qaunt'; expected one of"),
    ("variants/int4/method", ["quant"], "variants.int4: method is ['quant']"),
    ("variants/int4", None, "variants.int4 is None; expected a row with a method"),
    ("variants/base", {"method": "quant"}, "a variant can't be called 'base'"),
    ("variants/my row", {"method": "quant"}, "a variant can't be called 'my row'"),
    ("variants", None, "variants is None; expected rows"),
    ("variants/bnb-nf4/type", "int4", "variants.bnb-nf4: bitsandbytes type is 'int4'; expected one of int8, fp4, nf4"),
    ("variants/bnb-int8/double_quant", True, "double_quant is for fp4 and nf4"),
    ("variants/gguf-q4_0/type", ..., "variants.gguf-q4_0: a llama_cpp row needs a type"),
    ("variants/gguf-q4_0/type", 4, "llama.cpp type is 4; expected text"),
    ("variants/mix4/budget", "4", "variants.mix4: budget is '4'; expected a number above 0"),
    ("variants/mix4/allocation", "no.yaml", "variants.mix4: allocation is 'no.yaml', which is no file"),
    ("variants/bf16/dtype", "fp16", "variants.bf16: dtype is 'fp16'; expected one of float32, bfloat16"),
    ("evaluate/context", "abc", "evaluate.context is 'abc'"),
    ("evaluate/stride", 512, "evaluate.stride 512 exceeds evaluate.context 256"),
    ("evaluate/protocol", "joined", "evaluate.protocol is 'joined'; expected joined/1"),
    ("evaluate/contxt", 1, "unknown evaluate key 'contxt'"),
    ("evaluate/line", "no place", "evaluate.line is 'no place'; expected a text with one {}"),
    ("evaluate", None, "evaluate is None in params.yaml; expected a section"),
    ("benchmark/rounds", 0, "benchmark.rounds is 0"),
    ("benchmark/prompts", [], "benchmark.prompts is []"),
    ("benchmark/threads", "2", "benchmark.threads is '2'"),
    ("device", "gpu", "device is 'gpu'; expected one of auto, cpu, cuda"),
    ("device", ..., "device is None"),
    ("model", ..., "model is None in params.yaml"),
    ("model/source", ..., "model has no source in params.yaml"),
    ("model/source", 5, "model.source is 5; expected text"),
    ("model/revision", 1234567, "model.revision is 1234567; expected text, in quotes"),
    ("data/sentences", 0, "data.sentences is 0"),
    ("data/config", "x", "data.config is 'x', but data.source is austen"),
    ("data/source", "hub:wikitext", "data.source is 'hub:wikitext'; expected hub:owner/name"),
    ("calibration/windows", 0, "calibration.windows is 0"),
    ("calibration/length", 4, "calibration.length is 4; expected a whole number from 8"),
    ("calibrated/rounding", "gptq", "rounding is 'gptq'; expected one of feedback, nearest"),
    ("sensitivity/bits", 1, "sensitivity.bits is 1"),
    ("sensitivity", ..., "params.yaml has no section sensitivity"),
    ("family/variants", ["rtn9"], "family.variants names rtn9"),
    ("family/variants", ["bnb-nf4"], "family.variants names bnb-nf4, a row of the method bitsandbytes"),
    ("family/models", None, "family is"),
    ("family/models/a b", {"source": "x/y"}, "a model of the family can't be called 'a b'"),
    ("llama_cpp", {"tpye": "Q4_0"}, "the section llama_cpp has unknown keys 'tpye'"),
    ("peers", [1], "the section peers is [1]"),
]


@pytest.mark.parametrize(("path", "value", "words"), MISTAKES, ids=[f"{path}={value}" for path, value, _ in MISTAKES])
def test_a_usual_mistake_is_one_line(path, value, words):
    found = problems(changed(path, value))
    assert len([line for line in found if words in line]) >= 1, found
    assert all("\n" not in line and len(line) < 1000 for line in found)
    with pytest.raises(InputError) as caught:
        require_valid(changed(path, value))
    assert found[0] in str(caught.value)


def test_every_mistake_is_told_not_only_the_first():
    params = changed("evaluate/context", "abc") | {"device": "gpu"}
    params["variants"] = params["variants"] | {"x": {"method": "nope"}, 5: {"method": "quant"}}
    found = problems(params)
    assert [line.split()[0] for line in found] == ["evaluate.context", "device", "variants.x:", "a"], found
    assert "a variant is called 5, which is no text" in found[3]
    with pytest.raises(InputError, match=r"and 3 more in params\.yaml, which python -m quant\.check lists"):
        require_valid(params)


BROKEN = {
    "bracket": "a: [1", "tab": "model:\n\tsource: x\n", "list": "- x", "empty": "", "binary": "\0\1", "text": "just words",
    "twice": "model: {source: a}\ndata: {}\nmodel: {source: b}\n", "deep": "a: " + 200 * "[" + 200 * "]",
    "bits": (ROOT / "params.yaml").read_text().replace("bits: 8  ", "bits: 88 ", 1),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_params_are_told_within_half_a_second(text, tmp_path):
    """CPU time of the whole command; the message is one line."""
    (tmp_path / "params.yaml").write_text(text)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "quant.check"], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1 and all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert text is BROKEN["bits"] or len(done.stderr.splitlines()) == 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


PROBES = (None, True, False, -1, 0, 1, 2, 3, 8, 9, 32, 33, 0.25, 4.5, 1e9, "", "row", "tensor", "x", "2", [], {}, ["mlp"], [0],
          ["3-5"], ["x"], [None], [1, 0, -1], [2, 3], [{"bits": 3}], [{"bit": 3}], {"mlp": {"bits": 4}}, {"mlp": {"bits": 9}},
          {"nope": {}}, {"mlp": 4})
BASES = {"float": {}, "quant": {}, "calibrated": {}, "bitsandbytes": {"type": "nf4"}, "peers": {"package": "llmcompressor"},
         "llama_cpp": {"type": "Q4_0"}}


@pytest.mark.parametrize("name", names())
def test_the_schema_of_a_row_says_what_its_method_says(name):
    """One parameter at a time: what the method takes the schema takes; what the schema alone takes contradicts another one."""
    method, form = load(name), schema()["properties"]["variants"]["additionalProperties"]
    known = method.properties()
    for key, value in product(known, (*PROBES, *(one for limits in known.values() for one in limits.get("enum", [])))):
        row = BASES[name] | {key: value}
        is_taken = False
        with suppress(InputError):
            method.resolve({}, row)
            is_taken = True
        is_fit = fits({"method": name, **row}, form)
        assert is_fit or not is_taken, f"the schema says no to {row}, which can be made"
        if is_fit and not is_taken and not isinstance(value, list | dict):
            with pytest.raises(InputError, match=CONTRADICTIONS):
                method.resolve({}, row)
    assert not fits({"method": name, **BASES[name], "nope": 1}, form)


CONTRADICTIONS = ("must be|has (symmetric|asymmetric) steps only|is for |it needs|expected one of them|; (hqq|llmcompressor) has|"
                  "beside|no file|solves|ggml|nested|algorithm of|package is|budget chooses|llama.cpp type is None")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["evaluate", "benchmark", "calibration", "data", "model", "sensitivity", "family", "device"]), st.data())
def test_what_a_section_takes_the_schema_takes(section, data):
    value = st.one_of(st.sampled_from(PROBES), st.text(max_size=5), st.integers(-3, 600))
    params = copy.deepcopy(PARAMS)
    if data.draw(st.booleans()) or not isinstance(params[section], dict):
        params[section] = data.draw(value)
    else:
        params[section][data.draw(st.sampled_from([*params[section], "nope"]))] = data.draw(value)
    if not problems(params):
        assert fits(json.loads(json.dumps(params)), schema())
