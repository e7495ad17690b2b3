"""Other models on the same text: what each measures alone, how two with different tokenizers compare, and what does not fit."""

import json

import pytest
import torch
import yaml
from conftest import EMBEDDED, EMBEDDED_TOKENS, ROOT, config_of, run_stage, save_model
from made_up import PARAMS

from quant.errors import InputError
from quant.family import family_recipes
from quant.files import write_json
from quant.hub.family import Family
from quant.hub.fetch import fetch_model
from quant.hub.source import ModelSource
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.quality.bootstrap import Blocks, difference_in_bits_per_byte
from quant.quality.family import measure_relative
from quant.quality.protocol import ScoringProtocol
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus, write_corpus
from quant.training.tokenizer import make_tokenizer

PROTOCOL = ScoringProtocol(context=32, stride=32)
CORPUS = Corpus("x", tuple(f"the board of naïve traders said {n} shares rose {'more ' * (n % 5)}" for n in range(40)))
RECIPES = {"rtn8": Recipe(Scheme(8, 64)), "rtn2": Recipe(Scheme(2, 32), include=("*",), exclude=("norm",)),
           "odd": Recipe(Scheme(4), blocks=(9,))}


@pytest.fixture(scope="module")
def relatives(tmp_path_factory):
    """Two models as the stage fetches them: `a` with the embedded tokenizer, `b` another architecture, with a tokenizer of its
    own that knows no beginning of a text."""
    folder = tmp_path_factory.mktemp("relatives")
    for name, architecture, dtype in (("a", "gpt2", torch.float16), ("b", "llama", torch.float32)):
        config = config_of(architecture)
        config.vocab_size, config.initializer_range = (EMBEDDED_TOKENS, 0.1) if name == "a" else (300, 0.05)
        save_model(config, folder / "source" / name, dtype)
    make_tokenizer(CORPUS.lines, 300, 64).save_pretrained(folder / "source" / "b")
    about = json.loads((folder / "source" / "b" / "tokenizer_config.json").read_text())
    (folder / "source" / "b" / "tokenizer_config.json").write_text(json.dumps({**about, "bos_token": None}))
    for name in ("a", "b"):
        fetch_model(ModelSource(str(folder / "source" / name)), folder / name)
    return folder


@pytest.fixture(scope="module")
def measured(relatives):
    return {name: measure_relative(relatives / name, RECIPES, CORPUS, PROTOCOL, "cpu") for name in ("a", "b")}


def test_a_row_for_the_model_as_found_and_for_each_recipe(relatives, measured):
    found = measured["a"]
    assert set(found) == {"source", "revision", "architecture", "parameters", "protocol", "rows"}
    assert (found["architecture"], found["revision"]) == ("gpt2", None) and found["source"].endswith("source/a")
    whole, rtn8, rtn2, _ = found["rows"]
    assert [row["variant"] for row in found["rows"]] == ["unquantized", "rtn8", "rtn2", "odd"]
    assert set(whole) == set(rtn8) == {"variant", "weights_mib", "bits_per_weight", "bits_per_byte", "interval", "ppl",
                                       "kld_mnats", "blocks"}
    assert whole["bits_per_weight"] == 16, "as stored"
    assert whole["weights_mib"] == pytest.approx(2 * Checkpoint(relatives / "a").inventory.parameters / 2**20, rel=1e-5)
    assert whole["kld_mnats"] == 0 < rtn8["kld_mnats"] < rtn2["kld_mnats"] and rtn2["weights_mib"] < whole["weights_mib"]
    assert all(row["interval"][0] < row["bits_per_byte"] < row["interval"][1] for row in (whole, rtn8, rtn2))
    assert not [path.name for path in relatives.iterdir() if path.name.startswith(".")], "nothing temporary is left"


def test_a_recipe_that_does_not_fit_is_a_row_with_its_reason(measured):
    for found in measured.values():
        refused = found["rows"][-1]
        assert set(refused) == {"variant", "refused"} and "blocks names 9" in refused["refused"]


def test_models_with_different_tokenizers_compare_on_the_same_blocks(measured):
    a, b = (Blocks.from_dict(measured[name]["rows"][0]["blocks"]) for name in ("a", "b"))
    assert a.tokens.sum() != b.tokens.sum() and len(a.tokens) == len(b.tokens) and a.text_sha256 == b.text_sha256
    assert 0 < a.bytes.sum() - b.bytes.sum() < 10, "without a beginning, nothing predicts the first token"
    found = difference_in_bits_per_byte(a, b)
    of_a, of_b = (measured[name]["rows"][0]["bits_per_byte"] for name in ("a", "b"))
    assert found.value == pytest.approx(of_a - of_b, rel=1e-4) and found.low < found.value < found.high


def test_what_is_measured_twice_is_the_same(relatives, measured):
    assert measure_relative(relatives / "b", RECIPES, CORPUS, PROTOCOL, "cpu") == measured["b"]


PARAMS = PARAMS | {"family": {"variants": ["int4", "whole"], "models": {"small": {"source": "models/embedded"}}}}


def changed(**values):
    return PARAMS | {"family": PARAMS["family"] | values}


def test_the_section_names_rows_and_models():
    family = Family.from_dict(PARAMS["family"])
    assert family.source_of("small") == ModelSource("models/embedded", None)
    found = family_recipes(PARAMS)
    assert list(found) == ["int4", "whole"] and (found["int4"].scheme.bits, found["whole"].include) == (4, ("*",))
    assert family_recipes(changed(variants=[], models={})) == {}


@pytest.mark.parametrize(("values", "message"), [
    ({"model": 1}, "unknown family key 'model'; known: variants, models"),
    ({"variants": "int4"}, r"family\.variants is 'int4'; expected names of rows"),
    ({"variants": ["int4", "int4"]}, "expected every name once"),
    ({"variants": ["unquantized"]}, "none unquantized"),
    ({"variants": ["int5"]}, "family.variants names int5: variant 'int5' is not in params.yaml"),
    ({"variants": ["bnb-nf4"]}, "names bnb-nf4, a row of the method bitsandbytes; expected rows of the method quant"),
    ({"models": ["small"]}, r"family\.models is \['small'\]; expected models such as"),
    ({"models": {"../x": {"source": "a/b"}}}, r"can't be called '\.\./x'; expected letters"),
    ({"models": {7: {"source": "a/b"}}}, "can't be called 7; .* in quotes"),
    ({"models": {"small": "a/b"}}, r"family\.models\.small is 'a/b'; expected {source: "),
    ({"models": {"small": {"source": 5}}}, r"family\.models\.small: model\.source is 5"),
    ({"models": {"small": {"source": "a/b", "branch": "x"}}}, r"family\.models\.small: unknown model key 'branch'"),
])  # fmt: skip
def test_a_wrong_section_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        family_recipes(changed(**values))


def test_a_section_that_is_missing_is_refused():
    with pytest.raises(InputError, match="family is None; expected keys and values, of variants, models"):
        family_recipes({**PARAMS, "family": None})


def test_the_stages_fetch_and_measure(tmp_path):
    """As DVC runs them, on the embedded model; another name is refused in one line."""
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = changed(models={"small": {"source": str(EMBEDDED)}}) | {"evaluate": {"context": 32, "stride": 32}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    planned = [{"variant": name, "recipe": recipe.to_dict()} for name, recipe in family_recipes(params).items()]
    write_json(tmp_path / "data" / "plan" / "family.json", planned)
    write_corpus(CORPUS, tmp_path / "data" / "eval", tmp_path / "data" / "private")
    for stage in ("fetch_relative", "relative"):
        done = run_stage(stage, "small", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small: unquantized ") and "; whole " in done.stdout and len(done.stdout.splitlines()) == 1
    found = json.loads((tmp_path / "reports" / "studies" / "family" / "small.json").read_text())
    assert found["name"] == "small" and [row["variant"] for row in found["rows"]] == ["unquantized", "int4", "whole"]
    done = run_stage("fetch_relative", "large", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: fetch_relative large: model 'large' is not in family.models; it has small\n"
