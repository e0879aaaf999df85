"""The detector, the suppressor and the loss, measured on photos with injected artifacts, as tables.

Photos are split by photo: every other one (sorted by path) was used for tuning and calibration, the
rest is held out. Several crops per photo; intervals are bootstrapped over photos, not crops.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import jpeg_round_trip, to_8_bit
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import KINDS, inject
from op4ksr_core.periodicity.calibration import fit
from op4ksr_core.periodicity.evidence import gather_evidence
from op4ksr_core.periodicity.loss import PeriodicityLoss
from op4ksr_core.periodicity.meter import enlarged_plane, grey_plane, measure_periodicity
from op4ksr_core.periodicity.report import PeriodicityReport
from op4ksr_core.periodicity.statistic import Statistic
from op4ksr_core.periodicity.suppress import suppress_with_report
from op4ksr_core.periodicity.thresholds import SAME_PERIOD

from .periodicity_cases import CLEAN_CROPS, COMPRESSED_CROPS, POSITIVE_CROPS, crops_of, negatives, positives
from .tables import Row

#: Those of the suppressor's table.
SUPPRESSED = {
    "white32": (0.5, 1, 2, 8),
    "pink32": (0.5, 1, 2, 8),
    "comb32": (0.5, 1, 2, 8),
    "region32": (1, 2, 8),
    "mult32": (1, 2, 8),
    "drift32": (2, 8),
}


#: Place, hence seed, of the first photo of those that are taken whole.
FIRST_OF_MORE = 1000

HALVES = ("held-out", "tuning", "all")
PARTS = ("detection", "suppression", "loss", "cost", "calibration")


def half_of(photos: Sequence[Path], half: str) -> list[tuple[int, Path]]:
    """(place in the whole list, photo) of one half, or of all. Raises OptionError where there are fewer than two."""
    if len(photos) < 2:
        raise OptionError(f"benchmarks periodicity: expected at least 2 photos, got {len(photos)}")
    return [(i, path) for i, path in enumerate(sorted(photos)) if half == "all" or i % 2 == (half == "held-out")]


def measure_detection(photos: Sequence[tuple[int, Path]], on_photo: Callable[[str], None]) -> list[Row]:
    """One row per picture and mode."""
    rows: list[Row] = []
    for place, path in photos:
        for k, crop in enumerate(crops_of(place, path, CLEAN_CROPS)):
            cases = [(name, 0.0, picture, low) for name, picture, low in negatives(crop, k)]
            if k < POSITIVE_CROPS:
                cases += [(kind, level, picture, crop.low) for kind, level, picture in positives(crop)]
            for name, level, picture, low in cases:
                for mode, reference in (("alone", None), ("reference", low)):
                    report = measure_periodicity(picture, reference)
                    rows.append({"photo": crop.photo, "crop": k, "case": name, "grey levels": level, "mode": mode})
                    rows[-1] |= {"score": report.score, "alarm": report.alarm, "kind": report.kind}
                    rows[-1] |= {"period right": period_is_right(report, name), "period": list(report.period)}
        on_photo(str(path))
    return rows


def period_is_right(report: PeriodicityReport, case: str) -> bool:
    """Whether every period reported is within 3 % of the injected one."""
    name = case.split()[-1]
    truth = KINDS[name][1] / (2 if case.startswith("half") else 1) if name in KINDS else 0.0
    found = [p for p in report.period if p is not None]
    return bool(found) and all(abs(p - truth) <= SAME_PERIOD * truth for p in found)


def detection_table(rows: Sequence[Row]) -> list[Row]:
    """Per case, level and mode: alarms with 95 % interval, AUC, TPR at 1 % of these very negatives, periods right."""
    table: list[Row] = []
    for mode in ("alone", "reference"):
        mine = [r for r in rows if r["mode"] == mode]
        clean = np.sort([r["score"] for r in mine if r["case"] in ("clean", "urban")])
        level_1 = clean[-max(2, round(0.01 * len(clean)))]
        for case, level in sorted({(r["case"], r["grey levels"]) for r in mine}, key=lambda c: (c[1] > 0, c)):
            chosen = [r for r in mine if (r["case"], r["grey levels"]) == (case, level)]
            scores = np.array([r["score"] for r in chosen])
            alarms = [r for r in chosen if r["alarm"]]
            low, high = interval(chosen, lambda r: float(r["alarm"]))
            auc = float(np.mean([np.mean(clean < s) + np.mean(clean == s) / 2 for s in scores]))
            right = sum(r["period right"] for r in alarms) / len(alarms) if alarms and level else None
            table.append({"mode": mode, "case": case, "grey levels": level, "pictures": len(chosen)})
            table[-1] |= {"alarms": len(alarms) / len(chosen), "from": low, "to": high, "AUC": auc}
            table[-1] |= {"above 1 % of clean": float(np.mean(scores > level_1)), "period right": right}
    return table


def interval(rows: Sequence[Row], value: Callable[[Row], float], draws: int = 1000) -> tuple[float, float]:
    """95 % of the mean, by drawing photos (not crops) again and again; seeded."""
    by_photo: dict[str, list[float]] = {}
    for row in rows:
        by_photo.setdefault(row["photo"], []).append(value(row))
    sums = np.array([(sum(v), len(v)) for v in by_photo.values()], float)
    picks = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    drawn = sums[picks].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(low), float(high)


def measure_suppression(photos: Sequence[tuple[int, Path]], on_photo: Callable[[str], None]) -> list[Row]:
    """One row per picture and mode: dB nearer to the clean picture, scores; clean pictures are also forced."""
    rows: list[Row] = []
    for place, path in photos:
        (crop,) = crops_of(place, path, 1)
        cases = [(kind, float(level)) for kind, levels in SUPPRESSED.items() for level in levels]
        for kind, level in [("clean", 0.0), *cases]:
            picture = to_8_bit(inject(crop.image, kind, level, crop.index) if level else crop.image)
            for mode, reference in (("alone", None), ("reference", crop.low)):
                result = suppress_with_report(picture, reference)
                row: Row = {"photo": crop.photo, "case": kind, "grey levels": level, "mode": mode}
                row |= {"acted": result.acted, "before": result.report.score}
                if level:
                    gain = psnr(result.image, crop.image) - psnr(picture, crop.image)
                    row |= {"gain": gain, "after": measure_periodicity(result.image, reference).score}
                else:
                    forced = suppress_with_report(picture, reference, period=(32.0, 32.0))
                    row |= {"gain": 0.0, "after": row["before"], "forced": min(99.0, psnr(forced.image, picture))}
                rows.append(row)
        on_photo(str(path))
    return rows


def suppression_table(rows: Sequence[Row]) -> list[Row]:
    """Per case, level and mode: mean and worst gain in dB, share acted on, ratios of the scores, worst forced dB."""
    table: list[Row] = []
    for mode, case, level in dict.fromkeys((r["mode"], r["case"], r["grey levels"]) for r in rows):
        chosen = [r for r in rows if (r["mode"], r["case"], r["grey levels"]) == (mode, case, level)]
        acted = [r for r in chosen if r["acted"]]
        gains = [r["gain"] for r in chosen]
        ratios: list[float | None] = [*sorted(r["after"] / max(r["before"], 1e-9) for r in acted)] or [None]
        table.append({"mode": mode, "case": case, "grey levels": level, "pictures": len(chosen)})
        table[-1] |= {"acted": len(acted) / len(chosen), "gain dB": float(np.mean(gains)), "worst dB": min(gains)}
        table[-1] |= {"score after / before": ratios[len(ratios) // 2], "worst ratio": ratios[-1]}
        table[-1] |= {"forced worst dB": min((r["forced"] for r in chosen if "forced" in r), default=None)}
    return sorted(table, key=lambda row: row["mode"])


def measure_loss(photos: Sequence[tuple[int, Path]], on_photo: Callable[[str], None]) -> list[Row]:
    """One row per photo: the loss of a bicubic x4 error, alone and with a tile of 0.5 to 8 grey levels; the descent."""
    rows: list[Row] = []
    loss = PeriodicityLoss()
    for place, path in photos:
        (crop,) = crops_of(place, path, 1)
        clean = crop.image[..., :256, :256]
        error = resize(resize(clean, clean.shape[-2] // 4, clean.shape[-1] // 4), *clean.shape[-2:])
        row: Row = {"photo": crop.photo}
        for level in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
            spoilt = error + inject(clean * 0 + 0.5, "pink32", level, crop.index) - 0.5
            row[f"loss at {level:g}"] = float(loss(spoilt, clean))
        row["descent dB"] = descent(clean, crop.index)
        rows.append(row)
        on_photo(str(path))
    return rows


def descent(clean: Tensor, seed: int, steps: int = 30) -> float:
    """dB gained by Adam (0.25/255 a step) on the loss alone, from a tile of 4 grey levels and noise of 1."""
    generator = torch.Generator().manual_seed(seed)
    start = inject(clean, "pink32", 4.0, seed) + torch.randn(clean.shape, generator=generator) / 255
    picture = start.clone().requires_grad_()
    loss = PeriodicityLoss()
    optimizer = torch.optim.Adam([picture], lr=0.25 / 255)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(picture, clean).backward()
        optimizer.step()
    return psnr(picture.detach(), clean) - psnr(start, clean)


#: Run in a process of its own, so that its peak memory is its own. Prints seconds of processor time and bytes.
_COST = """
import time, torch
from op4ksr_core import measure_periodicity
from op4ksr_core.machine import peak_memory
torch.set_num_threads(1)
side, with_reference = {side}, {with_reference}
image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
image[..., : side // 2] = image[..., : side // 2].cumsum(-1).remainder(1)
low = image[..., ::4, ::4].contiguous() if with_reference else None
began = time.process_time()
measure_periodicity(image, low)
print(time.process_time() - began, peak_memory(torch.device("cpu")))
"""


def measure_cost(side: int = 4096) -> list[Row]:
    """Processor time per megapixel and peak memory of the whole process (torch included), one core."""
    rows: list[Row] = []
    for mode, with_reference in (("alone", False), ("reference", True)):
        began = time.monotonic()
        code = _COST.format(side=side, with_reference=with_reference)
        root = str(Path(__file__).resolve().parents[1])
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}: killed for memory?"]
            raise OptionError(
                f"benchmarks periodicity: the {side} px run failed ({reason[0][:200]}); free memory, or name the "
                "parts that you want with --part"
            )
        seconds, memory = done.stdout.split()
        row: Row = {"mode": mode, "side": side, "ms per MP": float(seconds) * 1000 / (side * side / 2**20)}
        row |= {"peak GB": float(memory) / 1e9 if memory != "None" else None, "wall s": time.monotonic() - began}
        rows.append(row)
    return rows


def loss_table(rows: Sequence[Row]) -> list[Row]:
    """Mean, smallest and largest of each column over the photos, and in how many the loss rises with the level."""
    names = [name for name in rows[0] if name != "photo"]
    table: list[Row] = []
    for i, name in enumerate(names):
        values = [row[name] for row in rows]
        rises = (
            sum(row[name] > row[names[i - 1]] for row in rows) / len(rows) if name.startswith("loss") and i else None
        )
        table.append({"what": name, "photos": len(rows), "mean": sum(values) / len(values)})
        table[-1] |= {"smallest": min(values), "largest": max(values), "rises from the one before": rises}
    return table


def measure_calibration(photos: Sequence[tuple[int, Path]], on_photo: Callable[[str], None]) -> list[Row]:
    """One row per clean picture and mode, with the fields of all its statistics: what ``calibration.fit`` needs."""
    rows: list[Row] = []
    for place, path in photos:
        for k, crop in enumerate(crops_of(place, path, CLEAN_CROPS)):
            cases = {"clean": (to_8_bit(crop.image), crop.low)}
            if k < COMPRESSED_CROPS:
                cases["jpeg90"] = (jpeg_round_trip(crop.image, 90), crop.low)
            if k < POSITIVE_CROPS:
                cases |= {name: (picture, low) for name, picture, low in negatives(crop, k) if name == "lrjpeg50"}
            for name, (picture, low) in cases.items():
                plane = grey_plane(picture[0])
                for mode, known in (("alone", None), ("reference", enlarged_plane(low[0], plane))):
                    statistics = [asdict(statistic) for statistic in gather_evidence(plane, known).statistics]
                    rows.append({"photo": crop.photo, "crop": k, "case": name, "mode": mode})
                    rows[-1]["statistics"] = statistics
        on_photo(str(path))
    return rows


def calibration_table(rows: Sequence[Row]) -> list[Row]:
    """The table of calibration.py, as ``fit`` makes it of those rows: per mode, family and period u and b."""
    table: list[Row] = []
    for mode in ("alone", "reference"):
        mine = [r for r in rows if r["mode"] == mode]
        samples = [[Statistic(**fields) for fields in row["statistics"]] for row in mine]
        found = fit(samples, [row["photo"] for row in mine])
        for family, periods in found.table.items():
            for period, (u, b) in periods.items():
                table.append({"mode": mode, "family": family, "period": period, "u": round(u, 2), "b": round(b, 2)})
        start, scale = round(found.start, 3), round(found.scale, 3)
        table.append({"mode": mode, "family": "start, scale", "period": 0, "u": start, "b": scale})
    return table


#: Part -> (measure, sum up); the cost has its own form.
_TABLES: dict[str, tuple[Callable[..., list[Row]], Callable[[Sequence[Row]], list[Row]]]] = {
    "detection": (measure_detection, detection_table),
    "suppression": (measure_suppression, suppression_table),
    "loss": (measure_loss, loss_table),
    "calibration": (measure_calibration, calibration_table),
}


def run_part(
    part: str, photos: Sequence[Path], half: str, on_photo: Callable[[str], None], more: Sequence[Path] = ()
) -> tuple[list[Row], list[Row]]:
    """(table, details) of one of ``PARTS``. more: photos taken whole, added to that half of the others."""
    if part == "cost":
        rows = measure_cost()
        return rows, rows
    measure, sum_up = _TABLES[part]
    added = [(FIRST_OF_MORE + i, path) for i, path in enumerate(more)]
    details = measure([*half_of(photos, half), *added], on_photo)
    return sum_up(details), details
