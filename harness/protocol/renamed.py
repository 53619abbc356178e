"""Tables of old names and their new names: of events, facts, fields, values, parameters, keys and functions.

`harness.protocol.upgrade` reads these tables. Logs and cases of older versions are converted to the new names when they
are read. In a suite, a system, a file of claims or a user's experiment, an old name is an error with the new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Names = Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """The renamed parts of an event or a fact.

    Attributes:
        programs: the programs that log the event or fact, separated by spaces; empty: all programs.
        old: the old tag of the event, or `fact NAME` with the old name of the fact.
        new: the new tag or name; empty: it has not changed.
        fields: the new name of each renamed field, at any depth, by old name.
        values: the new value of each renamed value, by old value, for each field that holds a string or a list of
            strings, by the new name of the field.
    """

    programs: str
    old: str
    new: str = ""
    fields: Names = field(default_factory=dict)
    values: Mapping[str, Names] = field(default_factory=dict)


@dataclass(frozen=True)
class Parameters:
    """The renamed parameters and axes of a program, at any depth, and their renamed values.

    Attributes:
        names: the new name of each renamed parameter, by old name.
        values: the new value of each renamed value, by old value, for each parameter, by its new name.
    """

    names: Names
    values: Mapping[str, Names] = field(default_factory=dict)


ALL_PROGRAMS = ""
_ORIGIN = {"role": "data_origin", "level": "level_of_theory"}
_ERRORS = {**_ORIGIN, "set": "dataset", "unseen_elements": "structures_with_unseen_elements"}
_RUNTIME = {
    "requested": "precision",
    "why_eager": "eager_reason",
    "messages": "message_backend",
    "why_plain": "unfused_reason",
}
_UNFUSED = {"plain": "unfused"}
_TIMES = {"seconds": "duration_s", "seconds_mean": "duration_mean_s", "busy": "busy_s"}
_TRAIN = {
    "sets": "datasets", "held_out": "test_fraction", "factor": "plateau_factor", "patience": "plateau_patience",
    "stop_after": "early_stopping_patience", "read": "read_mode", "width": "replica_ranks", "ahead": "prefetch_batches",
    "limit": "max_structures_per_dataset", "validation_limit": "max_validation_structures", "units": "loss_units",
    "epoch_length": "samples_per_epoch", "temperature": "sampling_temperature", "messages": "message_backend",
    "continues": "resume_previous", "stores": "store_folder", "minutes": "time_limit_minutes",
    "checkpoint_s": "checkpoint_interval_s", "link": "chain_index",
}  # fmt: skip
_TRAIN_VALUES = {"loss_units": {"plain": "physical", "head": "per_head"}, "message_backend": _UNFUSED}
_HPO = {
    "own_space": "search_specific_space", "evaluations": "max_trials", "at_once": "max_concurrent_trials",
    "least_epochs": "min_epochs", "trial_minutes": "trial_timeout_minutes",
}  # fmt: skip
_SCREENING = {
    "keep": "retention", "what": "mode", "by": "column", "highest": "descending", "low": "min", "high": "max",
    "most_distance": "max_distance", "known_limit": "reference_structures_per_dataset", "ahead": "prefetch_batches",
    "trust": "assessment", "judges": "assess_only", "messages": "message_backend", "candidates": "max_candidates",
    "part": "part_size", "edges": "edges_per_batch", "commit_s": "write_interval_s", "labelled": "n_labels",
    "label_seconds": "label_time_limit_s", "draws": "dropout_samples", "relaxed": "n_relaxations",
}  # fmt: skip
_SCORES = {
    "beyond_ev_per_atom": "residual_energy_ev_per_atom", "force_max_ev_per_a": "force_max_ev_per_angstrom",
}  # fmt: skip
_DEVIATIONS = {
    f"{old}_ev_per_{unit}": f"{new}_ev_per_{new_unit}"
    for old, new, unit, new_unit in (
        ("energy_off_mean", "energy_deviation_mean", "atom", "atom"),
        ("energy_off_max", "energy_deviation_max", "atom", "atom"),
        ("force_off_mean", "force_deviation_mean", "a", "angstrom"),
        ("force_off_max", "force_deviation_max", "a", "angstrom"),
    )
}
_WARMUP = {"discarded": "is_warmup"}
_DATASETS = {**_ORIGIN, "sets": "datasets", "set": "dataset", "drawn": "samples_per_epoch"}
_SPLITS = {"trainset": "train", "valset": "validation", "testset": "test"}

# Renamed suffixes of the names of fields in all events and facts.
SUFFIXES: Names = {"_ev_per_a": "_ev_per_angstrom", "_ev_per_a3": "_ev_per_angstrom3"}
RECORDS: tuple[Record, ...] = (
    Record(ALL_PROGRAMS, "progress", fields={"what": "activity"}),
    Record(ALL_PROGRAMS, "fact observed", "runtime", _RUNTIME, {"message_backend": _UNFUSED}),
    Record(ALL_PROGRAMS, "fact held_out", "test_errors", _ERRORS),
    # training
    Record("train", "epoch", fields={**_TIMES, "graphs_per_s": "structures_per_s"}),
    Record("train", "head", "head_errors", _ERRORS),
    Record("train", "stopped", fields={"why": "reason"}),
    Record(
        "train precision data_parallel", "fact workload", "",
        {**_DATASETS, "temperature": "sampling_temperature", "units": "loss_units", "read": "read_mode"},
        {"loss_units": _TRAIN_VALUES["loss_units"]},
    ),
    Record("train", "fact gate", fields={"right_branch": "accuracy"}),
    Record("train", "fact graphs_compiled", "compiled_graphs"),
    Record("train", "fact ended_before", "completed_in"),
    # scaling
    Record("data_parallel", "epoch", fields={**_WARMUP, "graphs": "structures", "train_s_mean": "train_mean_s",
        "wait_s_mean": "wait_mean_s"}),
    Record(
        "data_parallel", "sample",
        fields={**_TIMES, **_WARMUP, "graphs": "structures", "wait_mean": "wait_mean_s", "atoms_most": "atoms_max",
        "edges_most": "edges_max"},
    ),
    Record("data_parallel", "own_step", "local_step", {**_TIMES, **_WARMUP, "graphs": "structures",
        "exchanged": "gradients_synchronized"}),
    Record("data_parallel", "compute_only", fields=_TIMES),
    Record("data_parallel", "exchange", "all_reduce", _TIMES),
    Record("data_parallel", "region", fields=_TIMES, values={"name": {"gradient": "force_gradient"}}),
    Record("data_parallel", "fact gradient_check", fields={"graphs": "structures"}),
    Record("data_parallel", "fact throughput_graphs_per_s", "throughput_structures_per_s"),
    # precision
    Record("precision", "sample", fields={**_TIMES, **_WARMUP, "task": "phase"}),
    Record("precision", "prediction", fields=_DEVIATIONS),
    Record("precision", "trained", "trained_errors", _ERRORS),
    Record("precision", "fact memory", fields={"task": "phase"}),
    Record("precision", "fact predicting", "weights"),
    # ladder and training steps
    Record("ladder training_steps", "warm_up", fields={"first_s": "first_call_s", "bytes": "memory_traffic_bytes",
        "of": "operation"}),
    Record("ladder training_steps", "sample", fields={"neighbours_s": "neighbour_lists_s",
        "collate_s": "collation_s", "ended_s": "end_time_s"}),
    Record("ladder", "padding", fields={"empty_atoms": "padding_atom_fraction",
        "empty_edges": "padding_edge_fraction"}),
    Record("ladder", "profile", fields={"share": "fraction"}),
    Record("ladder", "fact model", fields={**_ERRORS, "held_out": "test_errors",
        "open_heads_by_hand": "forced_active_heads"}),
    Record("ladder", "fact workload", fields={"elements_not_trained": "unseen_elements"}),
    Record("ladder", "fact gate", fields={"live_heads": "active_heads"}),
    Record("ladder", "fact ceilings", fields={"of": "operation"}),
    Record("ladder", "fact batch_size", "auto_batch_size", {"chosen": "batch_size"}),
    # searches
    Record(
        "hpo", "trial", "",
        {**_TRAIN, "began_s": "start_time_s", "ended_s": "end_time_s", "graphs_per_s": "structures_per_s"},
        {**_TRAIN_VALUES, "state": {"not finite": "diverged", "stopped": "pruned"}},
    ),
    Record("hpo", "fact warm_start", fields={"told": "received", "outside": "outside_space"}),
    Record("hpo", "fact search", "", {**_TRAIN, **_HPO}, _TRAIN_VALUES),
    Record("hpo", "fact ended_early", "early_stop_reason"),
    # data
    Record("data", "sample", fields={**_TIMES, "batch": "batch_size", "mode": "read_mode"}),
    Record("data", "fact dataset", fields={**_ORIGIN, "slug": "name", "energies": "energy_kind",
        "original_count": "published_structures", "part_of": "subset_of"}),
    Record("data", "fact conversion", fields={**_SPLITS, "read": "structures_read", "written": "structures_written",
        "stress_withheld": "stress_without_label", "without": "missing", "left_out": "excluded",
        "other_charges": "excluded_by_charge", "passed_over": "skipped_files", "read_s": "read_time_s",
        "repeats": "duplicate_structures"}),
    Record("data", "fact references", "reference_energies", {"undetermined": "undetermined_elements",
        "absent_count": "absent_elements"}),
    Record("data", "fact statistics", fields={"sizes": "atoms_per_structure", "periodic": "structures_by_periodicity",
        "multiplicities": "spin_multiplicities", "groups_registers": "sketch_registers", "sd": "std",
        "number": "count"}),
    Record("data", "fact reading", "", {"sets": "datasets", "mode": "read_mode", "width": "replica_ranks",
        "what": "description", "roles": "data_origins"}, {"split": _SPLITS}),
    Record("data", "fact out_of_reach", "unavailable_modes"),
    # transfer
    Record("transfer", "task", fields={**_ORIGIN, "left_out": "excluded",
        "unseen_elements": "structures_with_unseen_elements"}),
    Record("transfer", "baseline", fields={"why": "reason"}),
    Record("transfer", "fit", fields=_TIMES),
    Record("transfer", "fact budget", fields={"every": "validation_interval_steps",
        "patience": "early_stopping_patience"}),
    # screening
    Record("screening", "found", "earlier_parts", {"useless": "unusable_files"}),
    Record("screening", "rank", "rank_summary", {"make_s": "generation_s", "left_out": "excluded",
        "unranked": "outside_coverage", "memory_bytes": "memory_median_bytes", "why_eager": "eager_reason"}),
    Record("screening", "proof", "verification", {"before": "finished_earlier"}),
    Record("screening", "best", fields={**_SCORES, "place": "position"}),
    Record("screening", "fact screened", "scope", {"part": "part_size"}),
    Record("screening", "fact judged", "assessed_folder"),
    Record(
        "screening", "fact model", "",
        {"messages": "message_backend", "why_plain": "unfused_reason"}, {"message_backend": _UNFUSED,
        "columns": _SCORES},
    ),
    Record(
        "screening", "calibration", "",
        {"share": "flagged_fraction", "calibrated_on": "calibration_structures", "tested_on": "test_structures",
        "strange": "ood_structures"},
    ),
    Record("screening", "outside", "outside_coverage"),
    Record("screening", "unrelaxed", fields={"of": "candidates"}),
    Record("screening", "overlap", fields={"beyond": "outside_range_fraction"}),
    Record("screening", "elements", fields={"never_seen": "unseen_elements"}),
    Record("screening", "label", fields={"level": "level_of_theory", "off_ev_per_atom": "energy_error_ev_per_atom",
        "force_off_ev_per_a": "force_error_ev_per_angstrom"}),
    Record("screening", "unlabelled", fields={"why": "reason"}),
    Record(
        "screening", "relaxed", "relaxation",
        {"before_ev_per_atom": "initial_energy_ev_per_atom", "after_ev_per_atom": "final_energy_ev_per_atom",
         "volume_before": "initial_volume_angstrom3_per_atom", "volume_after": "final_volume_angstrom3_per_atom"},
    ),
    # runs of HydraGNN that the harness imports
    Record("hydragnn", "tasks", "task_errors"),
    Record("hydragnn", "timer", fields=_TIMES),
    Record("hydragnn", "region", fields=_TIMES),
    Record("hydragnn", "energy", fields={"joule": "energy_j"}),
)  # fmt: skip
PARAMETERS: dict[str, Parameters] = {
    "train": Parameters(_TRAIN, _TRAIN_VALUES),
    "hpo": Parameters({**_TRAIN, **_HPO}, _TRAIN_VALUES),
    "data_parallel": Parameters({
        **{k: _TRAIN[k] for k in ("sets", "read", "width", "ahead", "temperature", "stores")},
        "bandwidth_gb_s": "bandwidth_gb_per_s", "per_node": "ranks_per_node",
    }),
    "precision": Parameters({
        **{k: _TRAIN[k] for k in ("sets", "held_out", "limit", "temperature")}, "discard": "timing_warmup_steps",
    }),
    "ladder": Parameters({"structures": "structure_file", "open_heads": "active_heads",
        "products": "matmul_precision"}),
    "data": Parameters({"task": "action", "modes": "read_modes", "width": "replica_ranks", "source": "dataset_folder",
        "per_node": "ranks_per_node"}),
    "transfer": Parameters({
        "test_share": "test_fraction", "test_limit": "max_test_structures", "every": "validation_interval_steps",
        "patience": "early_stopping_patience", "files": "task_folder",
    }),
    "screening": Parameters({**_SCREENING, "load": "variant"}, {
        "message_backend": _UNFUSED, "column": _SCORES, "variant": {"few": "half", "all": "full",
        "judged": "assessment"},
    }),
}  # fmt: skip
SETTINGS: Names = {
    "data": "dataset_folder", "tasks": "task_folder", "stores": "store_folder", "spares": "spare_nodes",
    "omnistat": "omnistat_folder", "telemetry_s": "telemetry_interval_s",
}  # fmt: skip
# Keys of case.json, and of the sanity checks in it. The old bounds of a value, `above` and `below`, were exclusive.
CASE_KEYS: Names = {"point": "axis_values", "after": "depends_on", "minutes": "walltime_minutes"}
CHECK_KEYS: Names = {"at_least": "min_events", "at_most": "max_events", "above": "at_least", "below": "at_most"}
# Keys of suites, systems and claims, and values in all YAML files.
SUITE_KEYS: Names = {
    "scale": "overlays", "after": "depends_on", "needs": "required_cases", "across": "ignored_axes",
    "minutes": "walltime_minutes", "above": "at_least", "below": "at_most",
}  # fmt: skip
SYSTEM_KEYS: Names = {
    "scale": "overlay", "stage": "stage_in", "check": "health_check", "probe": "health_check_launcher",
    "identity": "affects_results",
}  # fmt: skip
CLAIM_KEYS: Names = {
    "how": "measurement", "needs": "conditions", "numbers": "measures", "missing": "missing_reason",
    "incomplete": "incomplete_reason",
}  # fmt: skip
YAML_VALUES: Names = {"share": "fraction"}
# Axes and variables of the shipped suites.
SUITE_NAMES: Names = {
    "per_node": "ranks_per_node", "each": "samples_per_dataset", "everything": "all_datasets", "all": "full_ranks",
    "few": "half_ranks", "link": "chain_index",
}  # fmt: skip
# Functions that a user's experiment defines.
FUNCTIONS: Names = {"sample_metrics": "list_metric_samples"}
