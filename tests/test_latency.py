"""Timing: models take turns, the warm-up does not count, raw samples are kept, scatter is noticed. On a clock of the test."""

import re
import subprocess
from statistics import median

import pytest
import torch

from quant.errors import InputError
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.environment import commit, environment
from quant.speed.latency import compare
from quant.speed.plan import TimingPlan

TEXT = torch.arange(600)
PLAN = TimingPlan(prompts=(20, 50), tokens=20, rounds=3, threads=1)


class Clock:
    """Stands still unless a model moves it."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class Model:
    """Each call moves the clock: prefill by the next of prefill_ms, or else 0.05 ms a token; decode by decode_ms."""

    def __init__(self, clock, log, name, decode_ms=2.0, context=200, prefill_ms=()):
        self.clock, self.log, self.name, self.decode_ms, self.context = clock, log, name, decode_ms, context
        self.prefill_ms = list(prefill_ms)

    def _take(self, ms):
        self.clock.seconds += ms / 1000

    def prefill(self, tokens):
        self.log.append((self.name, "prefill", len(tokens)))
        self._take(self.prefill_ms.pop(0) if self.prefill_ms else 0.05 * len(tokens))
        return 0

    def decode(self, token):
        self.log.append((self.name, "decode", token))
        self._take(self.decode_ms)
        return token + 1


def run(plan=PLAN, text=TEXT, context=200, quiet=(True, True), **variant):
    """-> calls, result, generated tokens. quiet: what a look at the machine finds after the first and after the second attempt"""
    log, clock = [], Clock()
    models = Model(clock, log, "variant", context=context, **variant), Model(clock, log, "base")
    return log, *compare(*models, text, plan, clock, iter(quiet).__next__)


def test_both_take_turns_and_each_is_first_as_often():
    log, _, generated = run()
    assert [entry[0] for entry in log].count("variant") == [entry[0] for entry in log].count("base")
    prefills = [(name, size) for name, call, size in log if call == "prefill"][: 4 * 4]
    firsts = [prefills[i][0] for i in range(0, len(prefills), 2)]
    assert [size for _, size in prefills[:4]] == [50, 50, 20, 20]
    assert firsts == ["base", "base", "variant", "variant"] * 2
    assert generated == {"variant": list(range(21)), "base": list(range(21))}
    longest = max(len(list(run)) for run in re.findall("v+|b+", "".join(e[0][0] for e in log if e[1] == "decode")))
    assert longest <= 32, "no model decodes more than two slices before the other has its turn"


def test_every_phase_has_its_time_its_ratios_and_its_rates():
    _, result, _ = run(decode_ms=4.0)
    assert (result["attempts"], result["set_aside"], result["is_noisy"]) == (1, None, False)
    expected = {  # phase: ms of variant and base, samples (decoding: a slice of 16 and one of 4), tokens, tokens of a sample
        "prefill_long": (2.5, 2.5, 3, 50, 50), "prefill": (1.0, 1.0, 3, 20, 20), "decode": (4.0, 2.0, 6, 20, 1),
        "generate": (81.0, 41.0, 3, 20, 20),
    }  # fmt: skip
    assert set(result["timing"]) == set(expected)
    for phase, (ms, base_ms, samples, tokens, per_sample) in expected.items():
        found = result["timing"][phase]
        for key, value in (("ms", ms), ("base_ms", base_ms), ("speedup", base_ms / ms)):
            assert found[key]["raw"] == pytest.approx([value] * samples), "of the rounds after the one that warms up"
            assert found[key]["median"] == median(found[key]["raw"]) and found[key]["mad"] == pytest.approx(0, abs=1e-9)
        assert found["tokens"] == tokens and not found["is_noisy"]
        rates = (found["tokens_per_s"], found["base_tokens_per_s"])
        assert rates == pytest.approx((1000 * per_sample / ms, 1000 * per_sample / base_ms))


def test_the_warm_up_does_not_count():
    """Long and short prompt of the warm-up take very long, those of three rounds the same."""
    _, result, _ = run(prefill_ms=[900, 900, *[2, 1] * 3])
    assert result["attempts"] == 1 and result["timing"]["prefill"]["ms"]["raw"] == pytest.approx([1, 1, 1])


def test_ratios_are_of_pairs():
    _, result, _ = run(prefill_ms=[1, 1, *[2.5, 1.0, 2.5, 1.1, 2.5, 0.9]])
    assert result["timing"]["prefill"]["speedup"]["raw"] == pytest.approx([1, 1 / 1.1, 1 / 0.9])


NOISY = [1, 1, 1, 30, 1, 1, 1, 90]  # long and short prompt of the warm-up and of three rounds: the short one scatters


def test_too_wide_a_spread_is_measured_again():
    """Prefill of the first attempt scatters, and `generate` does with it; the second attempt is calm and counts."""
    _, result, _ = run(prefill_ms=NOISY)
    assert result["attempts"] == 2 and not result["is_noisy"]
    assert set(result["set_aside"]) == {"prefill_long", "prefill", "decode", "generate"}
    assert result["set_aside"]["prefill"]["ms"] == pytest.approx([30, 1, 90])
    assert result["timing"]["prefill"]["ms"]["raw"] == pytest.approx([1, 1, 1])


def test_tokens_are_decoded_again_only_where_decoding_scatters():
    log, result, _ = run(prefill_ms=[1, 1, 1, 3, 1, 1, 1, 9], decode_ms=20.0)
    assert result["attempts"] == 2 and set(result["set_aside"]) == {"prefill_long", "prefill"}
    assert len([entry for entry in log if entry[1] == "decode"]) == 2 * (16 + 3 * 20)


def test_a_phase_that_still_scatters_is_flagged():
    _, result, _ = run(prefill_ms=2 * NOISY)
    assert result["attempts"] == 2 and result["is_noisy"]
    assert result["timing"]["prefill"]["is_noisy"] and not result["timing"]["decode"]["is_noisy"]


def test_on_a_busy_machine_nothing_is_timed_again():
    log, result, _ = run(prefill_ms=NOISY, quiet=[False])
    assert (result["attempts"], result["set_aside"], result["is_noisy"]) == (1, None, True)
    assert len([entry for entry in log if entry[1] == "decode"]) == 2 * (16 + 3 * 20)


@pytest.mark.parametrize(("quiet", "prefill_ms", "attempts"), [
    ([False], [], 1), ([True, False], NOISY, 2),
], ids=["busy-after-the-first", "busy-after-the-second"])  # fmt: skip
def test_on_a_busy_machine_even_samples_that_agree_are_flagged(quiet, prefill_ms, attempts):
    _, result, _ = run(quiet=quiet, prefill_ms=prefill_ms)
    assert result["attempts"] == attempts and result["is_noisy"]
    assert all(phase["is_noisy"] and phase["ms"]["mad"] < 1e-9 for phase in result["timing"].values())


@pytest.mark.parametrize(("prompts", "context", "text", "found"), [
    ((20, 50), 45, 600, 45), ((20, 50), 200, 47, 47), ((20, 50), 24, 600, 24), ((20, 50), 200, 20, None), ((20,), 200, 600, None),
])  # fmt: skip
def test_a_long_prompt_is_bounded_by_context_and_text(prompts, context, text, found):
    _, result, _ = run(TimingPlan(prompts, tokens=4, rounds=1), TEXT[:text], context)
    timing = result["timing"]["prefill_long"]
    assert timing is None if found is None else (timing["prompt_tokens"], timing["asked_tokens"]) == (found, 50)


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"prompts, 20, and benchmark\.tokens, 20, don't fit .* context of 30 .*smaller"):
        run(context=30)


@pytest.mark.parametrize(("values", "message"), [
    ({"prompts": 128}, r"prompts is 128; expected one or two lengths"),
    ({"prompts": [1, 2, 3]}, "one or two lengths"),
    ({"prompts": [0]}, "expected whole numbers from 1"),
    ({"rounds": 0}, r"rounds is 0"),
    ({"threads": True}, "threads is True"),
    ({"wait": -1}, r"benchmark\.wait is -1; expected whole seconds, 0 for no wait"),
    ({"wait": 2.5}, r"wait is 2\.5"),
    ({"wait": True}, "wait is True"),
    ({"prompt": 128}, "unknown benchmark key 'prompt'"),
])  # fmt: skip
def test_an_impossible_plan_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        TimingPlan.from_dict(values)


def test_a_wait_of_zero_is_a_plan():
    assert TimingPlan.from_dict({"wait": 0}).wait == 0 < TimingPlan().wait


def test_bandwidth_is_bytes_over_the_fastest_time(monkeypatch):
    """A clock on which the reads take 4, 2 and again 4 seconds."""
    from quant.speed import bandwidth

    ticks = iter([0, 4, 10, 12, 20, 24])
    monkeypatch.setattr(bandwidth, "READS", 3)
    monkeypatch.setitem(bandwidth.BYTES, "cpu", 2**20)
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(ticks))
    assert memory_read_gb_per_s("cpu") == 2**20 / 2 / 1e9


def test_the_environment_names_machine_versions_and_commit(tmp_path):
    found = environment()
    assert found["cores"] >= 1 and found["memory_gib"] > 0 and found["packages"]["torch"].startswith("2.")
    assert {"transformers", "bitsandbytes", "llama_cpp_python"} <= set(found["packages"])
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    assert commit(tmp_path) is None


def test_only_changed_code_makes_a_commit_dirty(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], cwd=tmp_path, check=True,
                       capture_output=True)

    git("init", "-q")
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "a.py").write_text("1\n")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    (tmp_path / "dvc.lock").write_text("results are not code\n")
    assert re.fullmatch("[0-9a-f]{40}", commit(tmp_path))
    (tmp_path / "quant" / "a.py").write_text("2\n")
    assert commit(tmp_path).endswith("-dirty")
