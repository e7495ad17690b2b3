"""Mutated headers, configs, indexes, manifests, artifacts, cards, GGUF headers and parameters: accepted, or one line; never more.

FUZZ_CASES in the environment sets the number of cases of each kind; `make fuzz` runs many.
"""

import json
import os
import struct
import time
import tracemalloc
from contextlib import suppress
from copy import deepcopy

import pytest
from conftest import EMBEDDED, config_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.errors import InputError
from quant.gguf.header import check_gguf
from quant.hub.license import License
from quant.model.architectures import architecture_of
from quant.model.artifact_format import check_quantization
from quant.model.config import check_config, read_config
from quant.model.folder import shard_names
from quant.model.inventory import take_inventory
from quant.model.recipe import Recipe
from quant.model.safetensors_file import TensorInfo, read_header
from quant.model.selection import select
from quant.outside import parse_json, parse_yaml, shown
from quant.runners import opening_of
from quant.tensor.scheme import Scheme
from quant.variants import variant

CASES = int(os.environ.get("FUZZ_CASES", "60"))
SECONDS, MEMORY = 2.0, 64 * 2**20  # most of a case, above the size of what it reads

ODD = st.sampled_from([
    None, True, False, 0, -1, 1, 2, 3, 64, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "\0", "\x1b[2J", "\ud800", "../..", "/etc/passwd", "a" * 5000, "²", "9" * 5000, "gpt2",
    "llama", "0-99999999999", [], {}, [[]], [None], {"": None}, ["a", 1], [0, 10**12], [[0, 10**12]], [True, True],
    [10**18] * 9, {"quant_method": []},
])  # fmt: skip
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


def places(value, path=()):
    """Every place in a value of JSON."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@st.composite
def mutated(draw, start):
    """A value of JSON with one to three places replaced, removed or added to; drawn values are copied: they may change too."""
    value = json.loads(json.dumps(start))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return deepcopy(draw(VALUES))
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            holder[path[-1]] = deepcopy(draw(VALUES))
        elif how == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = deepcopy(draw(VALUES))
        else:
            holder.append(deepcopy(draw(VALUES)))
        if not isinstance(value, dict | list):
            return value
    return value


@st.composite
def written(draw, start):
    """Bytes: a mutated value as JSON, at times with bytes changed or cut."""
    try:
        data = bytearray(json.dumps(draw(mutated(start))).encode("utf-8", "surrogatepass"))
    except ValueError:  # a number that Python does not print
        data = bytearray(b'{"a": ' + b"9" * 5000 + b"}")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


def attempt(read, *given):
    """Call a reader: it answers, or raises InputError of one printable line, in little time and memory."""
    begun = time.process_time()
    tracemalloc.start()
    try:
        read(*given)
    except InputError as error:
        line = str(error)
        assert line and line.isprintable() and len(line) < 2100, ascii(line)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - begun < SECONDS and most < MEMORY


def many(test):
    return settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)(test)


LLAMA = {key: value for key, value in config_of("llama").to_dict().items() if value is not None}
GPT2 = json.loads((EMBEDDED / "config.json").read_text())
INDEX = {"metadata": {"total_size": 10}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x.safetensors"}}
MANIFEST = {"runtime": "transformers", "weights": "base", "opened_as": "float32", "files": {"a": {"bytes": 1, "sha256": "0"}}}
HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
          "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}
ARTIFACT = {"schemes": [Scheme().to_dict(), Scheme(4, 64, codebook="nf4").to_dict()],
            "modules": {"a": {"q": {"scheme": 0, "ranges": [[0, 64]]}, "k_v": {"scheme": None, "ranges": [[64, 128]]}},
                        "b": {"class0": {"scheme": 1, "rows": 7}}}}
ROW = {"method": "quant", "include": ["attention", "mlp"], "exclude": ["norm"], "blocks": [0, "1-1"], "bits": 4, "group_size": 64,
       "codebook": [-1.0, -0.5, 0.0, 0.5, 1.0, 2, 3, 4, 5], "schemes": {"mlp": {"bits": 8, "codebook": "linear"}}}
PARAMS = {"quant": {"bits": 8}, "calibrated": {"bits": 4}, "variants": {
    "a": ROW, "b": {"method": "bitsandbytes", "type": "nf4"}, "c": {"method": "llama_cpp", "type": "Q8_0"},
    "d": {"method": "calibrated", "budget": 4.0, "candidates": [2, {"bits": 3}]}, "e": {"method": "float", "dtype": "bfloat16"}}}


def in_file(folder, name, data):
    (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_configs(folder, make_model, config):
    path = (make_model("llama") if config is LLAMA else EMBEDDED) / "model.safetensors"
    tensors = {name: TensorInfo(info.dtype, info.shape) for name, info in read_header(path).items()}

    def read(data):
        found = read_config(in_file(folder, "config.json", data))
        architecture_of(found)
        inventory = take_inventory(found, tensors)
        select(inventory, Recipe(Scheme(), include=("*",)))

    @many
    @given(written(config))
    def check(data):
        attempt(read, data)

    check()


def test_values_of_a_config_that_is_no_file():
    @many
    @given(mutated(LLAMA))
    def check(value):
        if isinstance(value, dict) and "model_type" in value:
            attempt(check_config, value, "config.json")

    check()


@pytest.mark.parametrize(("name", "start", "read"), [
    ("model.safetensors.index.json", INDEX, lambda path: shard_names(path)),
    ("manifest.json", MANIFEST, lambda path: opening_of(path.parent)),
], ids=["index", "manifest"])  # fmt: skip
def test_files_of_json(folder, name, start, read):
    @many
    @given(written(start))
    def check(data):
        attempt(read, in_file(folder, name, data) / name)

    check()


def test_safetensors_headers(folder):
    path = folder / "x.safetensors"

    @many
    @given(written(HEADER), st.sampled_from([None, None, None, 0, 2**63, 2**64 - 1]), st.integers(0, 64))
    def check(header, length, data):
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + b"\0" * data)
        attempt(read_header, path)

    check()


def test_gguf_headers(folder):
    path = folder / "model.gguf"

    @many
    @given(st.binary(max_size=64) | st.builds(lambda *n: struct.pack("<4sIQQ", b"GGUF", *n), st.integers(0, 9),
                                              st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
    def check(data):
        path.write_bytes(data)
        attempt(check_gguf, path)

    check()


def test_quantization_configs():
    @many
    @given(mutated(ARTIFACT))
    def check(value):
        if isinstance(value, dict):
            attempt(check_quantization, value.get("schemes"), value.get("modules"))

    check()


def test_front_matter(folder):
    @many
    @given(st.text(max_size=200) | mutated({"license": "mit", "license_name": "a", "tags": ["x", {"y": 1}]}).map(repr))
    def check(text):
        path = in_file(folder, "README.md", f"---\nlicense: {text}\n---\n".encode("utf-8", "replace")) / "README.md"
        attempt(License.from_card, path)

    check()


def test_rows_of_params():
    def read(value):
        value = parse_yaml(shownable(value), "params.yaml")
        if isinstance(value, dict):
            for name in list(value.get("variants") or {}) if isinstance(value.get("variants"), dict) else []:
                with suppress(InputError):
                    made = variant(name, value)
                    if made.method.recipe(made.values):
                        _ = made.method.recipe(made.values).block_numbers

    def shownable(value):
        try:
            return json.dumps(value)
        except ValueError:
            return "a: " + "9" * 5000

    @many
    @given(mutated(PARAMS))
    def check(value):
        attempt(read, value)

    check()


@many
@given(st.binary(max_size=200))
def test_bytes(data):
    attempt(parse_json, data, "x")
    attempt(parse_yaml, data.decode("latin-1"), "x")


@many
@given(VALUES)
def test_values_in_messages(value):
    assert len(shown(value)) <= 130 and shown(value).isprintable()


def test_large_documents_are_refused_before_they_take_memory():
    for data in (b"[" + b"[]," * 10**6 + b"[]]", b"[" + b"0," * 10**6 + b"0]", b"{" + b'"a":' * 10**5, b"[" * 10**6):
        attempt(parse_json, data, "x")
