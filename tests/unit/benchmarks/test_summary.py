"""Tables of photos: means, shares, sets, and only photos that every method has scores of."""

from __future__ import annotations

from typing import Any

from benchmarks.methods import BASE
from benchmarks.summary import by_method, by_set, complete, tables_of


def row(method: str, photo: str, psnr: float, gmsd: float = 0.1, group: str = "a", **more: Any) -> dict[str, Any]:
    head = {"photo": photo, "set": group, "degradation": "clean", "method": method}
    return head | more | {"psnr": psnr, "ssim": 0.5, "gmsd": gmsd, "haarpsi": 0.5, "alarms": 0.0}


def test_shares_know_which_scores_are_better_small_and_what_is_equal_is_not_better() -> None:
    rows = [row(BASE, "same", 20.0, 0.2), row(BASE, "same", 30.0, 0.2, "b")]
    rows += [row("full", "same", 21.0, 0.1, alarms=1.0), row("full", "same", 29.0, 0.1, "b")]
    table = by_method(rows)
    full = {"method": "full", "photos": 2, "psnr": 25.0, "ssim": 0.5, "gmsd": 0.1, "haarpsi": 0.5, "alarms": 0.0}
    better = {"psnr better": 0.5, "ssim better": 0.0, "gmsd better": 1.0, "haarpsi better": 0.0}
    assert table[1] == full | better
    assert all(table[0][key] is None for key in better)


def test_words_of_a_row_stay_columns() -> None:
    table = by_method([row("x", "p", 20.0, repair="0.5", fidelity="1")])
    assert list(table[0])[:4] == ["method", "repair", "fidelity", "photos"] and table[0]["repair"] == "0.5"
    assert "psnr better" not in table[0] and "psnr gain" not in table[0]  # nothing to be better than


def test_gains_are_over_bicubic() -> None:
    table = by_method([row("bicubic", "p", 20.0), row("x", "p", 20.5)])
    assert [line["psnr gain"] for line in table] == [0, 0.5] and table[1]["haarpsi gain"] == 0


def test_means_are_of_the_same_photos() -> None:
    rows = [row("x", "p", 20.0), row("y", "p", 21.0), row("x", "q", 40.0)]
    assert complete(rows) == rows[:2]


def test_sets_have_columns_of_their_own() -> None:
    rows = [row("x", "p", 20.0), row("x", "q", 30.0, group="b"), row("x", "r", 40.0, group="b")]
    assert by_set(rows) == [{"method": "x", "a": 20.0, "b": 35.0, "all": 30.0}]
    tables = tables_of([*rows, *({**r, "degradation": "jpeg50"} for r in rows[1:])], "x4")
    assert list(tables) == ["x4, clean", "x4, clean: psnr by set", "x4, clean: haarpsi by set", "x4, jpeg50"]
