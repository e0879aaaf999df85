"""What happens when strips ran out of memory all the same: once more, with settings that need less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import OutOfMemoryError
from ..machine import MEMORY_ERRORS, is_out_of_memory
from ..plain_text import plain_logger
from .estimate import leaner
from .strips import StripSettings

log = plain_logger(__name__)

Result = TypeVar("Result")


def recovering(
    run: Callable[[StripSettings], Result],
    settings: StripSettings,
    what: str,
    release: Callable[[], None] = lambda: None,
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
) -> Result:
    """``run(settings)``; out of memory: again, as ``estimate.leaner`` has it, which gives the same picture.

    what: what is run, for the log and the error. ``release`` runs between two tries, when nothing holds on to the
    failed one any more. Raises our OutOfMemoryError, with what was tried and the remedy, when the settings that need
    least fail as well.
    """
    attempt: StripSettings | None = settings
    tried: list[str] = []
    while attempt is not None:
        result = _try(run, attempt, is_oom)
        if result is not None:
            if tried:
                log.warning("%s: out of memory with %s; done with %s", what, ", ".join(tried), _name(attempt))
            return result[0]
        tried.append(_name(attempt))
        attempt = leaner(attempt)
        release()
    raise OutOfMemoryError(
        f"{what}: out of memory even with the settings that need least (tried {', '.join(tried)}); "
        "ask for a smaller target, close what else uses the memory, or run on the CPU"
    )


def _try(
    run: Callable[[StripSettings], Result], settings: StripSettings, is_oom: Callable[[BaseException], bool]
) -> tuple[Result] | None:
    """The result in a tuple, or None if out of memory. The error does not leave: it would keep every tensor alive."""
    try:
        return (run(settings),)
    except MEMORY_ERRORS as error:
        if not is_oom(error):
            raise
        return None


def _name(settings: StripSettings) -> str:
    return f"{settings.mode}, strips of {settings.rows} rows"
