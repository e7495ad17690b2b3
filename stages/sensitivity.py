"""Measure how far the base's predictions move when one role, or one decoder block, alone is quantized."""

import os

from quant.files import write_json
from quant.pipeline import BASE, PRIVATE, REFERENCE, STUDIES, TEXT, parameters, run

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep


def main() -> None:
    from quant.quality.protocol import ScoringProtocol
    from quant.quality.sensitivity import measure_sensitivity
    from quant.quality.sensitivity_plan import SensitivityPlan
    from quant.text.load import load_corpus

    params = parameters()
    plan, protocol = SensitivityPlan.from_section(params["sensitivity"]), ScoringProtocol.from_dict(params["evaluate"])
    if plan is None:
        write_json(STUDIES / "sensitivity.json", {"parts": []})
        print("sensitivity: nothing to measure, since the section is null")
        return
    found = measure_sensitivity(BASE, load_corpus(TEXT, PRIVATE), protocol, params["device"], REFERENCE, plan)
    write_json(STUDIES / "sensitivity.json", found)
    most = {part["kind"]: part for part in sorted(found["parts"], key=lambda part: part["kld_mnats"])}  # the last of each kind
    print(f"sensitivity: all blocks {most['all']['kld_mnats']:.3f} mnat; alone the most are role {most['role']['name']} "
          f"({most['role']['kld_mnats']:.3f}) and block {most['block']['name']} ({most['block']['kld_mnats']:.3f})")


run(main)
