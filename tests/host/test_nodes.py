"""The nodes inside a real ComfyUI: schemas, native VAE and MODEL, one step, RFR, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from host_support import NODES, Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of images in [0, 1]. Less than a tenth of an 8-bit step: the same fp32 numbers in another order.
SAME = 1e-4
#: A difference that shows.
VISIBLE = 0.02


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "loader_cases", tmp_path_factory.mktemp("loaders"))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "one_step_cases", tmp_path_factory.mktemp("one_step"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "model_cases", tmp_path_factory.mktemp("models"))


def assert_refused(found: dict[str, Any], kind: str, *words: str) -> None:
    """An error of ours (not the host's, not torch's), one sentence, that says what it must say."""
    assert "Op4ksrError" in found["classes"], found
    assert found["classes"][0] == kind, found
    assert "\n" not in found["message"] and len(found["message"]) < 400
    for word in words:
        assert word in found["message"], found["message"]


# --- schemas ----------------------------------------------------------------------------------


def test_all_nodes_are_there(loaders: Cases) -> None:
    assert sorted(loaders["schemas"]) == sorted(NODES)


@pytest.mark.parametrize("node", NODES)
def test_schema_fits_execute(loaders: Cases, node: str) -> None:
    schema = loaders["schemas"][node]
    assert sorted(schema["inputs"]) == sorted(schema["parameters"])
    assert set(schema["optional_inputs"]) <= set(schema["optional_parameters"])


@pytest.mark.parametrize("node", NODES)
def test_everything_is_explained(loaders: Cases, node: str) -> None:
    assert loaders["schemas"][node]["without_tooltip"] == []
    assert loaders["schemas"][node]["description"]


def test_dropdowns_offer_the_bundled_file_then_the_users(loaders: Cases) -> None:
    vaes, models = loaders["dropdowns"]["vae_name"], loaders["dropdowns"]["model_name"]
    assert vaes[0] == "bundled: op4ksr_small_f16_vae.safetensors" and "good_vae.safetensors" in vaes
    assert models[0] == "bundled: op4ksr_small_flux.safetensors" and "good_flux.safetensors" in models


# --- VAE --------------------------------------------------------------------------------------


def test_the_hosts_vae_nodes_work_at_16x(loaders: Cases) -> None:
    found = loaders["vae_nodes"]
    assert found["latent"] == [2, 16, 6, 8] and found["encode"] <= SAME
    assert found["image"] == found["tiled"] == [2, 96, 128, 3] and found["decode"] <= SAME
    assert found["contrast"] > VISIBLE
    assert 0 <= found["tiled_range"][0] < found["tiled_range"][1] <= 1


def test_vae_sizes(loaders: Cases) -> None:
    found = loaders["vae_sizes"]
    assert found["136x100"] == [1, 16, 6, 8]
    assert found["tiled"] == [1, 16, 8, 10]
    assert found["ratios"] == [16, 16, 16]


def test_vae_memory_estimates_grow_with_the_area(loaders: Cases) -> None:
    """Maps grow with the height, the strips at work do not: twice the rows need a little less than twice."""
    found = loaders["vae_memory"]
    for stage in ("encode", "decode"):
        assert found[stage] > 2**20
        assert 1.9 * found[stage] < found[f"{stage}_twice"] < 2 * found[stage]


@pytest.mark.parametrize("widget", ["auto_is_of_the_file", "shift_0_differs", "8x"])
def test_vae_widgets_win_over_the_file(loaders: Cases, widget: str) -> None:
    assert loaders["vae_widgets"][widget]


def test_the_host_can_load_the_vae_again(loaders: Cases) -> None:
    found = loaders["vae_rebuild"]
    assert found["own_model"] and not found["dynamic"]
    assert found["shape"] == [1, 64, 96, 3] and found["in_strips"] == "StripEngine"
    assert found["same_encode"] and found["same_decode"]


# --- one step ---------------------------------------------------------------------------------

OPTIONS = {
    "none": [1, 96, 128, 3],
    "fidelity": [1, 96, 128, 3],
    "half_fidelity": [1, 96, 128, 3],
    "adain": [1, 96, 128, 3],
    "lab": [1, 96, 128, 3],
    "wavelet": [1, 96, 128, 3],
    "vae_only": [1, 96, 128, 3],
    "sigma": [1, 96, 128, 3],
    "long_edge": [1, 120, 160, 3],
    "short_edge": [1, 160, 213, 3],
    "megapixels": [1, 125, 167, 3],
    "batch": [2, 96, 128, 3],
    "odd": [1, 201, 303, 3],
    "odd_fidelity": [1, 134, 202, 3],
    "rgba": [1, 96, 128, 3],
}


@pytest.mark.parametrize("case", OPTIONS)
def test_one_step_node_is_the_core(one_step: Cases, case: str, record_property: Any) -> None:
    found = one_step["options"][case]
    record_property("largest_difference", found["difference"])
    assert found["shape"] == OPTIONS[case]
    assert found["mask"] == OPTIONS[case][:3]
    assert found["difference"] <= SAME


@pytest.mark.parametrize("option", ["fidelity", "adain", "wavelet", "lab", "vae_only", "sigma"])
def test_every_option_shows(one_step: Cases, option: str) -> None:
    assert one_step["effects"][option] > VISIBLE


def test_transparency_is_enlarged_beside_the_picture(one_step: Cases) -> None:
    found = one_step["masks"]
    assert found["shape"] == [1, 201, 303]
    assert found["left"] > 0.999 and found["right"] < 0.001
    assert found["without_batch_axis_is_the_same"] and found["with_a_channel_is_the_same"]
    assert found["none"] == [[1, 201, 303], 0.0]


def test_the_files_prompt_is_the_default(one_step: Cases) -> None:
    found = one_step["conditioning"]
    assert found["own_is_default"]
    assert found["strength_of_prompt"] > 0
    assert found["other_differs"] > VISIBLE


def test_a_typed_sigma_wins(one_step: Cases) -> None:
    found = one_step["conditioning"]
    assert found["typed_sigma"] <= SAME
    assert found["sigma_differs"] > VISIBLE


def test_guidance_is_the_files_unless_typed(one_step: Cases) -> None:
    found = one_step["conditioning"]
    assert found["own_guidance"] <= SAME
    assert found["plain_prompt"] == 0.0
    assert found["typed_guidance"] <= SAME
    assert found["guidance_differs"] > VISIBLE


def test_fluxs_own_8x_vae_works_too(one_step: Cases) -> None:
    assert one_step["native_f8_vae"]["shape"] == [1, 56, 80, 3]
    assert one_step["native_f8_vae"]["difference"] <= SAME


def test_progress_rises_to_its_total(one_step: Cases) -> None:
    found = one_step["progress"]
    (total,) = found["totals"]
    assert found["values"] == sorted(found["values"]) and len(set(found["values"])) > 10
    assert found["last"] == [total, total]


@pytest.mark.parametrize("what", ["encode", "decode", "node", "works_again"])
def test_cancelling(one_step: Cases, what: str) -> None:
    assert one_step["cancelling"][what]


def test_pictures_are_fixed_at_home_where_the_device_is_full(one_step: Cases) -> None:
    found = one_step["retreats"]
    assert found["result"] == found["asked"] == [1.0, 1.0]
    assert found["tried"] == ["meta", "cpu", "cpu"]
    assert found["other"] == "wrong on meta"


# --- MODEL ------------------------------------------------------------------------------------


def test_a_file_with_a_theta_per_axis_is_the_core(models: Cases) -> None:
    assert models["core_agrees"] <= SAME


def test_ksampler_takes_the_model(models: Cases) -> None:
    found = models["sampler"]
    assert found["shape"] == [1, 16, 6, 8] and found["finite"]
    assert found["moved"] > VISIBLE


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_lora_is_the_merged_model(models: Cases, layout: str) -> None:
    assert models["lora"]["changes"] > VISIBLE
    assert models["lora"][layout] <= SAME


def test_lora_of_strength_0_changes_nothing_and_none_stays_behind(models: Cases) -> None:
    assert models["lora"]["strength_0"]
    assert models["lora"]["gone_again"] == 0


def test_model_sampling_does_not_move_one_step(models: Cases) -> None:
    assert models["sampling_flux"]["identical"]


@pytest.mark.parametrize("way", ["clone", "lora", "sampling", "rfr"])
def test_settings_survive(models: Cases, way: str) -> None:
    assert models["survivors"][way]
    assert models["survivors"]["sigma_matters"]


def test_fp8_weights_run(models: Cases) -> None:
    found = models["fp8"]
    assert found["dtype"] == "torch.float8_e4m3fn" and found["finite"]
    assert 0 < found["difference"] < 0.2 * found["transformer"]


def test_the_host_can_load_the_model_again(models: Cases) -> None:
    assert models["reload"]["own_model"]
    assert models["reload"]["same"]


def test_models_of_other_loaders(models: Cases) -> None:
    found = models["foreign_loader"]
    assert found["with_prompt"] <= SAME and found["with_rfr"] <= SAME
    assert found["rfr_effect"] > VISIBLE
    assert found["without_prompt"] == [1, 192, 256, 3]


# --- RFR --------------------------------------------------------------------------------------


def test_theta_does_not_leak_into_other_branches(models: Cases) -> None:
    assert models["no_leak"]["same_before_and_after"]
    assert models["no_leak"]["branch_differs"] > VISIBLE


def test_of_two_rfr_nodes_the_last_wins(models: Cases) -> None:
    found = models["last_wins"]
    assert found["last"] and found["checkpoint_undoes"]
    assert found["differs"] > VISIBLE


@pytest.mark.parametrize("case", ["own_theta", "flux_theta", "written_out"])
def test_policy_checkpoint_is_the_identity(models: Cases, case: str) -> None:
    assert models["checkpoint_policy"][case]


@pytest.mark.parametrize("policy", ["theta", "fit", "ntk", "interpolate", "parts", "parts_at", "ultraflux"])
def test_policies_are_the_cores(models: Cases, policy: str) -> None:
    found = models["policies"][policy]
    assert found["difference"] <= SAME
    assert found["effect"] > VISIBLE


def test_rfr_says_what_it_did(models: Cases) -> None:
    found = models["reports"]
    assert "46.7" in found["theta"] and "80 (rows), 90 (columns)" in found["theta"]
    assert "ForeignEmbedder" not in found["theta"]
    assert "replaces the positions that ForeignEmbedder had patched in" in found["foreign"]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("f8", ("f8.safetensors", "8x", "Load VAE")),
        ("four_channels", ("four.safetensors", "16 latent channels", "got one with 4")),
        ("flux", ("flux.safetensors", "got a Flux transformer")),
        ("truncated", ("truncated.safetensors", "cut short")),
        ("header_truncated", ("header.safetensors", "cut short")),
        ("empty", ("empty.safetensors", "fetch it again")),
        ("pickle", ("pickle.pt", "pickle", "convert it to safetensors")),
        ("pickle_in_disguise", ("disguise.safetensors", "pickle")),
    ],
)
def test_refused_vae_files(loaders: Cases, case: str, words: tuple[str, ...]) -> None:
    assert_refused(loaders["refused_vaes"][case], "UnsupportedCheckpointError", *words)


def test_a_vae_that_looks_like_an_8x_one_is_refused_unless_insisted_on(loaders: Cases) -> None:
    found = loaders["doubtful_vae"]
    words = ("doubtful.safetensors: a test picture", "looks like an 8x VAE; load it with", "set compression to 16x")
    assert_refused(found, "UnsupportedCheckpointError", *words)
    assert found["insisted"] == 4


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("vae", ("vae.safetensors", "got a VAE")),
        ("truncated", ("truncated.safetensors", "cut short")),
        ("pickle", ("pickle.safetensors", "convert it to safetensors")),
    ],
)
def test_refused_model_files(loaders: Cases, case: str, words: tuple[str, ...]) -> None:
    assert_refused(loaders["refused_models"][case], "UnsupportedCheckpointError", *words)


def test_a_dropdowns_value_that_it_does_not_offer_is_refused(loaders: Cases) -> None:
    """The host checks only typed values (0.3 none): a string of another node arrives as it is."""
    found = loaders["foreign_choices"]
    assert len(found) >= 9
    for case, refused in found.items():
        assert_refused(refused, "OptionError", f"{case.split()[1]}: expected one of ", "got 'sepia'")


def test_a_grey_picture_of_one_channel(one_step: Cases) -> None:
    assert one_step["grey"] == 0


def test_colours_hidden_under_transparency_do_not_bleed(one_step: Cases) -> None:
    assert one_step["hidden_colours"] == {"same": True, "masks": True}


def test_a_files_name_may_come_from_another_node(loaders: Cases) -> None:
    assert [answer for answers in loaders["linked_files"].values() for answer in answers] == [True] * 8


def test_missing_files(loaders: Cases) -> None:
    for found in (loaders["refused_vaes"]["missing"], loaders["refused_models"]["missing"]):
        assert_refused(found, "OptionError", "no_such_file.safetensors", "choose another")
    assert_refused(loaders["removed_file"], "OptionError", "soon_gone.safetensors")


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("nan", "ImageError", ("NaN",)),
        ("empty", "ImageError", ("empty",)),
        ("no_batch", "OptionError", ("image: expected (batch, height, width, 3)", "(48, 64, 3)")),
        ("no_prompt", "OptionError", ("conditioning: is empty", "leave it open")),
        ("no_vae", "OptionError", ("vae: is nothing", "choose one in a loader")),
        ("ceiling", "OptionError", ("4096x3072", "ceiling of 0.5 MP")),
        ("four_channels", "OptionError", ("4 latent channels", "takes 16")),
        ("video", "OptionError", ("VAE: is a video VAE", "choose a Flux-type picture VAE")),
        ("stable_diffusion", "OptionError", ("MODEL: is a BaseModel", "choose a Flux model")),
        ("stable_diffusion_both", "OptionError", ("MODEL: is a BaseModel", "choose a Flux model")),
        ("other_prompt", "OptionError", ("CONDITIONING: has 2048 channels", "takes 64", "leave it open")),
        ("other_pooled", "OptionError", ("CONDITIONING: has 1280 channels", "takes 32", "leave it open")),
    ],
)
def test_refused_inputs(one_step: Cases, case: str, kind: str, words: tuple[str, ...]) -> None:
    assert_refused(one_step["refused"][case], kind, *words)


def test_rfr_refuses_a_model_that_is_no_flux(models: Cases) -> None:
    assert_refused(models["not_flux"]["rfr"], "OptionError", "UNetModel", "needs a Flux model")


@pytest.mark.parametrize("node", ["OP4KSR_OneStepSampler", "OP4KSR_FluxShift16x"])
def test_steps_for_a_model_of_another_kind_are_refused(models: Cases, node: str) -> None:
    """Its picture would be noise, or an SDXL model's schedule a Flux one, with nothing said."""
    assert_refused(models["not_flux"][node], "OptionError", "MODEL: is a BaseModel", "choose a Flux model")
