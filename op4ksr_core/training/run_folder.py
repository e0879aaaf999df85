"""A run's folder: config.toml, log.csv, samples/, checkpoints/. Every file in it is whole or not there."""

from __future__ import annotations

from pathlib import Path

from ..errors import OptionError, OutputError
from ..files import is_temporary, make_folder, write_whole
from ..plain_text import plain_logger

log = plain_logger(__name__)

STATE = "state.safetensors"


class RunFolder:
    """Where a run writes. ``state`` is what ``--resume`` reads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints, self.samples, self.cache = (self.path / n for n in ("checkpoints", "samples", "cache"))
        self.state, self.log = self.checkpoints / STATE, self.path / "log.csv"

    def begin(self, config_text: str, resume: bool) -> bool:
        """Make the folder and copy the config into it; True if there is a state to resume from.

        What a killed run left unfinished in its own folders is removed. Raises OptionError where a run is there
        already and ``resume`` was not asked for, and OutputError.
        """
        try:
            there, is_ours = self.state.exists() or self.log.exists(), self.checkpoints.is_dir()
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.path}: cannot be used as a run folder ({error}); choose another") from error
        if there and not resume:
            raise OptionError(f"{self.path}: holds a run already; resume it by --resume, or name another")
        for folder in (self.path, self.checkpoints, self.samples):
            make_folder(folder)
        if is_ours:
            self._remove_unfinished()
        write_whole(self.path / "config.toml", config_text)
        return resume and self.state.exists()

    def _remove_unfinished(self) -> None:
        """A folder that several runs share, as ``data.cache`` may be, is none of these."""
        for folder in (self.path, self.checkpoints, self.samples, self.cache):
            for file in list(folder.glob(".*")):
                if is_temporary(file.name) and file.is_file() and not file.is_symlink():
                    _remove(file)

    def weights(self, name: str, step: int) -> Path:
        """The file of the weights after that step."""
        return self.checkpoints / f"{name}_{step:07d}.safetensors"

    def prune(self, name: str, keep: int) -> None:
        """Delete all but the last ``keep`` + 1 files of weights."""
        for old in sorted(self.checkpoints.glob(f"{name}_*.safetensors"))[: -keep - 1]:
            _remove(old)


def _remove(file: Path) -> None:
    """Delete what is no longer needed; where that fails, it is no reason to end a run."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be deleted (%s)", file, error.strerror)
