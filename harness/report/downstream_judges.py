"""How the claims on transfer and screening are judged: from tables to a verdict."""

from __future__ import annotations

import pandas as pd

from harness.document.paper import Claim
from harness.experiments.screening.metrics import BILLION
from harness.experiments.tables import Results
from harness.protocol.text import count
from harness.report.scorecard import Found, Verdict


def tasks(claim: Claim, results: Results) -> Found:
    """Tasks on which fine-tuning was compared with training from scratch, and on how many it was better."""
    gains, about = results.transfer.gains, results.transfer.tasks
    full = gains[gains["mode"] == "full"]
    if full.empty:
        return Found("not run", "no task has been learned from")
    most = full.loc[full.groupby(["task", "subset"], sort=False)["labels"].idxmax()]
    better = most[most["high"] < 1]["task"].nunique()
    roles = about[about["task"].isin(most["task"])].drop_duplicates("task")["role"].fillna("")
    stand_ins = int(roles.str.startswith("stand-in").sum())
    value = float(most["task"].nunique())
    reason = f"{count(value, 'task')} learned from; fine-tuning beats training from scratch on {better} of them"
    if stand_ins:
        reason += f"; {stand_ins} {'is a stand-in' if stand_ins == 1 else 'are stand-ins'} for the official data"
    verdict: Verdict = "reproduced" if better >= claim.low else "deviates"
    if stand_ins or value < claim.low:
        verdict = "inconclusive"
    folders = about[about["task"].isin(most["task"])]["folder"].tolist()
    return Found(verdict, reason, (value, None, None), "stand-in" if stand_ins else "measured", folders)


def _best(results: Results, column: str) -> pd.Series | None:
    """The proven screening of the paper's workload, of any other where there is none, that is largest in a column."""
    runs = results.screening.runs
    runs = runs[runs["proven"].astype(bool) & (runs["state"] == "done")]
    own = runs[runs["workload"] == "random"]
    own = runs if own.empty else own
    return None if own.empty else own.iloc[int(own[column].to_numpy().argmax())]


def screened(claim: Claim, results: Results) -> Found:
    """Candidates of one screening, each evaluated once."""
    runs = results.screening.runs
    runs = runs[runs["proven"].astype(bool)]
    if runs.empty:
        return Found("not run", "no screening has come to its end")
    row = runs.iloc[int(runs["candidates"].to_numpy().argmax())]
    value = float(row["candidates"])
    there = row["system"] == "frontier"
    verdict: Verdict = "reproduced" if there and value >= claim.low else "out of reach here"
    reason = (
        f"{value:,.0f} of {row['total']:,.0f} candidates ({row['workload']}) on {row['system']}, proven by a checksum;"
        " all can be reached by index"
    )
    return Found(verdict, reason, (value, None, None), "measured", [row["folder"]])


def screening_time(claim: Claim, results: Results) -> Found:
    """Seconds for as many candidates as the paper screened, at the rate measured end to end."""
    row = _best(results, "end_to_end_per_s")
    if row is None:
        return Found("not run", "no screening has come to its end")
    value = BILLION / float(row["end_to_end_per_s"])
    if float(row["candidates"]) >= BILLION:
        verdict: Verdict = "reproduced" if float(row["seconds"]) <= claim.paper_value else "deviates"
        return Found(verdict, "end to end", (float(row["seconds"]), None, None), "measured", [row["folder"]])
    reason = (
        f"at {row['end_to_end_per_s']:,.0f} candidates/s end to end of {count(row['ranks'], 'rank')} here"
        f" ({row['workload']}, {row['atoms']:.0f} atoms on average); the paper's 50 s are of 75,264 ranks, device work"
        " alone"
    )
    return Found("projected", reason, (value, None, None), "projected", [row["folder"]])


def screening_rate(claim: Claim, results: Results) -> Found:
    """Structures a second of one rank on the paper's workload."""
    row = _best(results, "per_rank_per_s")
    if row is None:
        return Found("not run", "no screening has come to its end")
    value = float(row["device_per_s"]) / float(row["ranks"])
    same = row["workload"] == "random" and row["precision"] == "fp64"
    reason = (
        f"device alone, {row['workload']} workload of {row['atoms']:.0f} atoms on average (the paper's: 251),"
        f" {row['precision']}, {row['device']}; width and hardware are not the paper's"
    )
    verdict: Verdict = "inconclusive"
    if same and row["system"] == "frontier":
        verdict = "reproduced" if value >= claim.low else "deviates"
    return Found(verdict, reason, (value, None, None), "measured", [row["folder"]])
