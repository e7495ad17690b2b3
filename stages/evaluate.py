"""Score one variant against the base on the evaluation text.

The base runs first: it stores its predictions in data/reference, and variants are compared with them. The result of a variant
that can't be made or run here is the reason.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.errors import Refused
from quant.files import write_json
from quant.pipeline import BASE, PRIVATE, REFERENCE, REPORTS, TEXT, folder_of, parameters, run
from quant.refusal import Refusal, read_refusal, without_result


def main(variant: str) -> None:
    out, refusal = REPORTS / "quality" / f"{variant}.json", read_refusal(folder_of(variant))
    if refusal:
        write_json(out, without_result(variant, refusal))
        return
    from quant.device import machine_kind
    from quant.quality.evaluate import evaluate, evaluate_base
    from quant.quality.protocol import ScoringProtocol
    from quant.text.load import load_corpus

    params = parameters()
    protocol, corpus = ScoringProtocol.from_dict(params["evaluate"]), load_corpus(TEXT, PRIVATE)
    if folder_of(variant) == BASE:
        result = evaluate_base(BASE, corpus, protocol, params["device"], REFERENCE)
    else:
        try:
            result = evaluate(folder_of(variant), BASE, corpus, protocol, params["device"], REFERENCE)
        except Refused as reason:
            here = {"machine": machine_kind(params["device"])}
            write_json(out, without_result(variant, Refusal("evaluate", str(reason), here)))
            print(f"{variant} is left out: {reason}")
            return
    write_json(out, {"variant": variant, **result})
    found = result["metrics"]
    print(f"{variant}: perplexity {found['ppl']:.4f} ({found['ppl_change_pct']:+.3f} %), divergence {found['kld_mnats']:.3f} "
          f"mnat, weights {found['weights_mib']:.2f} MiB")


run(main)
