"""The report: what it demands, and that both files tell the same figures."""

import json
import math

import pytest

from fmv2.errors import UserError
from fmv2.metrics.estimate import Estimate, exact
from fmv2.metrics.report import FLOOR, RANDOM, Demand, Figure, Report

COSINE = Figure(
    group="identity",
    name="cosine",
    meaning="Of output and reference.",
    better="higher",
    value=Estimate(0.5, 0.4, 0.6, 32),
    controls={"reference shuffled": Estimate(0.1, -0.05, 0.45, 32)},
    floor=Estimate(0.9, 0.85, 0.95, 32),
    random=exact(0.03, 32),
    demands=(Demand(than="reference shuffled"), Demand(than="reference shuffled", clearly=True)),
)
ANGLE = Figure(
    group="pose",
    name="angle",
    meaning="Between heads.",
    better="lower",
    unit="degrees",
    digits=1,
    value=Estimate(6.0, 5.0, 7.0, 30),
    controls={"no shading": Estimate(13.0, 10.1, 16.0, 30)},
    demands=(
        Demand(than="no shading", times=0.5),
        Demand(than="no shading", times=0.5, clearly=True),
        Demand(than="no shading", clearly=True),
        Demand(than=5.9),
        Demand(than=6.0),
    ),
)
REPORT = Report(title="A run", about={"steps": 300, "device": "cpu"}, figures=[COSINE, ANGLE])


def test_demands_go_the_way_that_is_better():
    assert [COSINE.holds(demand) for demand in COSINE.demands] == [True, False]
    assert [ANGLE.holds(demand) for demand in ANGLE.demands] == [True, False, True, False, True]
    assert [ANGLE.words(demand) for demand in ANGLE.demands] == [
        "at most 0.5 × no shading",
        "clearly below 0.5 × no shading",
        "clearly below no shading",
        "at most 5.9",
        "at most 6.0",
    ]
    assert COSINE.words(COSINE.demands[1]) == "clearly above reference shuffled"
    assert COSINE.holds(Demand(than="reference shuffled", times=5))
    assert not COSINE.holds(Demand(than="reference shuffled", times=5.1))
    assert not ANGLE.holds(Demand(than="no shading", times=0.4))
    # 6.0 is below 0.65 × 10.1, but its interval is not.
    assert not ANGLE.holds(Demand(than="no shading", times=0.65, clearly=True))
    assert COSINE.holds(Demand(than=RANDOM, times=5))
    assert not COSINE.holds(Demand(than=FLOOR))


def test_a_demand_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="nothing beside it is called no text, true pictures"):
        Figure(
            group="a", name="b", meaning="c", better="higher", value=exact(1, 1),
            demands=(Demand(than="no text"), Demand(than=FLOOR), Demand(than=1.0)),
        )  # fmt: skip


def test_both_files_tell_the_same(tmp_path):
    REPORT.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md"}
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["about"] == {"steps": 300, "device": "cpu"}
    cosine, angle = told["figures"]
    assert cosine["value"] == {"value": 0.5, "low": 0.4, "high": 0.6, "count": 32}
    assert cosine["controls"]["reference shuffled"]["high"] == 0.45
    assert (cosine["floor"]["value"], cosine["random"]["value"]) == (0.9, 0.03)
    assert angle["floor"] is None
    assert angle["demands"][0] == {"demand": "at most 0.5 × no shading", "holds": True}

    text = (tmp_path / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = [row for row in rows if row]
    assert rows[0] == ["measure", "ours", "reference shuffled", "true pictures", "at random", "of"]
    assert rows[2] == [
        "cosine ↑", "0.500 [0.400, 0.600]", "0.100 [-0.050, 0.450]", "0.900 [0.850, 0.950]",
        "0.030", "32",
    ]  # fmt: skip
    assert rows[5] == ["angle, degrees ↓", "6.0 [5.0, 7.0]", "13.0 [10.1, 16.0]", "", "", "30"]
    assert "- cosine is clearly above reference shuffled: **no**" in text
    assert "- angle is at most 0.5 × no shading: yes" in text
    assert "95% intervals" in text


def test_of_one_person_there_is_no_interval(tmp_path):
    alone = Estimate(0.5, -math.inf, math.inf, 2)
    assert COSINE.cell(alone) == "0.500 (one person)"
    figure = Figure(group="a", name="b", meaning="c", better="higher", value=alone)
    Report(title="t", about={}, figures=[figure]).write(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())["figures"][0]["value"]
    assert told == {"value": 0.5, "low": None, "high": None, "count": 2}


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none/report\.json: cannot be written"):
        REPORT.write(tmp_path / "none")
