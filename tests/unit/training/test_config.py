"""A config is read, or refused with the nearest right name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from op4ksr_core import OptionError
from op4ksr_core.errors import OutOfMemoryError
from op4ksr_core.training.config import TrainConfig
from op4ksr_core.training.config_file import parse_config, read_config
from op4ksr_core.training.needs import check_needs

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.toml"))
START = 'kind = "one_step"\nrun = "r"\n'


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_recipes_are_read(path: Path) -> None:
    assert read_config(path).loss.periodicity > 0


def test_there_are_recipes() -> None:
    assert len(CONFIGS) >= 4


def test_values_are_what_the_file_says() -> None:
    config = parse_config(
        START + 'seed = 3\n[rfr]\npolicy = "theta"\ntheta = 256\n[model]\nsigma = 1\n'
        "[degradation]\nfactor = [2, 8]\nnoise_level = [[1, 2], [3, 4]]\n[train]\nrate = 1\ngrid_tokens = 64\n"
    )
    assert config.seed == 3 and config.rfr.rfr().theta == (256.0, 256.0) and config.model.sigma == 1.0
    assert config.degradation.factor == (2.0, 8.0) and config.degradation.noise_level == ((1.0, 2.0), (3.0, 4.0))
    assert config.train.rate == 1.0 and config.train.grid_tokens == (64,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sead = 1", "unknown key 'sead'; did you mean 'seed'"),
        ("[train]\nlearning_rate = 1", "unknown key 'train.learning_rate'"),
        ("[train]\nstep = 1", "'train.step'; did you mean 'train.steps'"),
        ("[train]\nperiodicity = 1", "did you mean 'loss.periodicity'"),
        ("[modell]\nstart = ''", "did you mean 'model'"),
        ("[loss]\npixel = 'a'", "loss.pixel: expected a number, got 'a'; change it"),
        ("[loss]\npixel_kind = 'l3'", "did you mean 'l"),
        ("[train]\nsteps = 1.5", "train.steps: expected a whole number, got 1.5; change it"),
        ("[train]\nsteps = 0", "train.steps: expected at least 1"),
        ("[train]\nsteps = true", "train.steps: expected a whole number, got True; change it"),
        ("[data]\ncrop = 100", "data.crop: expected a multiple of 32"),
        ("[data]\nsource = 'folder'", "data.path"),
        ("train = 3", r"expected a table \[train\]"),
        ("[degradation]\nfactor = [1, 2, 3]", "degradation.factor: expected at most 2 values"),
        ("[rfr]\npolicy = 'fitt'", "did you mean 'fit'"),
        ("[train]\ngrid_every = 5\ngrid_tokens = [10]", "train.grid_tokens"),
        ("[train]\nlatent_steps = 5\n[loss]\nlatent = 0", "loss.latent"),
        ("[train]\nsteps = 5\nlatent_steps = 5", "train.latent_steps: expected fewer than all 5"),
        ("[train]\nlinear_steps = -1", "train.linear_steps: expected at least 0, got -1; change it"),
        ("[train]\nlatent_steps = 5\ngrid_pictures = 0", "train.grid_pictures: expected at least 1"),
        ("[loss]\nprojected = 1.5", "loss.projected: expected at most 1, got 1.5"),
        ("[train]\nlatent_steps = 5\n[data]\ncrop = 512", "picture_side"),
        ("[model]\nlora_rank = 0", "model.lora_rank: expected at least 1, got 0"),
        ("[rfr]\ntheta = [9, 9, 9]", r"rfr.theta: expected at most 2 values, got \[9, 9, 9\]; change it"),
        ("[rfr]\ntokens = []", r"rfr.tokens: expected at least 1 values, got \[\]"),
        ("[output]\nsave_every = 0", "output.save_every: expected at least 1, got 0"),
        ("[train]\nlinear_steps = 5\naccelerate = true", "train.linear_steps: .* set it to 0, or train.accelerate to"),
        ("[train]\naccelerate = true\n[loss]\nadversarial = 1", "loss.adversarial: .* set it to 0, or train.accel"),
        ("seed = -1", "seed: expected at least 0, got -1"),
        ("[model]\nnum_heads = 0", "model.num_heads: expected at least 1, got 0"),
        ("[model]\nnum_heads = 3", "model.hidden_size: expected a multiple of 32 channels for each of the 3 heads"),
        ("[model]\nhidden_size = 160", "model.hidden_size: .* got 160"),
        ("[model]\nwidths = []", r"model.widths: expected at least 1 values, got \[\]"),
        ("[model]\nwidths = [8, -8]", "model.widths: expected at least 1"),
        ("[model]\nnorm_groups = 5", r"model.widths: expected multiples of model.norm_groups \(5\)"),
        ("[data]\npicture_side = 0", "data.picture_side: expected at least 32, got 0"),
        ("[data]\nworkers = -1", "data.workers: expected at least 0, got -1"),
        ("[data]\nshrunk = 3.0", "data.shrunk: expected at most 1, got 3.0"),
        ("[data]\nshrunk = nan", "data.shrunk: expected a finite number, got nan"),
        ("[loss]\nperiodicity_border = -3", "loss.periodicity_border: expected at least 0"),
        ("[loss]\npixel = 0\ngradient = 0\nlatent = 0", 'loss: no term that kind "one_step" has'),
        ("[loss]\npixel = 0\ngradient = 0\nlatent = 0\nadversarial = 1", "loss: no term"),
        ("[train]\nclip = 0", "train.clip: expected above 0, got 0; change it"),
        ("[train]\nema = 1", "train.ema: expected less than 1, got 1; change it"),
        ("[train]\ngrid_tokens = []", "train.grid_tokens: expected at least 1"),
        ("[train]\nrate = -1", "train.rate: expected at least 0, got -1; change it"),
        ("[output]\nkeep = -2", "output.keep: expected at least 0, got -2"),
        ("[output]\nsample_side = 0", "output.sample_side: expected at least 32, got 0"),
        ("[degradation]\nsinc_cutoff = [0, 0]", "degradation.sinc_cutoff: expected low <= high within 0.01 to 3.15"),
        ("[degradation]\nfactor = [4]", r"degradation.factor: expected more values, got \[4\]; add what is missing"),
        ("[degradation]\norder = 3", "degradation.order: expected one of 1 or 2, got 3; choose one"),
        ("[degradation]\nclean = 1.5", "degradation.clean: expected at most 1, got 1.5"),
        ("[degradation]\nclean = '0.5'", "degradation.clean: expected a number, got '0.5'"),
        ("[degradation]\nclaen = 1", "unknown key 'degradation.claen'; did you mean 'degradation.clean'"),
        ("[train]\ndevice = 3", "train.device: expected text in quotes, got 3"),
        ("[train]\naccelerate = 1", "train.accelerate: expected true or false, got 1"),
        ("[train]\nprecision = 2026-01-01", "train.precision: expected one of 'fp32' or 'bf16', got '2026-01-01'"),
        ("[train", "is no TOML"),
        ("[train]\nrate = 1e308", "train.rate: expected at most 10, got 1e.308"),
        ("[train]\nrate = 1e400", "train.rate: expected a finite number, got inf"),
        ("[train]\nsteps = 1180591620717411303424", "train.steps: expected .*got 1180591620717411303424"),
        ("[train]\naccumulate = 1000000000000", "train.accumulate: expected at most 65536"),
        ("[train]\nbatch = 1000000000", "train.batch: expected at most 65536"),
        ("[train]\nsteps = " + "9" * 5000, "is no TOML .*digits"),
        ("[train]\nsteps = " + "9" * 4000, "train.steps: expected"),
        ("seed = 36893488147419103232", "seed: expected"),
        ("[train]\nsteps = " + "[" * 2000 + "]" * 2000, "is nested too deeply"),
        ("[train]\nsteps = " + "[" * 250 + "]" * 250, "nested too deeply"),
        ("a" + ".a" * 3000 + " = 1", "nested too deeply"),
        ("[data]\npath = 'pipe:ls'", "data.path: expected a path on this machine, got 'pipe:ls', an address"),
        ("[data]\ncache = 'http://a/b'", "data.cache: expected a path on this machine"),
        ("[data]\ncache = 'a::b'", "data.cache: expected a path on this machine"),
        ("[model]\nstart = 's3://a'", "model.start: expected a path on this machine"),
        ("[output]\nsample_folder = '\\\\host\\share'", "output.sample_folder: .*another machine's folder"),
        ('[model]\nautoencoder = "a\\u0000"', "model.autoencoder: .*a NUL"),
        ("[model]\nautoencoder = ''", "model.autoencoder: expected a file, got nothing"),
        ("[model]\nstart = '" + "a" * 300 + "'", "model.start: .*too long for a path"),
        ("[data]\npictures = 5\npicture_side = 64", r"data.crop: expected at most data.picture_side \(64 px\), got 96"),
        ("[model]\nsigma = 0", "model.sigma: expected above 0"),
        ("[rfr]\nturns = 1e-300", "rfr.turns: expected at least 1e-06"),
    ],
)
def test_wrong_configs_are_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(OptionError, match=f"^config: .*{told}"):
        parse_config(START + text)


def test_what_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'run' is missing"):
        parse_config('kind = "lora"')
    with pytest.raises(OptionError, match="model.start"):
        parse_config('kind = "lora"\nrun = "r"')
    with pytest.raises(OptionError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    assert TrainConfig("one_step", "r").train.steps == 1000


def test_python_3_10_without_tomli_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(OptionError, match="^Python 3.10 reads TOML with tomli: pip install tomli$"):
        parse_config(START)


def test_without_pydantic_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    told = '^config: training configs are checked with pydantic: pip install "op4ksr\\[train\\]"$'
    with pytest.raises(OptionError, match=told):
        parse_config(START)


@pytest.mark.slow
def test_only_reading_a_config_needs_pydantic() -> None:
    """The package, its commands and benchmarks are imported without it."""
    hidden = "import sys; sys.modules['pydantic'] = None; sys.path.insert(0, sys.argv[1]); "
    script = hidden + "import op4ksr_core.cli.main, op4ksr_core.training.trainer"
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_single_values_stand_for_lists_of_one() -> None:
    config = parse_config(START + "[degradation]\norder = 1\nblur = 0.5\n[model]\nlora_targets = 'qkv'\n")
    assert config.degradation.blur == (0.5,) and config.model.lora_targets == ("qkv",)


def test_changes_win_over_the_file() -> None:
    text = START + "[train]\nsteps = 5\nbatch = 2\n"
    config = parse_config(text, changes=["train.steps=9", "loss.pixel = 2", "run='other'"])
    assert (config.train.steps, config.train.batch, config.loss.pixel, config.run) == (9, 2, 2.0, "other")
    with pytest.raises(OptionError, match="KEY=VALUE"):
        parse_config(text, changes=["train.steps"])
    with pytest.raises(OptionError, match="quotes"):
        parse_config(text, changes=["run=other"])
    with pytest.raises(OptionError, match="train.steps"):
        parse_config(text, changes=["train.stepz=1"])


def test_a_decoder_alone_needs_an_encoder() -> None:
    with pytest.raises(OptionError, match="name its file as model.start"):
        parse_config('kind = "autoencoder"\nrun = "r"\n[model]\npart = "decoder"')


def test_files_that_are_no_recipes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + START.encode())
    assert read_config(path).run == "r"
    path.write_bytes(b"kind = '\xff'")
    with pytest.raises(OptionError, match="a.toml: cannot be read"):
        read_config(path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(OptionError, match="is larger than 1,048,576 bytes, which no recipe is"):
        read_config(path)
    with pytest.raises(OptionError, match=r"cannot be read \(is a folder\); name a TOML file"):
        read_config(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OptionError, match=r"cannot be read \(is a named pipe"):
            read_config(tmp_path / "pipe")


def test_what_no_memory_holds_is_refused_before_it_is_made() -> None:
    for more in (
        "[train]\nbatch = 65536\n[data]\ncrop = 16384\npicture_side = 16384",
        "[model]\nhidden_size = 65536\ndepth = 1024",
    ):
        with pytest.raises(OutOfMemoryError, match="needs [0-9,.]+ GB of memory at least, and .* free; lower it"):
            check_needs(parse_config(START + more))
