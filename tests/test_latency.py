"""The clock: both models in turn, warm-up not counted, raw values kept, scatter noticed."""

import math
import re
import time
from statistics import median

import pytest
import torch

from quant.errors import InputError
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.environment import commit, environment
from quant.speed.latency import Clock, compare

TEXT = torch.arange(600)


class Steady:
    """Runs for as long as it is told to, busily; notes its calls in a list that two may share, and what each really took."""

    def __init__(self, log, name, decode_ms=2.0, context=200, jitter=()):
        self.log, self.name, self.decode_ms, self.context, self.jitter = log, name, decode_ms, context, list(jitter)
        self.took = []

    def _busy(self, ms):
        start = time.perf_counter()
        while (now := time.perf_counter()) < start + ms / 1000:
            pass
        self.took.append(1000 * (now - start))

    def prefill(self, tokens):
        self.log.append((self.name, "prefill", len(tokens)))
        self._busy(self.jitter.pop(0) if self.jitter else 0.05 * len(tokens))
        return 0

    def decode(self, token):
        self.log.append((self.name, "decode", token))
        self._busy(self.decode_ms)
        return token + 1


def run(clock, **slow):
    log = []
    result, generated = compare(Steady(log, "variant", **slow), Steady(log, "base"), TEXT, clock)
    return log, result, generated


CLOCK = Clock(prompts=(20, 50), tokens=20, rounds=3, threads=1)


def test_both_take_turns_and_each_is_first_as_often():
    log, _, generated = run(CLOCK)
    assert [entry[0] for entry in log].count("variant") == [entry[0] for entry in log].count("base")
    prefills = [(who, size) for who, what, size in log if what == "prefill"][: 4 * 4]
    firsts = [prefills[i][0] for i in range(0, len(prefills), 2)]
    assert [size for _, size in prefills[:4]] == [50, 50, 20, 20]
    assert firsts == ["base", "base", "variant", "variant"] * 2
    assert generated == {"variant": list(range(21)), "base": list(range(21))}
    longest = max(len(list(run)) for run in re.findall("v+|b+", "".join(e[0][0] for e in log if e[1] == "decode")))
    assert longest <= 32, "no model decodes more than two slices before the other has its turn"


def test_what_is_timed_is_what_took_the_time():
    """Against the models' own notes of each call: two prompts and 16 tokens to warm up, then the same."""
    variant, base = Steady([], "variant", decode_ms=4.0), Steady([], "base")
    clock = Clock(prompts=(20, 50), tokens=16, rounds=1, threads=1)
    result, _ = compare(variant, base, TEXT, clock)
    counted = {who: steady.took[18:36] for who, steady in (("ms", variant), ("base_ms", base))}
    assert result["attempts"] == 1, "one round has no spread"
    timing = result["timing"]
    for who, (long, short, *decoded) in counted.items():
        expected = {"prefill_long": [long], "prefill": [short], "decode": [sum(decoded) / 16],
                    "generate": [short + sum(decoded)]}  # fmt: skip
        for phase, values in expected.items():
            assert timing[phase][who]["raw"] == pytest.approx(values, rel=0.1)
    decode = timing["decode"]
    pairs = [b / v for b, v in zip(decode["base_ms"]["raw"], decode["ms"]["raw"], strict=True)]
    assert decode["speedup"]["raw"] == pairs
    assert decode["tokens_per_s"] == pytest.approx(1000 / decode["ms"]["median"])
    assert timing["prefill"]["tokens_per_s"] == pytest.approx(20_000 / timing["prefill"]["ms"]["median"])
    assert timing["generate"]["base_tokens_per_s"] == pytest.approx(16_000 / timing["generate"]["base_ms"]["median"])


def test_raw_values_are_kept_and_the_warm_up_is_not():
    _, result, _ = run(CLOCK)
    timing = result["timing"]
    for phase, samples in {"prefill": 3, "prefill_long": 3, "decode": 6, "generate": 3}.items():  # a slice of 16 and one of 4
        for key in ("ms", "base_ms", "speedup"):
            found = timing[phase][key]
            assert len(found["raw"]) == samples and found["median"] == median(found["raw"])
            assert found["p90"] in found["raw"] and found["mad"] >= 0
    assert [timing[phase]["tokens"] for phase in ("prefill", "prefill_long", "decode", "generate")] == [20, 50, 20, 20]


def test_too_wide_a_spread_is_measured_again():
    """Prefill of the first attempt scatters by itself; the second one is calm and is kept, and the first stays to be seen."""
    scatter = [1, 1, 1, 30, 1, 1, 1, 90]  # long and short prompt of the warm-up and of three rounds
    _, result, _ = run(CLOCK, jitter=scatter)
    assert result["attempts"] == 2
    aside = result["set_aside"]["prefill"]["ms"]
    assert max(aside) > 20 * min(aside) and max(result["timing"]["prefill"]["ms"]["raw"]) < 20
    again = [phase for phase in ("prefill", "prefill_long", "decode", "generate") if phase in result["set_aside"]]
    assert again[:2] == ["prefill", "prefill_long"] and ("decode" in again) == ("generate" in again)


def test_what_stays_wide_is_flagged():
    _, result, _ = run(CLOCK, jitter=[1, 1, 1, 30, 1, 1, 1, 90] * 2)
    assert result["attempts"] == 2 and result["is_noisy"] and result["timing"]["prefill"]["is_noisy"]


def test_a_long_prompt_is_bounded_by_the_context():
    log = []
    result, _ = compare(Steady(log, "v", context=45), Steady(log, "b"), TEXT, CLOCK)
    assert (result["timing"]["prefill_long"]["prompt_tokens"], result["timing"]["prefill_long"]["asked_tokens"]) == (45, 50)
    short = Clock(prompts=(20,), tokens=4, rounds=1)
    for clock in (short, Clock(prompts=(20, 50), tokens=4, rounds=1)):
        room = 200 if clock is short else 24
        result, _ = compare(Steady(log, "v", context=room), Steady(log, "b"), TEXT[: 20 if clock is not short else 600], clock)
        assert result["timing"]["prefill_long"] is None


def test_a_prompt_that_does_not_fit_is_told():
    with pytest.raises(InputError, match=r"prompts, 20, and benchmark\.tokens, 20, don't fit the model's context of 30"):
        compare(Steady([], "v", context=30), Steady([], "b"), TEXT, CLOCK)


@pytest.mark.parametrize(("values", "message"), [
    ({"prompts": 128}, r"prompts is 128; expected one or two lengths"),
    ({"prompts": [1, 2, 3]}, "one or two lengths"),
    ({"prompts": [0]}, "expected whole numbers from 1"),
    ({"rounds": 0}, r"rounds is 0"),
    ({"threads": True}, "threads is True"),
    ({"prompt": 128}, "unknown benchmark key 'prompt'"),
])  # fmt: skip
def test_a_clock_that_can_not_be(values, message):
    with pytest.raises(InputError, match=message):
        Clock.from_dict(values)


def test_memory_is_read_at_a_speed_that_can_be():
    assert 0.5 < memory_read_gb_per_s("cpu") < 2000


def test_the_environment_is_told(tmp_path):
    found = environment()
    assert found["cores"] >= 1 and found["memory_gib"] > 0 and found["packages"]["torch"].startswith("2.")
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    assert commit(tmp_path) is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())


def test_changed_code_is_told_from_the_commits(tmp_path):
    import subprocess

    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], cwd=tmp_path, check=True,
                       capture_output=True)

    git("init", "-q")
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "a.py").write_text("1\n")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    assert re.fullmatch("[0-9a-f]{40}", commit(tmp_path))
    (tmp_path / "dvc.lock").write_text("results are not code\n")
    assert re.fullmatch("[0-9a-f]{40}", commit(tmp_path))
    (tmp_path / "quant" / "a.py").write_text("2\n")
    assert commit(tmp_path).endswith("-dirty")
