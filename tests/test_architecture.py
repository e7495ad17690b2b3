"""The house: what each stage stands on is declared, rooms depend in one direction, and files stay small."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from conftest import save_model
from project_imports import ROOT, closure, file_of, imports_of

from quant.methods import names

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SOURCES = sorted(path.relative_to(ROOT) for folder in ("quant", "stages") for path in (ROOT / folder).rglob("*.py"))

# Imported by stages and not among their deps, because a change of them changes no result. Each with the reason.
HELPERS = {
    "quant/__init__.py": "a docstring",
    "stages/__init__.py": "a docstring",
    "quant/recover.py": "DVC's own files",
    "quant/interrupted.py": "git's branch and stash",
    "quant/outside.py": "refuses wrong files; what is accepted stays as it is",
    "quant/errors.py": "the error a user reads",
    "quant/progress.py": "a bar on a terminal, sizes in messages",
    "quant/command.py": "arguments of commands",
    "quant/config.py": "refuses wrong keys; what is accepted stays as it is",
    "quant/refusal.py": "the reason in place of a variant that can't be made; what is made stays as it is",
    "quant/files.py": "writes whole files; their content is given",
    "quant/cluster/__init__.py": "a docstring",
    "quant/cluster/attach.py": "where a stage runs, not what it does",
    "quant/cluster/pieces.py": "where a piece is computed, not what",
    "quant/cluster/stages.py": "where a stage runs, not what it does",
    "quant/pipeline.py": "places of files and the form of errors; parameters are declared by themselves",
}


def instances():
    """(stage, method of its row or None, deps, script) of every stage, those of groups once for each method."""
    for stage, entry in DVC.items():
        definition = entry.get("do", entry)
        script = Path(definition["cmd"].split()[2].replace(".", "/") + ".py")
        for method in names() if "foreach" in entry else (None,):
            deps = [dep.replace("${item.method}", str(method)) for dep in definition["deps"]]
            yield pytest.param(stage, method, deps, script, id=f"{stage}@{method}" if method else stage)


INSTANCES = list(instances())


@pytest.mark.parametrize(("stage", "method", "deps", "script"), INSTANCES)
def test_a_stage_depends_on_all_code_that_it_imports(stage, method, deps, script):
    needed = closure(script, method or ("float" if stage == "benchmark-base" else None)) - set(HELPERS)
    missing = {path for path in needed if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)}
    assert not missing, f"dvc.yaml: {stage} imports these and does not depend on them"


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_depends_on_no_code_that_it_does_not_import(stage):
    """A dep too many reruns what did not change. A folder counts where one of its files is imported, for any method."""
    chosen = [given.values for given in INSTANCES if given.values[0] == stage]
    imported = {path for _, method, _, script in chosen for path in closure(script, method)}
    code = {dep for _, _, deps, _ in chosen for dep in deps if dep.startswith(("quant/", "stages/"))}
    assert not [dep for dep in code if not any(path == dep or path.startswith(f"{dep}/") for path in imported)]


def test_helpers_are_helpers():
    assert all((ROOT / path).is_file() for path in HELPERS), "the list names files that are gone"


def test_the_closure_sees_late_imports_strings_and_packages():
    found = closure(Path("stages/quantize.py"), "llama_cpp")
    assert {"quant/methods/llama_cpp/converter.py", "quant/methods/llama_cpp/quantize.py", "quant/gguf/library.py"} <= found
    assert not [path for path in found if path.startswith("quant/methods/bitsandbytes")]
    assert "quant/kernels/cpu.py" in closure(Path("stages/evaluate.py"))


@pytest.mark.parametrize("stage", sorted(path.stem for path in (ROOT / "stages").glob("*.py")))
def test_a_stage_reads_the_parameters_that_it_declares(stage):
    """parameters()["x"] in the script, against params in dvc.yaml."""
    source = (ROOT / "stages" / f"{stage}.py").read_text()
    read = set(re.findall(r"""params(?:eters\(\))?\[["'](\w+)["']\]""", source))
    for name, entry in DVC.items():
        definition = entry.get("do", entry)
        if f"stages.{stage}" in definition["cmd"].split():
            declared = definition.get("params", [])
            assert read <= {str(given).partition(".")[0] for given in declared} or {"params.yaml": None} in declared, name


def test_every_result_depends_on_the_versions_that_compute_it():
    for stage in ("prepare", "quantize", "evaluate-base", "evaluate", "benchmark-base", "benchmark", "compare"):
        assert "data/plan/libraries/compute.json" in DVC[stage].get("do", DVC[stage])["deps"], stage
    for stage in ("quantize", "evaluate", "benchmark"):
        assert "data/plan/variants/${key}.json" in DVC[stage]["do"]["deps"], "holds the versions of the method's libraries"


# From the ground up: a room imports rooms that stand before it.
FLOORS = (
    # the ground floor: single files
    "errors", "outside", "files", "refusal", "config", "progress", "command", "pins", "memory", "interrupted", "recover",
    "cluster", "pipeline", "device",
    "tensor", "compiled", "kernels", "model", "gguf", "nn", "transformers_format", "runners", "hub", "text", "quality",
    "training", "calibration", "speed", "methods", "variants", "family", "preflight", "export", "report", "publish",
    "benches", "select", "retry", "check", "jobs", "supply",
)  # fmt: skip


def room_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] == "quant" and len(path.parts) > 1], ids=str)
def test_arrows_point_down(path):
    if path.name == "__init__.py" and len(path.parts) == 2:
        return
    needed = {room_of(file_of(name)) for name in imports_of(path) if not name.endswith(".*") and name != "quant"}
    above = {room for room in needed if FLOORS.index(room) > FLOORS.index(room_of(path))}
    assert not above, f"{path} imports {above}, which stand above it"


def test_no_two_files_need_each_other():
    graph = {path: {file_of(name) for name in imports_of(path) if not name.endswith(".*")} - {path} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files of a circle


def test_every_room_has_a_floor_and_says_what_it_is_for():
    rooms = {room_of(path) for path in SOURCES if path.parts[0] == "quant"} - {"__init__"}
    assert rooms == set(FLOORS)
    for room in rooms:
        entrance = ROOT / "quant" / room / "__init__.py"
        if entrance.is_file():
            assert ast.get_docstring(ast.parse(entrance.read_text())), f"quant/{room}/__init__.py has no docstring"


def test_the_readme_draws_the_tree_that_is_there():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    drawn = re.findall(r"^ {2}(\w+)/", tree, re.MULTILINE)
    assert set(drawn) == {path.name for path in (ROOT / "quant").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert drawn == [room for room in FLOORS if room in drawn], "in the order of the floors"


def test_files_stay_small():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert not {path: count for path, count in lines.items() if count > (60 if path.parts[0] == "stages" else 400)}


def strings(path: Path) -> set[str]:
    """String constants of a file. "quant" is also the package's own name, so of it only comparisons and keys count."""
    tree = ast.parse((ROOT / path).read_text())
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)} - {"quant"}
    for node in ast.walk(tree):
        places = node.keys if isinstance(node, ast.Dict) else [node] if isinstance(node, ast.Compare | ast.Subscript) else []
        inner = (part for place in places if place for part in ast.walk(place))
        found |= {part.value for part in inner if isinstance(part, ast.Constant) and part.value == "quant"}
    return found


def test_no_other_code_knows_the_name_of_a_method():
    """The development benches compare given methods, and a runtime may be called like one."""
    apart = ("methods", "runners", "benches")
    found = {str(path): strings(path) & set(names()) for path in SOURCES if path.parts[1] not in apart}
    assert not {path: known for path, known in found.items() if known}


def test_a_new_grid_is_a_table(tmp_path):
    """In a copy of the package: one entry of CODEBOOKS, and recipes, artifacts, sizes and figures know it."""
    shutil.copytree(ROOT / "quant", tmp_path / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "quant" / "tensor" / "codebooks.py"
    text = path.read_text()
    path.write_text(text.replace('CODEBOOKS = {', 'CODEBOOKS = {\n    "tri": Codebook("Ternary", (-1.0, 0.0, 1.0)),'))
    script = (
        "import torch; from quant.tensor.scheme import Scheme; from quant.tensor.qtensor import dequantize, quantize\n"
        "from quant.report.style import GRIDS\n"
        "scheme = Scheme(2, 64, codebook='tri'); weight = torch.randn(4, 128)\n"
        "scales = weight.view(4, 2, 64).abs().amax(-1)\n"
        "values = dequantize(quantize(weight, scheme)).view(4, 2, 64) / scales.unsqueeze(-1)\n"
        "assert set(values.unique().tolist()) == {-1.0, 0.0, 1.0} and scheme.label == 'tri g64'\n"
        "assert GRIDS['tri'].label == 'Ternary' and len({(look.colour, look.marker) for look in GRIDS.values()}) == len(GRIDS)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_new_dense_architecture_is_an_entry(monkeypatch, tmp_path):
    """A Llama-like family that the table does not know: one entry, and it is quantized, opened and computes the same."""
    import torch
    import transformers

    from quant.model import architectures
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.runners import open_runner
    from quant.tensor.scheme import Scheme

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64}
    save_model(transformers.SmolLM3Config(pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape), tmp_path / "base")
    entry = replace(architectures.ARCHITECTURES["llama"], classes=("SmolLM3ForCausalLM", "SmolLM3Model"))
    monkeypatch.setitem(architectures.ARCHITECTURES, "smollm3", entry)
    write_artifact(tmp_path / "base", Recipe(Scheme(), include=("*",)), tmp_path / "int8")
    tokens = torch.arange(3, 27).view(1, -1)
    base, variant = (open_runner(tmp_path / name).logits(tokens) for name in ("base", "int8"))
    assert (base - variant).abs().max() < 0.02 * base.abs().max()
