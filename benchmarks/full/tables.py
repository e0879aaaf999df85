"""What ``benchmark full`` measured, as tables: cases, stages, the paper's figure and the aims beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from op4ksr_core.errors import OptionError

from ..stage_clock import STAGES
from ..stage_times import TOGETHER
from ..tables import Row

#: How the weights are held and multiplied: "fp8" by ``torch._scaled_mm``, "fp8-cast" cast up at the call.
Dtype = Literal["bf16", "fp8", "fp8-cast"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

DONE = "done"
#: How the status of a case begins that ended with an error other than out of memory.
FAILED = "failed"

#: The paper's: 4096 px in 5.75 s on an H20, whose data sheet says 148 TFLOP/s in dense bf16.
PAPER_SECONDS, PAPER_PEAK, PAPER_SIDE = 5.75, 148.0, 4096


@dataclass(frozen=True)
class Case:
    """One side of the output in px, one dtype, with torch.compile of the blocks or without."""

    side: int
    dtype: Dtype
    compiled: bool


@dataclass
class Record:
    """What became of a case. Seconds and bytes by stage; ``weights``: bytes of both models."""

    case: Case
    #: DONE, or in a few words why there are no figures.
    status: str = DONE
    #: The very first run: compiling and the libraries' own choice of kernels are in it.
    first: float = 0.0
    turns: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    peaks: dict[str, int] = field(default_factory=dict[str, int])
    flops: dict[str, float] = field(default_factory=dict[str, float])
    weights: int = 0
    #: Graphs that torch.compile made in the first run, and, which would spoil the seconds, later.
    graphs: int = 0
    later_graphs: int = 0
    strips: str = ""

    @property
    def done(self) -> bool:
        return self.status == DONE

    def seconds(self, stage: str = TOGETHER) -> list[float]:
        """By turn; of one stage, or of all."""
        return [sum(turn.values()) if stage == TOGETHER else turn[stage] for turn in self.turns]

    def median(self, stage: str = TOGETHER) -> float:
        return statistics.median(self.seconds(stage))

    @property
    def peak(self) -> int | None:
        """Bytes at the worst stage, weights included; None where allocations could not be seen."""
        return self.weights + max(self.peaks.values()) if self.peaks else None

    @property
    def work(self) -> float:
        """FLOPs of the whole run."""
        return sum(self.flops.values())


@dataclass
class Findings:
    """All that one report holds: where it was made, the ceilings by dtype (TFLOP/s), and the records."""

    setup: dict[str, str]
    ceilings: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    records: list[Record] = field(default_factory=list[Record])

    def top(self, dtype: str) -> float | None:
        """The measured ceiling, TFLOP/s; "fp8-cast" multiplies in bf16."""
        rows = self.ceilings.get("fp8" if dtype == "fp8" else "bf16")
        return max(row["TFLOP/s"] for row in rows) if rows else None

    def forget_failed(self) -> None:
        """Cases that failed are measured again; those that ran out of memory would do so again."""
        self.records = [record for record in self.records if not record.status.startswith(FAILED)]

    def of(self, case: Case) -> Record | None:
        return next((record for record in self.records if record.case == case), None)

    def details(self) -> list[Row]:
        """For the JSON; ``read_findings`` is the way back."""
        return [{"setup": self.setup, "ceilings": self.ceilings}, *(asdict(record) for record in self.records)]


def read_findings(path: Path) -> Findings | None:
    """What a report holds; None where there is none. Raises OptionError for a file of another kind."""
    if not path.exists():
        return None
    try:
        head, *rows = json.loads(path.read_text("utf-8"))["details"]
        return Findings(head["setup"], head["ceilings"], [_record(row) for row in rows])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path}: is no report to go on with ({error}); name another folder") from error


def _record(row: Row) -> Record:
    values: dict[str, Any] = {f.name: row[f.name] for f in fields(Record)}
    values["case"] = Case(**row["case"])
    return Record(**values)


# --- tables -----------------------------------------------------------------------------------


def tables_of(found: Findings, left: Mapping[Case, str], paper_flops: float, full: bool) -> dict[str, list[Row]]:
    """Settings, cases, stages, ceilings, aims. left: cases without figures yet, and why.

    paper_flops: of 4096 px with the full geometry; full: whether that geometry was run, so that aims apply.
    """
    tables = {"Settings": [{"setting": k, "value": v} for k, v in found.setup.items()]}
    tables["Cases"] = list(_case_rows(found, left))
    if stages := list(_stage_rows(found)):
        tables["Stages of each case"] = stages
    for dtype, rows in found.ceilings.items():
        tables[f"The ceiling in {dtype}: products of two square matrices, the best of 5"] = rows
    tables["The paper's figure, by our reckoning of the work"] = [paper_row(paper_flops)]
    if full:
        tables["Aims: 1024 -> 4096 px on an H200"] = list(aim_rows(found))
    return tables


def _case_rows(found: Findings, left: Mapping[Case, str]) -> Iterator[Row]:
    for record in found.records:
        yield _case_row(found, record)
    for case, reason in left.items():
        yield _case_row(found, Record(case, reason))


def _name(case: Case) -> Row:
    return {"px": case.side, "weights": case.dtype, "torch.compile": "blocks" if case.compiled else "no"}


def _case_row(found: Findings, record: Record) -> Row:
    row: Row = {**_name(record.case), "outcome": record.status}
    names = ["s", "min", "max", "runs", "first s", "graphs", "TFLOP", "TFLOP/s", "of ceiling", "of bf16 ceiling"]
    row |= dict.fromkeys([*names, "GB", "GB of weights", "strips"], "")
    if not record.done:
        return row
    seconds, rate = record.median(), record.work / 1e12 / record.median()
    own, half = found.top(record.case.dtype), found.top("bf16")
    row |= {"s": seconds, "min": min(record.seconds()), "max": max(record.seconds()), "first s": record.first}
    row["runs"] = len(record.turns)
    row["graphs"] = f"{record.graphs}, later {record.later_graphs}" if record.case.compiled else ""
    row |= {"TFLOP": record.work / 1e12, "TFLOP/s": rate}
    row |= {"of ceiling": rate / own if own else "", "of bf16 ceiling": rate / half if half else ""}
    row |= {"GB": "" if record.peak is None else record.peak / 1e9, "GB of weights": record.weights / 1e9}
    return row | {"strips": record.strips}


def _stage_rows(found: Findings) -> Iterator[Row]:
    for record in found.records:
        if not record.done:
            continue
        top = found.top("bf16")
        for stage in (name for name in STAGES if name in record.turns[0]):
            seconds, work, peak = record.seconds(stage), record.flops.get(stage), record.peaks.get(stage)
            median = statistics.median(seconds)
            rate = None if work is None else work / 1e12 / median
            yield {
                **_name(record.case),
                "stage": stage,
                "s": median,
                "min": min(seconds),
                "max": max(seconds),
                "of all": median / record.median(),
                "GB above weights": "" if peak is None else peak / 1e9,
                "TFLOP": "" if work is None else work / 1e12,
                "TFLOP/s": "" if rate is None else rate,
                "of bf16 ceiling": rate / top if rate and top else "",
            }


def paper_row(flops: float) -> Row:
    """The paper's seconds as a share of its chip's peak, for that many FLOPs."""
    rate = flops / 1e12 / PAPER_SECONDS
    return {
        "of": "the paper, one H20, 4096 px",
        "s": PAPER_SECONDS,
        "TFLOP": flops / 1e12,
        "TFLOP/s": rate,
        "peak TFLOP/s": PAPER_PEAK,
        "of the peak": rate / PAPER_PEAK,
    }


# --- aims -------------------------------------------------------------------------------------


def aim_rows(found: Findings) -> Iterator[Row]:
    """Each aim beside the best case there is: met, missed by how much, or not measured."""
    here = "H200" in found.setup.get("gpu", "")
    half, small = _best(found, "bf16"), _best(found, "fp8")
    yield _aim("bf16: seconds", 1.0, None if half is None else half.median(), here)
    top = found.top("bf16")
    share = None if half is None or top is None else half.work / 1e12 / half.median() / top
    yield _aim("bf16: share of the measured ceiling", 0.62, share, here, at_least=True)
    yield _aim("fp8: seconds", 0.7, None if small is None else small.median(), here)
    peaks = [r.peak for r in _at_4096(found) if r.case.dtype != "bf16" and r.peak is not None]
    yield _aim("fp8: GB, weights included", 16.0, min(peaks) / 1e9 if peaks else None, here)
    yield {**_aim("weights offloaded: GB", 8.0, None, here), "verdict": "by benchmark host, in ComfyUI"}


def _at_4096(found: Findings) -> list[Record]:
    return [r for r in found.records if r.done and r.case.side == PAPER_SIDE]


def _best(found: Findings, dtype: Dtype) -> Record | None:
    own = [r for r in _at_4096(found) if r.case.dtype == dtype]
    return min(own, key=lambda r: r.median(), default=None)


def _aim(what: str, aim: float, value: float | None, here: bool, at_least: bool = False) -> Row:
    row: Row = {
        "aim": what,
        "bound": f"{'>=' if at_least else '<='} {aim:g}",
        "measured": "" if value is None else value,
    }
    return row | {"verdict": _verdict(aim, value, here, at_least)}


def _verdict(aim: float, value: float | None, here: bool, at_least: bool) -> str:
    if value is None:
        return "not measured"
    met = value >= aim if at_least else value <= aim
    verdict = "met" if met else f"missed by {abs(value / aim - 1):.0%}"
    return verdict if here else f"{verdict}, but this is no H200"


#: What may not differ within one report.
_SAME = ("transformer", "VAE", "gpu", "torch", "attention", "strips", "repeats", "limit", "torch.compile")


def check_same(found: Findings, setup: Mapping[str, str]) -> None:
    """Raise OptionError unless an earlier command's figures were made in the same way, on the same device."""
    for name in _SAME:
        value = setup.get(name)
        if found.setup.get(name) != value:
            raise OptionError(
                f"benchmark full: the report in this folder has {name} {found.setup.get(name)!r}, this run {value!r}; "
                "name another folder"
            )
