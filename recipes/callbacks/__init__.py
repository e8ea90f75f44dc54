"""Composer callbacks of this project.

cost.py         the meter: dollars, speed, MFU, what is left; readings.py: what it reads off Composer, energy.py: watts
budget.py       the guard: when a budget or a deadline has come
divergence.py   the guard against a loss that is not finite
stopping.py     the stopper: ends a run at a limit or at SIGTERM, on all ranks at the same step; stop.py: why it ended
log_lines.py    lines for a log; metrics_file.py: every metric as JSON
recompiles.py   counts what torch.compile compiles
"""
