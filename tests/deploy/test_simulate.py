"""Arrivals are as asked for, a simulation follows from its seed, and says what a hand can calculate."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from deploy import arrivals, simulate
from deploy.governor import Governor, Option
from deploy.measure import figures
from deploy.profile import Profile, Row
from deploy.report import Outcome
from tests.deploy.test_profile import made
from utils.files import write_json

LOAD = ["--target-ms", "60", "--seconds", "5", "--rate", "150", "--cv2", "4"]


@pytest.fixture
def profiled(tmp_path):
    """Two sub-networks: the larger serves 100 a second one by one, 200 by eights, the other twice as many."""
    path = tmp_path / "profile.json"
    write_json(path, asdict(made(FF=(90.0, 10.0, 40.0), TT=(85.0, 5.0, 20.0))))
    return path


def run(path, *flags: str) -> tuple[int, dict]:
    out = path.parent / "out"
    code = simulate.main([str(path), *LOAD, "-o", str(out), *flags])
    found = out / "simulate.json"
    return code, json.loads(found.read_text()) if found.exists() else {}


@pytest.mark.parametrize("cv2", [0.0, 0.25, 1.0, 8.0])
def test_arrivals_have_the_rate_and_the_burstiness(cv2):
    times = arrivals.arrivals([(1.0, 200.0)], 400, cv2, seed=3)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(80000, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.1, abs=1e-9)
    assert (gaps >= 0).all()


def test_steps_follow_one_another():
    times = arrivals.arrivals([(2, 0.0), (1, 500.0), (1, 50.0)], 8, 1.0, seed=0)
    counts = np.histogram(times, range(9))[0]
    assert list(counts[[0, 1, 4, 5]]) == [0] * 4
    assert counts[[2, 6]] == pytest.approx([500, 500], rel=0.2)
    assert counts[[3, 7]] == pytest.approx([50, 50], rel=0.5)


def profile_of(times: dict[int, list[float]]) -> Profile:
    """Of one network, by batch."""
    rows = [Row("F", "eager", batch, **figures(list(ms), batch)) for batch, ms in times.items()]
    return Profile({}, {"F": {"top1": 80.0}}, rows)


def in_a_row(pace: simulate.Pace, work: float, count: int, apart: float = 0.0) -> np.ndarray:
    """What so many batches of this work take, one after another."""
    now, took = 0.0, []
    for _ in range(count):
        took.append(pace.seconds(work, now))
        now += took[-1] + apart
    return np.array(took)


@pytest.mark.parametrize("fast", [0.1, 0.2, 0.45, 0.5, 0.7])
def test_batches_take_their_mean_time_also_on_a_machine_of_two_speeds(fast):
    """Else it would serve more, or fewer, than the real one."""
    random = np.random.default_rng(0)
    times = np.where(random.random((2, 2000)) < fast, 20.0, 40.0) * np.exp(random.normal(0, 0.08, (2, 2000)))
    times[0] /= 2
    profile = profile_of({2: times[0], 8: times[1]})
    means, pace = profile.means("eager"), simulate.Pace.of_profile(profile, "eager", seed=0)
    for images, mean in ((2, times[0].mean()), (5, times.mean()), (8, times[1].mean())):
        assert in_a_row(pace, means["F", images], 20000).mean() == pytest.approx(mean / 1000, rel=0.01)


def test_a_device_that_was_slow_for_a_while_is_so_again():
    """Three times so for the second half of its work; what passes between batches passes there as well."""
    profile = profile_of({1: [5.0] * 100 + [15.0] * 100, 4: [10.0] * 100 + [30.0] * 100})  # 1.5 s, then 4.5 s
    pace = simulate.Pace.of_profile(profile, "eager", seed=0)
    took = in_a_row(pace, profile.means("eager")["F", 4], 600)
    assert took.mean() == pytest.approx(0.02, rel=0.01)
    assert np.isclose(took, 0.01).mean() == pytest.approx(0.5, abs=0.02)
    assert np.isclose(took, 0.03).mean() == pytest.approx(0.5, abs=0.02)
    assert np.diff(took > 0.02).sum() == pytest.approx(2 * 600 * 0.02 / 6, abs=1)  # it turns twice in 6 s
    sparse = in_a_row(pace, 0.01, 600, apart=0.1)
    assert np.isclose(sparse, 0.015).mean() == pytest.approx(4.5 / 6, abs=0.03)


def test_one_worker_does_what_a_hand_calculates():
    """Two at once and one later, through a network that takes 10 ms for one image and 15 for two."""
    options = [Option("F", 1, 0.010, 80.0), Option("F", 2, 0.015, 80.0)]
    found = Outcome(0.025, np.array([0.0, 0.0, 0.001, 0.002]))
    simulate.simulate(found, Governor(options, "F"), lambda option, images, now: options[images - 1].seconds, range(4))
    # the first finds itself alone, or the pair: both came at 0
    assert found.finished[:2] == pytest.approx([0.015, 0.015])
    assert np.isnan(found.finished[2:]).sum() == 1  # of those that came at 1 and 2 ms, both fit only by one
    summary = found.summary({("F", 1): 0.010, ("F", 2): 0.010})
    assert summary["attained"] == 75.0
    assert summary["device"] == pytest.approx(25 / 20)
    assert [batch.served for batch in found.batches] == [2, 1]
    by_parts = Outcome(0.025, found.arrived)
    for part in (range(1), range(1, 4)):  # nobody in the first part waits for the second
        simulate.simulate(by_parts, Governor(options, "F"), lambda option, images, now: images * 0.01, part)
    assert by_parts.finished == pytest.approx([0.01, 0.01, 0.03, 0.03])


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(profiled):
    (_, first), (_, again), (_, other) = run(profiled), run(profiled), run(profiled, "--seed", "1")
    assert first == again
    assert first["simulated"] != other["simulated"]


def test_every_policy_is_simulated_printed_and_written(profiled, capsys):
    code, found = run(profiled, "--steps", "1:60", "1:250")
    assert code == 0
    of = found["simulated"]
    assert set(of) == {"slack-fit", "earliest-slack", "most-accurate", "largest-batch", "FF", "TT"}
    assert of["FF"]["attained"] < 90 < of["slack-fit"]["attained"]
    assert 85 < of["slack-fit"]["accuracy"] < 90
    assert of["TT"]["shares"].keys() == {"TT"}
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("slack-fit") and f"{of['slack-fit']['attained']:.2f} " in line for line in lines)
    page = (profiled.parent / "out" / "simulate.md").read_text()
    assert f"{of['TT']['attained']:.2f}" in page
    picture = profiled.parent / "out" / "simulate.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("policy", ["slack-fit", "earliest-slack", "largest-batch"])
def test_a_device_that_grows_slow_is_found_out(policy):
    """Two times so in the middle: with the correction many more deadlines hold, and nothing is lost before."""
    options = [
        Option(name, batch, factor * (0.004 + 0.0015 * batch), accuracy)
        for name, factor, accuracy in (("FF", 2.2, 87.0), ("TF", 1.5, 86.0), ("TT", 1.0, 82.0))
        for batch in (1, 2, 4, 8, 16)
    ]
    times, found, governors = arrivals.arrivals([(1, 60.0), (1, 150.0)], 40, 1.0, seed=0), {}, {}
    seconds = {(option.subnet, option.batch): option.seconds for option in options}
    for slowest in (4.0, 1.0):
        random, ran = np.random.default_rng(0), [0.0]

        def duration(option: Option, images: int, now: float, random=random, ran=ran) -> float:
            size = next(batch for batch in (1, 2, 4, 8, 16) if batch >= images)
            took = 0.95 * seconds[option.subnet, size] * random.lognormal(0, 0.05)
            ran.append(ran[-1] + took * (2 if ran[-1] > 12 else 1))
            return ran[-1] - ran[-2]

        governors[slowest] = Governor(options, policy, slowest=slowest)
        found[slowest] = Outcome(0.06, times)
        simulate.simulate(found[slowest], governors[slowest], duration, range(len(times)))
    before, after = times < 12, times > 15
    met = {slowest: outcome.finished - times <= 0.06 for slowest, outcome in found.items()}
    assert met[4.0][before].mean() == pytest.approx(met[1.0][before].mean(), abs=0.005)
    assert met[4.0][after].mean() > met[1.0][after].mean() + 0.08
    assert governors[4.0].slower == pytest.approx(2, abs=0.3)
    assert governors[1.0].slower == 1


def test_every_request_has_one_end(profiled):
    for flags in ([], ["--late"]):
        _, found = run(profiled, "--rate", "600", *flags)
        for of in found["simulated"].values():
            assert sum(of["shares"].values()) + of["refused"] / 100 == pytest.approx(1)
            assert (of["refused"] == 0) == bool(flags)


def test_a_trace_is_taken_as_it_is(profiled):
    trace = profiled.parent / "trace.txt"
    trace.write_text("10.0\n10.5\n12\n")
    _, found = run(profiled, "--trace", str(trace), "--policies", "TT")
    assert found["requests"] == 3
    assert found["simulated"]["TT"]["attained"] == 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--policies", "FFF"], "--policies: unknown policy 'FFF'; there are"),
        (["--way", "graph"], "graph was not profiled; there are eager"),
        (["--steps", "1:0"], "--steps: one of them needs a rate above 0"),
        (["--trace", "nowhere.txt"], "--trace nowhere.txt: No such file"),
        (["--trace", __file__], f"--trace {__file__}: a number of seconds per line is wanted"),
        (["--trace", "/dev/null"], "no request arrives"),
        (["--weights", "network.pth"], "unknown argument --weights"),
    ],
)
def test_a_mistake_is_one_line(profiled, flags, said, capsys):
    assert run(profiled, *flags)[0] == 2
    assert capsys.readouterr().err.startswith(f"deploy.simulate: error: {said}")


def test_without_accuracies_the_way_out_is_said(tmp_path, capsys):
    profile = made(FF=(90.0, 10.0, 40.0))
    profile.subnets["FF"].pop("top1")
    write_json(path := tmp_path / "profile.json", asdict(profile))
    assert run(path)[0] == 2
    assert "profile again with --evaluation subnets.json" in capsys.readouterr().err
