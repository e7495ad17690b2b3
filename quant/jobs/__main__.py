"""Run what is out of date, up to N stages at a time, and then `dvc repro`, which has the last word.

    python -m quant.jobs 2                       # all of dvc.yaml; make repro does the same
    python -m quant.jobs 4 evaluate@int4 compare # these stages, and what they need

Stages share the cores and the memory of this machine. Those that measure time run alone, after all others. With RAY_ADDRESS, the
stages run on the machines of that cluster, except those that measure time. An interrupted run goes on where it was.
"""

from __future__ import annotations

from quant.command import Parser, run, whole_number


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.jobs", description=__doc__.partition("\n")[0])
    parser.add_argument("jobs", type=whole_number, metavar="N", help="stages at a time")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="a stage, as for dvc repro; none = all")
    given = parser.parse_args(arguments)
    from quant.jobs.repro import repro

    repro(given.jobs, tuple(given.targets))


if __name__ == "__main__":
    run(main)
