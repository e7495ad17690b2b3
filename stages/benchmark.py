"""Time one variant, alternating with the base, and measure its memory; never cached."""

from quant.files import write_json
from quant.pipeline import BASE, PLAN, PRIVATE, REPORTS, TEXT, folder_of, parameters, run


def main(variant: str) -> None:
    from quant.speed.benchmark import benchmark
    from quant.speed.plan import TimingPlan
    from quant.text.load import load_corpus
    from quant.variants import planned

    params = parameters()
    result = benchmark(folder_of(variant), BASE, load_corpus(TEXT, PRIVATE), TimingPlan.from_dict(params["benchmark"]),
                       params["device"], planned(variant, PLAN).method.imports)
    write_json(REPORTS / "speed" / f"{variant}.json", {"variant": variant, **result})
    found, doubt = result["metrics"], "; its samples vary too widely to be trusted" if result["is_noisy"] else ""
    print(f"{variant}: {found['decode_ms_per_token']:.2f} ms a token, {found['decode_speedup']:.2f} times base's speed{doubt}")


run(main)
