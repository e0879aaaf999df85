"""The thresholds that decide what is reported: the alarm, its kind and period, what a reference excuses, removal.

Numbers of the method itself (windows, clips, exponents) stay in the modules that use them; what clean pictures show,
by which a statistic is weighed, is calibration.py's. "Our choice" below: set by looking at injected artifacts and
clean photos of the tuning half (docs/benchmark_periodicity.md); the tables there say how well they do on held-out ones.
"""

from __future__ import annotations

# --- the alarm (meter.py) -----------------------------------------------------------------------

#: The alarm threshold: the false-alarm rate at or below which a picture is called periodic, unless the caller gives
#: another; 0.01 is a score of 2. Our choice: 1 clean picture in 100, which the benchmark's targets are stated at.
ALARM_RATE = 0.01

#: Range in grey levels (of 255) under which a picture is flat: nothing but rounding is in it. Our choice: a tenth of
#: what rounding to 8 bit can move.
FLAT = 0.05

#: Range in grey levels that a row or column of a flat border may have. Our choice: under one step of 8 bit.
FRAME_RANGE = 0.75

#: z of the picture's own 8 px steps above which it is a JPEG: reported as kind "jpeg" without an alarm, and its 8 and
#: 16 px powers count less. Our choice; clean scenes stay below it, JPEG quality 60 is above.
JPEG_STEPS = 4.0

# --- which kind (meter.py); scores are in scales of the clean tail -------------------------------

#: Share of the best comb's (and of the best block steps') score from which a tile is preferred: tiles show as lines
#: too, and seldom the other way round. Our choice.
TILE_SHARE = 0.35

#: The same where lines and tile have one period, and the lines' score is over SHARED_LINES of the tile's: lines of any
#: period are also a tile of that period on one axis and of any on the other. Our choice.
TILE_SHARE_SHARED, SHARED_LINES = 0.6, 0.5

# --- which period (meter.py) ---------------------------------------------------------------------

#: Score above which the period found without a list (periods.py) is reported, else one of lattice.PERIODS. Our choice.
FREE_PERIOD = 2.5

#: Score, and share of the best lattice's, above which the longest lattice is reported: a tile of 32 px also stands out
#: at 16. Our choice.
LOUD_PERIOD, LOUD_SHARE = 2.0, 0.3

#: Relative difference within which two periods, or a period and a multiple of another, are the same. As the benchmark
#: counts a period as right.
SAME_PERIOD = 0.03

# --- where (meter.py; suppress.py) ---------------------------------------------------------------

#: z of a window where the heat begins, and where it is 1. Our choice.
HEAT_FROM, HEAT_FULL = 3.0, 10.0

#: Heat that a picture must reach somewhere for the remover to look only where it is hot. Our choice.
CLEAR_HEAT = 0.5

# --- what the reference excuses (evidence.py, autocorrelation.py) -----------------------------------------------------

#: z of the reference's own tile and lines in a window above which the window is left out, and of its block steps and
#: its free period above which the picture's are not counted: they were there before. Our choice.
KNOWN_TILE, KNOWN_LINES, KNOWN_STEPS, KNOWN_PERIOD = 5.0, 5.0, 5.0, 6.0

#: How far a line of the reference's spectrum must stand above its surroundings (ratio of powers) not to count in the
#: picture's autocorrelation. Our choice.
KNOWN_POWER = 4.0

#: Share of windows that the reference may rule out before block steps and free periods do not count either. Our choice.
TOO_MUCH_KNOWN = 0.4

# --- the report picture (report_picture.py) -------------------------------------------------------

#: Grey levels (RMS) above which what repeats may be the motif (bricks, cloth), and the picture says so. Our choice.
MAYBE_REAL = 12.0

# --- removal (suppress.py) ------------------------------------------------------------------------

#: Standard deviations of chance by which an estimate must agree with pixels that it was not made from: of the luma
#: with a reference, after an alarm; of colours, of a picture alone, and without an alarm. Our choice.
LEAST_AFTER_ALARM, LEAST_CONFIDENCE = 2.5, 4.0

#: How much the score must fall for a removal to be kept: to ten times as common among clean pictures. Our choice.
SMALLEST_FALL = 1.0

#: Grey levels at which the mask of what was changed is 1. Our choice.
MASK_FULL = 1.0
