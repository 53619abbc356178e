"""How each kind of claim is judged: one function a kind, from tables to a verdict.

Nothing is reproduced by stand-in data, by emulated nodes or by a projection without that word as the basis; what a
laptop cannot show is out of reach here, with what it did show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from harness.document.paper import Claim, JudgeName
from harness.experiments.tables import Results
from harness.protocol.text import count
from harness.report import downstream_judges
from harness.report.scorecard import Basis, Found, Score, Verdict, scored
from harness.results.containment import MISFITS, describe_misfit

CONFIDENCE = 0.95
LAST_STAGE = "torch_compile"
PAPER_MACHINES = ("frontier", "aurora", "perlmutter")
Judge = Callable[[Claim, Results], Found]


def ladder(claim: Claim, results: Results) -> Found:
    """The whole speed-up of the widest model on the random workload, in the claim's precision."""
    table = results.ladder
    rows = table[
        (table["precision"] == claim.precision) & (table["workload"] == "random") & (table["stage"] == LAST_STAGE)
    ]
    if (rows["verdict"] == "WRONG").any():
        return Found("wrong", "the last stage does not give the baseline's numbers", basis="measured")
    usable = rows[rows["speedup"].notna() & (rows["case_state"] == "done") & (rows["coverage"] >= CONFIDENCE)]
    if usable.empty:
        seen = "; ".join(rows["verdict"].unique())
        why = f"no complete case of six rounds ({seen})" if len(rows) else f"no {claim.precision} ladder has been run"
        return Found("not run", why)
    # The widest model is nearest to the paper's.
    best = usable.iloc[int(usable["model"].map(_width).argmax())]
    value, low, high = (float(best[k]) for k in ("speedup", "speedup_low", "speedup_high"))
    verdict: Verdict = "reproduced" if value >= claim.low else "deviates"
    if value < claim.low <= high:
        verdict = "inconclusive"
    where = f"{best['model']}, {best['workload']} workload, {best['device']}, {count(best['threads'], 'thread')}"
    reason = (
        f"{100 * (value / claim.low - 1):+.0f}% against {claim.low:g}x, the paper's smallest; measured on {where};"
        " the paper's figure is for one GPU"
    )
    return Found(verdict, reason, (value, low, high), _basis(best["on_cpu"]), [best["folder"]])


def _width(model: str) -> int:
    digits = "".join(ch for ch in model if ch.isdigit())
    return int(digits) if digits else -1


def _joint(results: Results) -> pd.Series | None:
    """The multi-task run with most heads that were judged on held-out structures."""
    runs = results.training.runs
    joint = runs[runs["task"] == "multi-task"]
    return None if joint.empty else joint.iloc[int(joint["judged_heads"].astype(int).argmax())]


def heads(claim: Claim, results: Results) -> Found:
    """Heads trained jointly and judged on held-out structures."""
    return _of_joint(claim, results, "judged_heads", "heads trained jointly and judged on held-out structures")


def elements(claim: Claim, results: Results) -> Found:
    """Elements in what a multi-task run was trained on."""
    return _of_joint(claim, results, "elements", "elements in the training structures")


def _of_joint(claim: Claim, results: Results, column: str, what: str) -> Found:
    best = _joint(results)
    if best is None:
        return Found("not run", "no multi-task training has been run")
    value, stand_ins = float(best[column]), int(best["stand_ins"])
    verdict: Verdict = "reproduced" if value >= claim.low else "inconclusive"
    reason = f"{value:.0f} {what} of {count(best['sets'], 'dataset')}"
    if stand_ins:
        verdict = "inconclusive"
        verb = "is a stand-in" if stand_ins == 1 else "are stand-ins"
        reason += f"; {stand_ins} of the {best['sets']} {verb} for the paper's"
    return Found(verdict, reason, (value, None, None), _basis(stand_ins > 0), [best["folder"]])


def structures(claim: Claim, results: Results) -> Found:
    """Structures that a multi-task run was trained on."""
    best = _joint(results)
    if best is None:
        return Found("not run", "no multi-task training has been run")
    value, stand_ins = float(best["structures"]), int(best["stand_ins"])
    if not stand_ins:
        verdict: Verdict = "reproduced" if value >= claim.low else "deviates"
        return Found(verdict, f"{value:,.0f} structures", (value, None, None), "measured", [best["folder"]])
    reason = (
        f"{value:,.0f} structures in the training splits of the heads, which may share a set; 1 for every"
        f" {claim.low / value:,.0f} of the paper's; the originals are read where a user has them (setting data)"
    )
    return Found("out of reach here", reason, (value, None, None), "stand-in", [best["folder"]])


def campaigns(claim: Claim, results: Results) -> Found:
    """Searches of one campaign that came to their end, each of a backbone of its own."""
    searches = results.searches.searches
    if searches.empty:
        return Found("not run", "no search has been run")
    ended = searches[(searches["state"] == "done") & (searches["search"] != "mixed")]
    if ended.empty:
        return Found("not run", "no search has come to its end")
    counts = ended.groupby("campaign")["search"].nunique()
    own = ended[ended["campaign"] == counts.idxmax()]
    value, system = float(counts.max()), str(own["system"].iloc[0])
    trials = int(own["trials"].sum())
    there = system == "frontier" and not own["stand_ins"].any()
    verdict: Verdict = ("reproduced" if value >= claim.low else "deviates") if there else "out of reach here"
    reason = f"{count(value, 'search', 'searches')}, {count(trials, 'trial')}, on {system}"
    if not there:
        reason += ": the machinery, shrunk; the paper's are 200 trials of 256 nodes of Frontier each"
    return Found(verdict, reason, (value, None, None), _basis(not there), own["folder"].tolist())


def nodes(claim: Claim, results: Results) -> Found:
    """Nodes of the largest training run."""
    own = [r for r in results.records if r.case.get("program") == "train" and r.state == "done" and "ranks" in r.facts]
    if not own:
        return Found("not run", "no training has been run")
    largest = max(own, key=lambda r: int(r.case.get("nodes", 1)))
    value = float(largest.case.get("nodes", 1))
    hosts = len({rank["host"] for rank in largest.facts["ranks"]})
    emulated = hosts < value
    reached = value >= claim.low and not emulated
    ranks = len(largest.facts["ranks"])
    reason = f"{count(value, 'node')}, {count(ranks, 'rank')}, on {largest.case.get('system')}"
    reason += f", emulated on {hosts}" if emulated else ""
    return Found(
        "reproduced" if reached else "out of reach here",
        reason,
        (value, None, None),
        "emulated" if emulated else "measured",
        [str(largest.folder)],
    )


def lead(_claim: Claim, results: Results) -> Found:
    """Where PaiNN comes among the backbones, by the best objective of a campaign's searches."""
    best = results.searches.best
    counts = best.groupby("campaign")["backbone"].nunique()
    if counts.empty or counts.max() < 2:
        return Found("not run", "no campaign has searched more than one backbone")
    own = best[best["campaign"] == counts.idxmax()].sort_values("objective", ascending=False, kind="stable")
    order = list(dict.fromkeys(own["backbone"]))
    if "painn" not in order:
        return Found("not run", "PaiNN is not among the backbones searched")
    stand_ins = bool(results.searches.searches["stand_ins"].any())
    value = float(order.index("painn") + 1)
    verdict: Verdict = "reproduced" if value == 1 else "deviates"
    return Found(
        "inconclusive" if stand_ins else verdict,
        f"best first: {', '.join(order)}" + ("; a few short trials each, on stand-ins" if stand_ins else ""),
        (value, None, None),
        _basis(stand_ins),
        own["folder"].tolist(),
    )


def machines(claim: Claim, results: Results) -> Found:
    """Those of the paper's three machines on which scaling was run."""
    table = results.scaling
    if table.empty:
        return Found("not run", "no scaling has been run")
    there = table[table["system"].isin(PAPER_MACHINES)]
    value = float(there["system"].nunique())
    if value >= claim.low:
        return Found("reproduced", "scaling ran on all", (value, None, None), "measured", there["folder"].tolist())
    elsewhere = ", ".join(sorted(set(table["system"]) - set(PAPER_MACHINES)))
    reason = f"scaling ran on {elsewhere or 'none else'}; on the paper's it takes an allocation there"
    return Found("out of reach here", reason, (value, None, None), "measured", table["folder"].tolist())


def precisions(claim: Claim, results: Results) -> Found:
    """Precisions whose throughput and accuracy, in training and inference, were measured side by side."""
    costs, inference, training = (getattr(results.precision, k) for k in ("costs", "inference", "training"))
    counts = {
        case: len(set(own["precision"]) & set(inference[inference["case"] == case]["precision"])
                  & set(training[training["case"] == case]["precision"]))
        for case, own in costs.groupby("case")
    }  # fmt: skip
    if not counts:
        return Found("not run", "no precision suite has been run")
    value = float(max(counts.values()))
    full = costs[costs["case"].isin([c for c, n in counts.items() if n == value])]
    verdict: Verdict = "reproduced" if value >= claim.low else "deviates"
    where = (
        f"{count(full['backbone'].nunique(), 'backbone')} on {full['device'].iloc[0]}, on shipped sets,"
        " most of them stand-ins"
    )
    return Found(verdict, where, (value, None, None), "stand-in", sorted(set(full["folder"])))


def score(claims: Sequence[Claim], results: Results, root: Path) -> list[Score]:
    """Judge every claim by the tables of the runs below root."""
    return [judged(claim, results, root) for claim in claims]


def judged(claim: Claim, results: Results, root: Path) -> Score:
    """The verdict on one claim; not run, with the reason, where the tables do not allow one."""
    try:
        return scored(claim, JUDGES[claim.judge](claim, results), root)
    except MISFITS as error:
        return scored(claim, Found("not run", f"cannot be judged: {describe_misfit(error)}"), root)


def _basis(stand_in: bool) -> Basis:
    return "stand-in" if stand_in else "measured"


JUDGES: dict[JudgeName, Judge] = {
    "ladder": ladder,
    "heads": heads,
    "elements": elements,
    "structures": structures,
    "campaigns": campaigns,
    "nodes": nodes,
    "lead": lead,
    "machines": machines,
    "precisions": precisions,
    "tasks": downstream_judges.tasks,
    "screened": downstream_judges.screened,
    "screening_time": downstream_judges.screening_time,
    "screening_rate": downstream_judges.screening_rate,
}
# Judge -> the program whose cases a claim is judged by.
PROGRAM_OF: dict[JudgeName, str] = {
    "ladder": "ladder", "heads": "train", "elements": "train", "structures": "train", "campaigns": "hpo",
    "nodes": "train", "lead": "hpo", "machines": "data_parallel", "precisions": "precision", "tasks": "transfer",
    "screened": "screening", "screening_time": "screening", "screening_rate": "screening",
}  # fmt: skip
