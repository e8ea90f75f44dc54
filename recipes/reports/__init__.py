"""During and after a run: what it came to and what it cost, read back from its folder. No torch.

runs.py        a run's folder and its metrics; run_record.py: all of its files read back
summary.py     what a run came to, written when it ends
bill.py        what was paid, start by start
scores.py      a score with its interval, in words
page.py        the HTML report's figures, page.html its template; charts.py: its pictures
against_plan.py  what the run took against what its plan said
"""
