"""Code that comes with a model never runs, whatever a library or llama.cpp's converter passes on."""

import json
import shutil
from contextlib import chdir, suppress

import pytest

from quant.errors import InputError
from quant.methods.llama_cpp.convert import convert

PLANTED = """
from pathlib import Path
Path({marker!r}).write_text("ran")
class Tokenizer:
    pass
"""


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
