"""The periodicity meter and the suppressor inside a real ComfyUI."""

from __future__ import annotations

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "periodicity_cases", tmp_path_factory.mktemp("periodicity"))


def test_the_diagnostic_finds_the_grid_and_leaves_the_clean_picture_alone(cases: Cases) -> None:
    found = cases["diagnostic"]
    assert found["verdict"][0].startswith("No periodic artifact") and "every 32 px (1 token)" in found["verdict"][1]
    assert found["masks"][0] == 0 < 0.5 < found["masks"][1]
    assert found["score"] == pytest.approx(found["core_score"], rel=1e-3) and found["score"] > 10
    assert found["period"] == pytest.approx(32, rel=0.03)
    assert found["clean_score"] < 2 and found["clean_period"] == 0


def test_its_pictures_are_of_the_right_size_and_show(cases: Cases) -> None:
    found = cases["diagnostic"]
    assert found["report"] == [2, 1096, 1280, 3]
    assert found["heat"] == [2, 384, 448, 3] and found["mask"] == [2, 384, 448]
    assert {"images", "text"} <= set(found["shows"])


def test_what_the_reference_shows_too_is_not_blamed(cases: Cases) -> None:
    assert cases["diagnostic"]["blamed"] < 2 < 10 < cases["diagnostic"]["with_reference"]


def test_the_suppressor_takes_the_grid_out(cases: Cases) -> None:
    found = cases["suppressor"]
    assert found["after"] < found["before"] / 3
    assert found["mask"][0] == [1, 384, 448] and found["mask"][1] > 0.3
    assert found["note"].startswith("Took out ")


def test_the_suppressor_leaves_a_clean_picture_as_it_is_and_says_so(cases: Cases) -> None:
    difference, mask, note = cases["suppressor"]["clean"]
    assert difference == mask == 0 and note.startswith("Nothing changed")


def test_strength_0_changes_nothing_and_transparency_is_kept(cases: Cases) -> None:
    assert cases["suppressor"]["strength_0"] == 0
    assert cases["suppressor"]["alpha"] == [1, 384, 448, 4]
