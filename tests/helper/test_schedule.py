"""Learning rates against the official helpers."""

import json
import math
import os
from pathlib import Path

import pytest

from helper.schedule import CosineSchedule, Schedule

GOLDEN = Path(os.environ.get("GOLDEN", Path(__file__).parent.parent / "golden"))
SCHEDULES = [
    golden
    for path in GOLDEN.glob("schedules.json")
    for golden in json.loads(path.read_text(encoding="utf-8"))["schedules"]
]
DECAYS = (150, 180, 210)


@pytest.mark.parametrize("golden", SCHEDULES, ids=lambda golden: golden["name"])
def test_official_schedules(golden):
    warmup = golden["warmup_epochs"] or 0
    right = Schedule(golden["base_lr"], DECAYS, 0.1, warmup)
    official = Schedule(golden["base_lr"], DECAYS, 0.1, warmup, official_warmup=True)
    epochs = range(1, len(golden["optimizer_lr"]) + 1)
    assert [official.rate(epoch) for epoch in epochs] == pytest.approx(golden["optimizer_lr"], rel=1e-12)
    # what the official function returns, but forgets to store, is the rate that is meant
    meant = golden["returned_lr"] if warmup else golden["optimizer_lr"]
    assert [right.rate(epoch) for epoch in epochs] == pytest.approx(meant, rel=1e-12)


@pytest.mark.skipif("GOLDEN" in os.environ, reason="another folder may hold other files")
def test_there_are_schedules():
    assert len(SCHEDULES) == 6


def test_base_rate_is_reached_after_the_warmup():
    schedule = Schedule(0.05, DECAYS, 0.1, warmup_epochs=20)
    assert schedule.rate(19) == pytest.approx(0.05 * 19 / 20)
    assert schedule.rate(20) == 0.05
    assert schedule.rate(150) == 0.05
    assert schedule.rate(151) == pytest.approx(0.005)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warmup(warmup):
    assert Schedule(0.1, (), 0.1, warmup).rate(1) == 0.1


def test_cosine_by_hand():
    schedule = CosineSchedule(5e-4, epochs=300, warmup_epochs=20, end=0.01)
    for epoch in (21, 100, 151, 300):
        turned = (1 + math.cos(math.pi * (epoch - 1) / 300)) / 2
        assert schedule.rate(epoch) == pytest.approx(5e-6 + (5e-4 - 5e-6) * turned)
    assert schedule.rate(1) == pytest.approx(5e-7)
    rates = [schedule.rate(epoch) for epoch in range(1, 301)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(5e-6, rel=0.01)
    # in the warm-up, a factor that grows by equal steps
    plain = CosineSchedule(5e-4, epochs=300)
    factors = [schedule.rate(epoch) / plain.rate(epoch) for epoch in range(1, 22)]
    assert factors == pytest.approx([0.001 + 0.999 * done / 20 for done in range(21)])


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_cosine_without_warmup(warmup):
    assert CosineSchedule(0.1, epochs=4, warmup_epochs=warmup, end=0.0).rate(1) == 0.1
