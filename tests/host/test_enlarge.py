"""What enlarges before the one step, in a real ComfyUI: its own upscale models, the bundled network, and the knobs."""

from __future__ import annotations

import pytest
from host.test_nodes import SAME, VISIBLE, assert_refused
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of an enlarged picture: float32 in another order of operations.
ROUNDED = 1e-5


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "enlarge_cases", tmp_path_factory.mktemp("enlarge"))


def test_at_detail_0_a_connected_model_is_the_hosts_own_node_resized(enlarged: Cases) -> None:
    """Convolutions, attention in windows, and factors 1.5 to 5 of models x2 to x8, and 0.5 of a restorer; one strip."""
    assert len(enlarged["is_the_hosts"]) == 9
    for case, found in enlarged["is_the_hosts"].items():
        assert found["whole"] <= ROUNDED, case
        assert found["spread"] > VISIBLE, f"{case} is nearly constant and proves nothing"


def test_the_same_in_many_strips(enlarged: Cases) -> None:
    for case, found in enlarged["is_the_hosts"].items():
        assert found["count"] > 2 and found["strips"] <= ROUNDED, case


def test_the_node_is_the_core_with_every_base_and_knob(enlarged: Cases) -> None:
    assert len(enlarged["is_the_cores"]) == 58, len(enlarged["is_the_cores"])
    for case, difference in enlarged["is_the_cores"].items():
        assert difference <= SAME, case


@pytest.mark.parametrize("what", ["bundled", "own", "alone", "half", "repair", "kinds"])
def test_every_knob_shows(enlarged: Cases, what: str) -> None:
    assert enlarged["effects"][what] > VISIBLE


def test_prompts_saved_before_give_the_same_picture(enlarged: Cases) -> None:
    assert len(enlarged["as_before"]) == 6 and all(enlarged["as_before"].values())


@pytest.mark.parametrize("way", ["clone", "lora", "sampling", "rfr"])
def test_what_the_model_says_of_detail_and_repair_survives(enlarged: Cases, way: str) -> None:
    assert enlarged["settings_travel"][way]
    assert enlarged["settings_travel"]["matters"] > VISIBLE


def test_a_lora_that_says_so_adds_detail(enlarged: Cases) -> None:
    assert enlarged["lora_of_detail"]["core"] <= SAME and enlarged["lora_of_detail"]["base"] > VISIBLE


def test_models_of_one_channel_half_precision_and_other_packs(enlarged: Cases) -> None:
    found = enlarged["other_models"]
    assert found["grey"] == [1, 80, 112, 3] and found["batch"] == [2, 80, 112, 3]
    assert 0 < found["half"] < VISIBLE and 0 < found["half_file"] < VISIBLE
    assert found["pack"] <= ROUNDED
    assert found["shrunk"] <= ROUNDED  # bicubic, as nothing is to be made up
    assert found["moves"] == ["cpu"] * 4  # to the device, which is the CPU here, and off it: to be counted, and to run


def test_a_model_is_put_back_whatever_happens(enlarged: Cases) -> None:
    assert enlarged["moves_off"] == {
        "fails": ["Op4ksrError", "cpu"],
        "cancelled": ["InterruptProcessingException", "cpu"],
    }


def test_the_memory_manager_makes_room_first(enlarged: Cases) -> None:
    found = enlarged["memory"]
    (_, own), (_, pack), (bundled,) = found["own"], found["pack"], found["bundled"]
    assert own[0] == ("load" if found["has_patcher"] else "free") and own[2] > 200_000  # two pictures of 112x80 px
    assert pack[:2] == ["free", "cpu"] and pack[2] > 200_000
    assert bundled[:2] == ["load", ["_Held"]] and bundled[2] > 1_000_000
    assert found["bicubic"] == []


def test_smaller_strips_where_memory_is_short_and_the_same_picture(enlarged: Cases) -> None:
    found = enlarged["out_of_memory"]
    assert found["smaller"] <= ROUNDED
    assert found["rows"][0] > 300 and max(found["rows"][-3:]) <= 300
    assert_refused(found["none"], "OutOfMemoryError", "upscale_model (RealESRGAN Compact x2)", "out of memory")


def test_the_bundled_network_retreats_from_a_full_device(enlarged: Cases) -> None:
    found = enlarged["retreats"]
    assert found["same"] and found["asked"] == ["(1e+30, device(type='meta'))"]
    assert found["other"]["message"] == "wrong" and found["cpu"]["message"] == "full"


def test_the_bundled_network_is_read_once_at_first_use(enlarged: Cases) -> None:
    assert enlarged["bundled_is_kept"] == {"before": 0, "reads": 1}


def test_strips_move_the_bar(enlarged: Cases) -> None:
    found = enlarged["progress"]
    assert len(found["totals"]) == 1 and found["values"] == sorted(found["values"])
    assert len(set(found["values"])) > 3 and found["values"][-1] == found["totals"][0]


def test_cancel_ends_between_strips(enlarged: Cases) -> None:
    assert enlarged["cancelling"] == {"ended": "at once", "calls": 1, "works_again": True}


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("four_channels", "OptionError", ("upscale_model (RealESRGAN Compact x2)", "4 channels", "choose another")),
        ("other_factor", "Op4ksrError", ("upscale_model (Foreign x4)", "(1, 3, 160, 224)", "(1, 3, 80, 112)")),
        ("fraction", "OptionError", ("expected a whole factor, got 1.5", "choose another")),
        ("zero", "OptionError", ("a factor of 0", "choose another")),
        ("nan_factor", "OptionError", ("expected a whole factor, got nan", "choose another")),
        ("nan", "Op4ksrError", ("output is not finite (NaN)",)),
        ("no_picture", "OptionError", ("expected a picture, got a value of class list", "choose another")),
        ("fails", "Op4ksrError", ("fails on 56x40 px (mat1 and mat2", "choose another")),
        ("inpainting", "OptionError", ("upscale_model: is an inpainting model", "choose one that enlarges")),
        ("a_model", "OptionError", ("upscale_model: expected an UPSCALE_MODEL", "ModelPatcher")),
        ("text", "OptionError", ("upscale_model: expected an UPSCALE_MODEL", "the text '4x.pth'")),
    ],
)
def test_refused_upscale_models(enlarged: Cases, case: str, kind: str, words: tuple[str, ...]) -> None:
    assert_refused(enlarged["refused"][case], kind, *words)


def test_the_sampler_alone_takes_the_recommended_repair_and_says_what_it_cannot(enlarged: Cases) -> None:
    found = enlarged["sampler_alone"]
    assert found["picture"] == {"sigmas": [0.3, 0.0], "told": []}
    assert found["detail"]["sigmas"] == [0.45, 0.0]  # 0.3 + 0.25 (0.9 - 0.3)
    (told,) = found["detail"]["told"]
    assert told.endswith("One-Step Upscale to 4K lays the detail over the picture itself")
