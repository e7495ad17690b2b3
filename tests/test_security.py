"""Code that comes with a model never runs, whatever a library or llama.cpp's converter passes on."""

import json
import shutil
from contextlib import chdir

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
    for name, change in (("config.json", {"architectures": [architecture], "auto_map": {"AutoConfig": "planted--module.Tokenizer"}}),
                         ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "planted--module.Tokenizer"]},
                                                    "tokenizer_class": "Tokenizer"})):
        path = tmp_path / "planted" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with chdir(tmp_path):
        try:
            convert(tmp_path / "planted", tmp_path / "out")
        except InputError:
            pass  # that it refuses such a model is fine as well
    assert not marker.exists()
