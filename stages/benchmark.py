"""Time one variant, alternating with the base, and measure its memory; never cached.

A variant whose row says `benchmark: false` gets a result that says so, and one that can't be made or run here the reason.
"""

from quant.errors import Refused
from quant.files import write_json
from quant.pipeline import BASE, PLAN, PRIVATE, REPORTS, TEXT, folder_of, parameters, run
from quant.refusal import Refusal, read_refusal, without_result
from quant.speed.plan import TimingPlan
from quant.speed.quiet import spare_the_processor
from quant.speed.watch import watch_machine
from quant.variants import planned


def main(variant: str) -> None:
    out, row = REPORTS / "speed" / f"{variant}.json", planned(variant, PLAN)
    if not row.is_timed:
        write_json(out, {"variant": variant, "is_timed": False, "metrics": {}})
        return
    refusal = read_refusal(folder_of(variant))
    if refusal:
        write_json(out, without_result(variant, refusal) | {"is_timed": False})
        return
    params = parameters()
    plan = TimingPlan.from_dict(params["benchmark"])
    watch = watch_machine(plan.threads, plan.wait)
    if watch.is_busy:
        spare_the_processor("stages.benchmark")
    from quant.speed.benchmark import benchmark
    from quant.text.load import load_corpus

    corpus = load_corpus(TEXT, PRIVATE)
    try:
        result = benchmark(folder_of(variant), BASE, corpus, plan, params["device"], row.method.imports, watch)
    except Refused as reason:
        write_json(out, without_result(variant, Refusal("benchmark", str(reason))) | {"is_timed": False})
        print(f"{variant} is not timed: {reason}")
        return
    write_json(out, {"variant": variant, "is_timed": True, **result})
    found, doubt = result["metrics"], ""
    if result["is_noisy"]:
        busy = result["machine_load"]["is_busy"]
        doubt = f"; not to be trusted: {'the machine was busy' if busy else 'its samples vary too widely'}"
    print(f"{variant}: {found['decode_ms_per_token']:.2f} ms a token, {found['decode_speedup']:.2f} times base's speed{doubt}")


run(main)
