"""The loops are compiled for another processor, 64-bit ARM, and their machine code is read: it can't run here."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

COMPILE = """
import json, re
import llvmlite.binding as llvm
from numba import cfunc
from quant.compiled.threads import LOOP
from quant.calibration import columns
from quant.kernels import attention, decode, float_rows, loops, norm

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
TRIPLE = "aarch64-unknown-linux-gnu"
machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="neoverse-n1", opt=3)

def assembly(loop):
    compiled = cfunc(LOOP)(loop._pyfunc)
    text = compiled.inspect_llvm()
    lines = (line for line in text.splitlines() if not line.startswith(("target triple", "target datalayout")))
    module = llvm.parse_assembly("\\n".join(lines))
    module.triple, module.data_layout = TRIPLE, str(machine.target_data)
    module.get_function(compiled.native_name).linkage = "external"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)

def innermost(text):  # blocks of instructions that jump to themselves
    for label, body in re.findall(r"^(\\.LBB\\w+):.*?\\n(.*?)(?=^\\.?\\w+:)", text, re.MULTILINE | re.DOTALL):
        if re.search(rf"\\tb\\.\\w+\\t{re.escape(label)}\\n", body):
            yield body

def counts(text):
    reading = [body for body in innermost(text) if "prfm" in body]
    return {"prefetching": len(reading), "vectors": [len(re.findall(r"fmla\\tv\\d+\\.4s", body)) for body in reading],
            "single": sum(len(re.findall(r"\\tfmadd\\t", body)) for body in reading),
            "arithmetic": len(re.findall(r"f(?:mla|mul|add)\\tv\\d+\\.[24]", text))}

every = {"row": loops.multiply_row, "rows": loops.multiply_rows, "float32": decode.to_float32, "bfloat16": decode.to_bfloat16,
         "floats": float_rows._rows_of_floats, "columns": float_rows._columns_of_floats, "norm": norm._normalize_vector,
         "attention": attention._attend_to_cache, "feedback": columns._feedback, "descent": columns._descend}
print(json.dumps({name: counts(assembly(loop)) for name, loop in every.items()}))
"""


@pytest.mark.slow
def test_the_loops_compile_for_arm_to_vectors_of_four_floats(tmp_path):
    numba = {"NUMBA_OPT": "0", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **numba, "QUANT_LANES": "8"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    row = found["row"]
    assert row["prefetching"] >= 7, "a loop for every width, which asks for codes ahead"
    assert row["single"] == 0 and min(row["vectors"]) >= 8, "32 codes take eight multiply-adds of four"
    assert all(counts["arithmetic"] for counts in found.values()), found
