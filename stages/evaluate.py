"""Score one variant against the base on the evaluation text.

The base runs first: it stores its predictions in data/reference, and variants are compared with them.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.files import write_json
from quant.pipeline import BASE, PRIVATE, REFERENCE, REPORTS, TEXT, folder_of, parameters, run


def main(variant: str) -> None:
    from quant.quality.evaluate import evaluate, evaluate_base
    from quant.quality.protocol import ScoringProtocol
    from quant.text.load import load_corpus

    params = parameters()
    protocol, corpus = ScoringProtocol.from_dict(params["evaluate"]), load_corpus(TEXT, PRIVATE)
    if folder_of(variant) == BASE:
        result = evaluate_base(BASE, corpus, protocol, params["device"], REFERENCE)
    else:
        result = evaluate(folder_of(variant), BASE, corpus, protocol, params["device"], REFERENCE)
    write_json(REPORTS / "quality" / f"{variant}.json", {"variant": variant, **result})
    found = result["metrics"]
    print(f"{variant}: perplexity {found['ppl']:.4f} ({found['ppl_change_pct']:+.3f} %), divergence {found['kld_mnats']:.3f} "
          f"mnat, weights {found['weights_mib']:.2f} MiB")


run(main)
