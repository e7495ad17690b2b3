"""Code that comes with a model never runs, whatever a library or llama.cpp's converter passes on."""

import ast
import json
import shutil
from contextlib import chdir, suppress

import pytest
from conftest import ROOT

from quant.errors import InputError
from quant.methods.llama_cpp.convert import convert

PLANTED = """
from pathlib import Path
Path({marker!r}).write_text("ran")
class Tokenizer:
    pass
"""

OPENS = {f"{kind}.{call}" for kind in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM", "GPTQModel")
         for call in ("from_pretrained", "from_config", "load")}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["DreamModel", "LLaDAModelLM", "LlamaForCausalLM"])
def test_the_converter_imports_nothing_from_a_models_folder(make_model, tmp_path, architecture):
    """llama.cpp's converter opens tokenizers with trust_remote_code=True for some architectures; a config can name those."""
    marker = tmp_path / "marker"
    shutil.copytree(make_model("llama"), tmp_path / "planted")
    (tmp_path / "planted" / "module.py").write_text(PLANTED.format(marker=str(marker)))
    own = "planted--module.Tokenizer"
    changes = {"config.json": {"architectures": [architecture], "auto_map": {"AutoConfig": own}},
               "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, own]}, "tokenizer_class": "Tokenizer"}}
    for name, change in changes.items():
        path = tmp_path / "planted" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with chdir(tmp_path), suppress(InputError):  # that it refuses such a model is fine as well
        convert(tmp_path / "planted", tmp_path / "out")
    assert not marker.exists()


def test_every_library_is_told_to_run_no_code_of_a_model():
    """Each call that opens a folder says so itself, whatever its default may become; random_model has a config of its own."""
    calls = 0
    for path in sorted((ROOT / "quant").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            opens = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in OPENS
            if opens and path.name != "random_model.py":
                given = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                calls += 1
    assert calls > 5, "the names of the calls have changed"
