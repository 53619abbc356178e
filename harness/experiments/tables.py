"""All result tables of a folder of runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from harness.experiments.cost import metrics as cost
from harness.experiments.cost.metrics import CostTables, cost_tables
from harness.experiments.data.metrics import DataTables, data_tables
from harness.experiments.hpo.metrics import SearchTables, search_tables
from harness.experiments.hydragnn.metrics import OriginalTables, original_tables
from harness.experiments.ladder.metrics import ladder_table
from harness.experiments.metrics import metrics_of
from harness.experiments.precision.metrics import PrecisionTables, precision_tables
from harness.experiments.scaling.metrics import scaling_table
from harness.experiments.scaling.projection import projection_table
from harness.experiments.screening.metrics import ScreeningTables, screening_tables
from harness.experiments.training.metrics import TrainingTables, training_tables
from harness.experiments.training.multitask import AblationTables, ablation_tables
from harness.experiments.training_steps.metrics import training_steps_table
from harness.experiments.transfer.metrics import TransferTables, transfer_tables
from harness.results.containment import MISFITS, set_misfits_aside
from harness.results.runs import Record, readable
from harness.results.tables import merits_table, samples_table
from harness.telemetry.collect import gather


@dataclass(frozen=True)
class Results:
    """The records, and what each experiment makes of them."""

    records: list[Record]
    samples: pd.DataFrame
    merits: pd.DataFrame
    ladder: pd.DataFrame
    training_steps: pd.DataFrame
    scaling: pd.DataFrame
    projection: pd.DataFrame
    data: DataTables
    training: TrainingTables
    ablation: AblationTables
    searches: SearchTables
    precision: PrecisionTables
    transfer: TransferTables
    screening: ScreeningTables
    original: OriginalTables
    cost: CostTables

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name -> table, as they are written."""
        alone = ("samples", "merits", "ladder", "training_steps", "scaling", "projection")
        found = {name: getattr(self, name) for name in alone}
        found |= {name: table for name, table in vars(self.data).items() if isinstance(table, pd.DataFrame)}
        named = {
            "training": self.training,
            "ablation": self.ablation,
            "hpo": self.searches,
            "precision": self.precision,
            "transfer": self.transfer,
            "screening": self.screening,
            "original": self.original,
            "cost": self.cost,
        }
        for prefix, own in named.items():
            found |= {f"{prefix}_{name}": table for name, table in vars(own).items()}
        return found


def results(records: list[Record]) -> Results:
    """Every table, of the cases that can be read; those that cannot be are among the records all the same."""
    try:
        return replace(analyse(readable(records)), records=records)
    except MISFITS:
        sound = set_misfits_aside(records, analyse)
        return replace(analyse(readable(sound)), records=sound)


def analyse(records: list[Record]) -> Results:
    """Every table, and of each finished case the numbers that can be compared."""
    for record in records:
        if record.state == "done":
            metrics_of(record)
    return _results(records)


def _results(records: list[Record]) -> Results:
    """Every table, from records and the telemetry beside them; what has throughput has its cost beside it."""
    costs = cost_tables(records, gather(records))
    training = training_tables(records)
    searches, precision = search_tables(records), precision_tables(records)
    transfer, screening = transfer_tables(records), screening_tables(records)
    return Results(
        records,
        samples_table(records),
        merits_table(records),
        _of_pieces(ladder_table(records), costs, "stage", {"folder": "folder", "stage": "name"}),
        _of_pieces(training_steps_table(records), costs, "stage", {"folder": "folder", "stage": "name"}),
        _of_cases(scaling_table(records), costs),
        projection_table(records),
        data_tables(records),
        replace(training, runs=_of_cases(training.runs, costs)),
        ablation_tables(training.held_out),
        replace(
            searches,
            searches=_of_cases(searches.searches, costs),
            trials=_of_pieces(
                searches.trials, costs, "trial", {"campaign": "campaign", "case": "case", "trial": "name"}
            ),
        ),
        replace(precision, costs=_precision_costs(precision.costs, costs)),
        replace(transfer, tasks=_of_cases(transfer.tasks, costs)),
        replace(screening, runs=_of_cases(screening.runs, costs)),
        original_tables(records),
        costs,
    )


def _of_cases(table: pd.DataFrame, costs: CostTables) -> pd.DataFrame:
    return cost.beside(table, costs.cases, {"folder": "folder"})


def _of_pieces(table: pd.DataFrame, costs: CostTables, what: str, keys: dict[str, str]) -> pd.DataFrame:
    return cost.beside(table, costs.pieces[costs.pieces["what"] == what], keys)


def _precision_costs(table: pd.DataFrame, costs: CostTables) -> pd.DataFrame:
    named = table.assign(name=table["task"].astype(str) + " " + table["precision"].astype(str))
    return _of_pieces(named, costs, "precision", {"folder": "folder", "name": "name"}).drop(columns="name")
