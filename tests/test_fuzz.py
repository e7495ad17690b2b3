"""Mutated headers, configs, indexes, manifests, artifacts, tokenizers, cards, texts and params: accepted, or one line; no more.

FUZZ_CASES in the environment sets the number of cases of each kind, FUZZ_SEED which ones; `make fuzz` runs a million in all.
They are drawn by `random`, so that a million take minutes. One that fails is printed.
"""

import json
import os
import re
import resource
import struct
import time
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
import yaml
from conftest import EMBEDDED, ROOT, config_of

from quant.errors import InputError
from quant.gguf.header import check_gguf
from quant.hub.license import License
from quant.model.architectures import architecture_of
from quant.model.artifact_format import check_quantization
from quant.model.config import check_config, check_tokenizer, read_config
from quant.model.folder import shard_names
from quant.model.inventory import take_inventory
from quant.model.recipe import Recipe
from quant.model.safetensors_file import TensorInfo, read_header
from quant.model.selection import select
from quant.outside import parse_json, parse_yaml, shown
from quant.preflight.sections import problems
from quant.runners import opening_of
from quant.tensor.scheme import Scheme
from quant.text.read import count_lines, read_corpus
from quant.text.source import TextSource
from quant.variants import variant

CASES, SEED = int(os.environ.get("FUZZ_CASES", "20000")), os.environ.get("FUZZ_SEED", "0")
SECONDS, MEMORY = 2.0, 64 * 2**20  # most of a case, above the size of what it reads

ODD = [
    None, True, False, 0, -1, 1, 2, 3, 64, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "\0", "\x1b[2J", "\ud800", "../..", "/etc/passwd", "a" * 5000, "²", "9" * 5000, "gpt2",
    "llama", "0-99999999999", [], {}, [[]], [None], {"": None}, ["a", 1], [0, 10**12], [[0, 10**12]], [True, True],
    [10**18] * 9, {"quant_method": []},
]  # fmt: skip
CHARACTERS = "\0\x1b\n\t\r \"'\\/.,:;-+*?#&%$|=@<>[]{}()aZ09éü²\u2028\ud800\udfff\U0001f600"


class Chance(Random):
    """Draws values of JSON, mutations of them, and files."""

    def text(self, most=20):
        return "".join(self.choice(CHARACTERS) if self.random() < 0.8 else chr(self.randrange(0x110000))
                       for _ in range(self.randrange(most + 1)))

    def whole(self):
        return self.choice((1, 1, -1)) * self.getrandbits(self.choice((2, 4, 8, 16, 32, 64, 200)))

    def value(self, depth=3):
        kind = self.randrange(10)
        if kind < 5 or (kind > 7 and not depth):
            return deepcopy(self.choice(ODD))
        if kind == 5:
            return self.whole()
        if kind == 6:
            return self.uniform(-1, 1) * 10.0 ** self.randrange(-300, 300)
        if kind == 7:
            return self.text()
        inside = [self.value(depth - 1) for _ in range(self.randrange(5))]
        return inside if kind == 8 else {self.text(8): one for one in inside}

    def mutated(self, start):
        """A copy of a value with one to three places replaced, by others of its own at times, removed or added to."""
        value = deepcopy(start)
        for _ in range(self.randint(1, 3)):
            places = list(walk(value))
            if not places or self.randrange(40) == 0:
                return self.value()
            holder, key = self.choice(places)
            how = self.randrange(6)
            if how < 3:
                holder[key] = self.value()
            elif how == 3:
                there, where = self.choice(places)
                holder[key] = deepcopy(there[where])
            elif how == 4:
                del holder[key]
            elif isinstance(holder, dict):
                holder[self.text(8)] = self.value()
            else:
                holder.insert(key, self.value())
        return value

    def written(self, start):
        """Bytes: a mutated value as JSON, at times with bytes changed, put in, taken out or cut off."""
        return self.garbled(as_json(self.mutated(start)))

    def garbled(self, data):
        data = bytearray(data)
        for _ in range(self.choice((0, 0, 0, 1, 3))):
            if data:
                at = self.randrange(len(data))
                data[at : at + self.choice((0, 1, 1, 9))] = self.randbytes(self.choice((0, 1, 1, 4)))
        return bytes(data[: self.randrange(len(data) + 1)] if self.randrange(10) == 0 else data)


def walk(value):
    """Every place in a value of JSON: what holds it, and its key or number there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from walk(value[key])


def as_json(value):
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:  # a number that Python does not print
        return b'{"a": ' + b"9" * 5000 + b"}"


@contextmanager
def little_memory():
    """Whoever takes more than MEMORY above what the process has at the beginning gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = 1024 * int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def attempt_many(kind, draw, read, warm=()):
    """Give a reader what `draw` makes of CASES chances: it answers, or raises InputError of one printable line, in little time
    and memory. warm: a case before, for what the reader imports at its first call.
    """
    with suppress(InputError):
        read(*warm) if warm else read(draw(Chance(kind)))
    with little_memory():
        for number in range(CASES):
            case = draw(Chance(f"{kind} {SEED} {number}"))
            begun = time.process_time()
            try:
                read(case)
            except InputError as error:
                line = str(error)
                assert line and line.isprintable() and len(line) < 2100, (number, ascii(case)[:3000], ascii(line))
            except BaseException as error:  # of a library in Rust as well, whose panics are no Exception
                raise AssertionError(f"{type(error).__name__} at case {number}: {ascii(case)[:3000]}") from error
            assert time.process_time() - begun < SECONDS, (number, ascii(case)[:3000])


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
FAMILY = {"variants": ["a"], "models": {"b": {"source": "x/y"}}}
WHOLE = yaml.safe_load((ROOT / "params.yaml").read_text()) | PARAMS | {"family": FAMILY}
# A small tokenizer of the library's own making
WORDS = {"version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "NFC"}, "post_processor": None,
         "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
         "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
         "added_tokens": [{"id": 3, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                           "normalized": False, "special": True}],
         "model": {"type": "BPE", "dropout": None, "unk_token": "a", "continuing_subword_prefix": None, "fuse_unk": False,
                   "end_of_word_suffix": None, "byte_fallback": False, "vocab": {"a": 0, "b": 1, "ab": 2},
                   "merges": [["a", "b"]]}}
TOKENIZER_CONFIG = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<s>", "model_max_length": int(1e30),
                    "tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"3": {"content": "<s>", "special": True}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def in_file(folder, name, data):
    (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_configs(folder, make_model, name):
    path = (make_model("llama") if name == "llama" else EMBEDDED) / "model.safetensors"
    tensors = {name: TensorInfo(info.dtype, info.shape) for name, info in read_header(path).items()}

    def read(data):
        found = read_config(in_file(folder, "config.json", data))
        architecture_of(found)
        inventory = take_inventory(found, tensors)
        select(inventory, Recipe(Scheme(), include=("*",)))

    start = LLAMA if name == "llama" else GPT2
    attempt_many(f"config of {name}", lambda chance: chance.written(start), read, [as_json(start)])


def test_values_of_a_config_that_is_no_file():
    def read(value):
        if isinstance(value, dict) and "model_type" in value:
            check_config(value, "config.json")

    attempt_many("values of a config", lambda chance: chance.mutated(LLAMA), read)


@pytest.mark.parametrize(("name", "start", "read"), [
    ("model.safetensors.index.json", INDEX, lambda folder: shard_names(folder / "model.safetensors.index.json")),
    ("manifest.json", MANIFEST, opening_of),
    ("tokenizer.json", WORDS, check_tokenizer),
    ("tokenizer_config.json", TOKENIZER_CONFIG, check_tokenizer),
], ids=["index", "manifest", "tokenizer", "tokenizer config"])  # fmt: skip
def test_files_of_json(tmp_path, name, start, read):
    attempt_many(name, lambda chance: chance.written(start), lambda data: read(in_file(tmp_path, name, data)), [as_json(start)])


def test_safetensors_headers(folder):
    def draw(chance):
        header, length = chance.written(HEADER), chance.choice((None, None, None, 0, 2**63, 2**64 - 1))
        return struct.pack("<Q", len(header) if length is None else length) + header + bytes(chance.randrange(65))

    attempt_many("header", draw, lambda data: read_header(in_file(folder, "x.safetensors", data) / "x.safetensors"))


def test_gguf_headers(folder):
    def draw(chance):
        head = struct.pack("<4sIQQ", b"GGUF", chance.randrange(10), chance.getrandbits(64), chance.choice((0, 1, 2**40)))
        return chance.garbled(head) + chance.randbytes(chance.randrange(64))

    attempt_many("GGUF", draw, lambda data: check_gguf(in_file(folder, "model.gguf", data) / "model.gguf"))


def test_quantization_configs():
    def read(value):
        if isinstance(value, dict):
            check_quantization(value.get("schemes"), value.get("modules"))

    attempt_many("quantization config", lambda chance: chance.mutated(ARTIFACT), read)


def test_front_matter(folder):
    card = {"license": "mit", "license_name": "a", "license_link": "b", "tags": ["x", {"y": 1}]}

    def draw(chance):
        inner = chance.garbled(as_json(chance.mutated(card))) if chance.randrange(2) else chance.text(200).encode(
            "utf-8", "surrogatepass")
        return b"---\n" + chance.choice((b"", b"license: ")) + inner + b"\n---\n"

    attempt_many("card", draw, lambda data: License.from_card(in_file(folder, "README.md", data) / "README.md"))


def test_texts(folder):
    def draw(chance):
        return chance.garbled(chance.text(200).encode("utf-8", chance.choice(("replace", "replace", "surrogatepass"))))

    def count(data):
        assert count_lines(str(in_file(folder, "text.txt", data) / "text.txt")) > 0

    attempt_many("text", draw, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.CASES", max(CASES // 200, 5))  # a dataset each, at 20 ms
        attempt_many("corpus", draw, lambda data: read_corpus(TextSource(str(in_file(folder, "text.txt", data) / "text.txt"))))


def test_rows_of_params():
    def read(data):
        value = parse_json(data, "params")
        found = value.get("variants") if isinstance(value, dict) else None
        for name in list(found) if isinstance(found, dict) else ():
            with suppress(InputError):
                made = variant(name, value)
                if made.method.recipe(made.values):
                    _ = made.method.recipe(made.values).block_numbers

    attempt_many("params", lambda chance: as_json(chance.mutated(PARAMS)), read, [as_json(PARAMS)])


def test_all_of_params():
    def read(data):
        value = parse_json(data, "params")
        found = problems(value) if isinstance(value, dict) else []
        assert all(line.isprintable() and len(line) < 2100 for line in found), found

    attempt_many("all of params", lambda chance: as_json(chance.mutated(WHOLE)), read)


def test_yaml():
    text = yaml.safe_dump({"quant": {"bits": 8}, "variants": {"a": {"method": "quant", "blocks": [0, "1-1"]}}})

    def draw(chance):
        words = ("&a ", "*a", "<<: *a\n", "!!binary ", "!!python/object:os.system ", "2024-99-99", "? ", "\t", "[" * 99, ".nan")
        at = chance.randrange(len(text))
        changed = text[:at] + chance.choice((chance.text(), *words)) + text[at + chance.choice((0, 0, 9)):]
        return chance.garbled(changed.encode("utf-8", "replace")).decode("utf-8", "replace")

    attempt_many("YAML", draw, lambda text: parse_yaml(text, "params.yaml"))


def test_bytes():
    def read(data):
        with suppress(InputError):
            parse_json(data, "x")
        parse_yaml(data.decode("latin-1"), "x")

    attempt_many("bytes", lambda chance: chance.garbled(chance.choice((chance.randbytes(chance.randrange(100)),
                                                                       chance.text(99).encode("utf-8", "replace")))), read)


def test_values_in_messages():
    def read(value):
        assert len(shown(value)) <= 130 and shown(value).isprintable()

    attempt_many("messages", lambda chance: chance.value(), read)


def test_large_documents_are_refused_before_they_take_memory():
    documents = (b"[" + b"[]," * 10**6 + b"[]]", b"[" + b"0," * 10**6 + b"0]", b"{" + b'"a":' * 10**5, b"[" * 10**6)
    with little_memory():
        for data in documents:
            with pytest.raises(InputError):
                parse_json(data, "x")
