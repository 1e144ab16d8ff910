"""Learning rates against the official helpers."""

import json
import os
from pathlib import Path

import pytest

from helper.schedule import Schedule

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
