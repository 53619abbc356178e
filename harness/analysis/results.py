"""All result tables of a folder of runs."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from harness.analysis.ablation import AblationTables, ablation_tables
from harness.analysis.data import DataTables, data_tables
from harness.analysis.hpo import SearchTables, search_tables
from harness.analysis.ladder import ladder_table
from harness.analysis.original import OriginalTables, original_tables
from harness.analysis.precision import PrecisionTables, precision_tables
from harness.analysis.projection import projection_table
from harness.analysis.scaling import scaling_table
from harness.analysis.screening import ScreeningTables, screening_tables
from harness.analysis.training import TrainingTables, training_tables
from harness.analysis.transfer import TransferTables, transfer_tables
from harness.collect.runs import Record, merits_table, samples_table


@dataclass(frozen=True)
class Results:
    """The records, and what each experiment makes of them."""

    records: list[Record]
    samples: pd.DataFrame
    merits: pd.DataFrame
    ladder: pd.DataFrame
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

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name -> table, as they are written."""
        found = {name: getattr(self, name) for name in ("samples", "merits", "ladder", "scaling", "projection")}
        found |= {name: table for name, table in vars(self.data).items() if isinstance(table, pd.DataFrame)}
        named = {
            "training": self.training,
            "ablation": self.ablation,
            "hpo": self.searches,
            "precision": self.precision,
            "transfer": self.transfer,
            "screening": self.screening,
            "original": self.original,
        }
        for prefix, own in named.items():
            found |= {f"{prefix}_{name}": table for name, table in vars(own).items()}
        return found


def results(records: list[Record]) -> Results:
    """Every table, from records alone."""
    training = training_tables(records)
    return Results(
        records,
        samples_table(records),
        merits_table(records),
        ladder_table(records),
        scaling_table(records),
        projection_table(records),
        data_tables(records),
        training,
        ablation_tables(training.held_out),
        search_tables(records),
        precision_tables(records),
        transfer_tables(records),
        screening_tables(records),
        original_tables(records),
    )
