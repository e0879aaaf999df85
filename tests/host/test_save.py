"""Save Picture in a real ComfyUI: what is in the files, beside the host's own Save Image."""

from __future__ import annotations

import pytest
from host.test_nodes import assert_refused
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "save_cases", tmp_path_factory.mktemp("saved"))


def test_levels_are_rounded_where_the_host_cuts_them_off(saved: Cases) -> None:
    found = saved["eight_bits"]
    assert found["ours_off"] <= 0.501 < found["theirs_off"] + 0.01
    assert found["names"] == ["ours_00001_.png", "theirs_00001_.png"]


def test_the_workflow_is_in_the_file_as_the_host_writes_it(saved: Cases) -> None:
    ours, theirs = saved["eight_bits"]["texts"]
    assert ours == theirs and set(ours) == {"prompt", "workflow"}


def test_nothing_of_it_is_there_with_disable_metadata(saved: Cases) -> None:
    assert saved["without_metadata"] == {}


def test_16_bits_are_kept(saved: Cases) -> None:
    assert saved["sixteen_bits"]["off"] <= 0.51


def test_names_are_those_of_save_image(saved: Cases) -> None:
    numbers = [f"sub/b{index}_{index + 1:05}_.png" for index in range(3)]
    assert saved["batches"]["names"] == [*numbers, "sub/b0_00002_.png"]


def test_dates_in_names_are_those_that_the_page_fills_in_for_save_image(saved: Cases) -> None:
    assert saved["names"]["written"] == {
        "a_%date:yyyy-MM-dd%": "a_2026-03-09",
        "%date:yy/M/d%/b": "26/3/9/b",
        "%date%": "20260309040506",
        "%date:hhmmss%_%date:h.m.s%": "040506_4.5.6",
        "%width%_100%": "%width%_100%",
    }


def test_names_are_made_safe(saved: Cases) -> None:
    """What every system can write stays; Windows takes less."""
    found = saved["safe_names"]
    assert found["kept"] == ["a b/%width%_\u9ad8\U0001f600-(1)"] * 2
    assert found["surrogate"] == ["a_b_"] * 2 and found["control"] == ["_a_[2J__b_c"] * 2
    assert found["nothing"] == ["ComfyUI"] * 2 and found["dots"] == ["ComfyUI"] * 2
    assert found["folders"] == ["sub/deep/name"] * 2 and found["inside"] == "a/b"
    assert found["long"] == ["x" * 225] * 2 and found["long_letters"] == ["\u9ad8" * 85 + "/" + "\u9ad8" * 75] * 2
    assert found["device"] == ["aux/con.txt/NUL", "_aux/_con.txt/_NUL"]
    assert found["windows"] == ['a:b?/c. ./d"', "a_b_/c_/d_"]


def test_names_that_cannot_be_written_are_changed_and_told(saved: Cases) -> None:
    found = saved["odd_names"]
    assert found["printable"] and found["most"] <= 255
    assert all("filename_prefix: '" in line and "is saved as" in line and len(line) < 400 for line in found["log"])
    assert len(found["log"]) == 5


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("climbing", "is outside the output folder"),
        ("climbing_surrogate", "is outside the output folder"),
        ("absolute", "is outside the output folder"),
        ("deep", "has 5,000 folders, at most 50"),
        ("many", "at most 50 are made; use fewer"),
        ("path", "too long for a path; shorten them"),
    ],
)
def test_refused_names_are_told_before_anything_is_computed(saved: Cases, case: str, words: str) -> None:
    found = saved["refused_names"]
    assert_refused(found["run"][case], "OptionError", "filename_prefix: ", words)
    assert found["at_once"][case] == found["run"][case]["message"]
    assert found["good"] == [True, True]


def test_a_folder_that_is_a_file_or_leads_away(saved: Cases) -> None:
    found = saved["refused_names"]["here"]
    assert_refused(found["file"], "OutputError", "cannot be written", "choose another filename_prefix")
    assert_refused(found["link"], "OptionError", "leads outside the output folder")


def test_no_two_take_one_name_and_a_failure_leaves_none(saved: Cases) -> None:
    found = saved["claims"]
    assert found["files"] == 48 and found["whole"]
    assert found["left"] == {"OutputError": [], "InterruptProcessingException": [], "OSError": []}


def test_metadata_that_no_file_takes(saved: Cases) -> None:
    found = saved["metadata"]
    for case, refused in found["refused"].items():
        assert_refused(refused, "OptionError", "extra_pnginfo: ")
        assert refused["message"].isprintable(), case
    assert found["nothing_left"] and found["none"] == 1
    assert found["texts"]["workflow"] == '["\\ud800"]' and found["texts"]["\u00e9 a"] == "1"


def test_the_number_within_a_batch_overwrites_nothing(saved: Cases) -> None:
    numbers = [(0, 1), (1, 2), (0, 2), (1, 3)]
    assert saved["names"]["twice"] == [f"n{index}_{counter:05}_.png" for index, counter in numbers]


def test_transparency_is_there_where_something_is_transparent(saved: Cases) -> None:
    found = saved["transparency"]
    assert found["modes"] == ["RGB", "RGBA", "RGBA", "RGBA", "RGBA"]
    assert found["alphas"] == [[0, 255], [0, 255], [102]]


def test_compression_is_a_setting(saved: Cases) -> None:
    size = saved["compression"]
    assert size["9"] <= size["fast"] < size["0"] / 50


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("bits", "OptionError", ("bits: expected one of 8, 16; got '12'",)),
        ("compression", "OptionError", ("compression: expected one of fast, 0", "got 'best'")),
        ("nan", "ImageError", ("holds NaN",)),
        ("latent", "OptionError", ("images: expected (batch, height, width, 3)",)),
    ],
)
def test_what_cannot_be_saved_is_told(saved: Cases, case: str, kind: str, words: tuple[str, ...]) -> None:
    assert_refused(saved["refused"][case], kind, *words)


def test_the_host_itself_keeps_files_in_its_output_folder(saved: Cases) -> None:
    assert "outside the output folder" in saved["refused"]["outside"]["message"]


def test_refused_pictures_leave_nothing(saved: Cases) -> None:
    assert saved["refused"]["nothing_is_left"]


def test_4096_px_are_right_to_the_pixel(saved: Cases) -> None:
    assert saved["full_size"] == {"shape": [4096, 4096, 3], "same": True}
