"""Conversion of datasets to stores, and reading of stores: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.parameters import SPLIT_SEED, Parameters, ReadMode, StoreBackend
from harness.protocol.records import (
    Bytes,
    Count,
    Counts,
    Duration,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Number,
    Part,
    PositiveCount,
    Rate,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique


class DataParameters(Parameters):
    """Conversion of one dataset to a store, or reading of all stores that earlier cases have written."""

    action: Literal["convert", "read"]
    """The action of the case."""
    dataset: str
    """The dataset to convert, by its name in the catalog."""
    dataset_folder: str = ""
    """A folder with one folder of official files per dataset; the shipped set replaces a missing dataset."""
    cutoff: PositiveFloat | None = None
    """Radius of the stored neighbour lists, angstrom; null: no neighbour lists are stored."""
    max_neighbours: PositiveInt | None = None
    """Maximum number of neighbours of an atom."""
    max_force: PositiveFloat = 1000.0
    """Maximum force, eV/angstrom; structures with a larger force are left out."""
    strict: bool = False
    """Whether an invalid structure ends the conversion instead of being left out."""
    workers: PositiveInt | None = None
    """Number of processes of the conversion; null: one per core."""
    read_modes: Annotated[tuple[ReadMode, ...], Field(min_length=1), AfterValidator(check_unique)] = get_args(ReadMode)
    """Modes of reading; a round measures each of them once."""
    replica_ranks: PositiveInt | None = None
    """Ranks that share one copy of the data, in the mode `distributed`; null: all."""
    store_backend: StoreBackend = "auto"
    """Library of the mode `distributed`; auto: DDStore where it is installed."""
    batch_size: PositiveInt = 256
    """Samples that a rank reads in one batch."""
    batches: PositiveInt = 20
    """Batches per mode and round."""
    rounds: PositiveInt = 5
    """Number of rounds of reading."""
    seed: NonNegativeInt = SPLIT_SEED
    """Seed of splits when converting, and of random samples when reading."""


class ReadSample(EventRecord, tag="sample"):
    """One batch of random samples per rank, which all ranks read at the same time."""

    duration_s: Duration
    """Time of the slowest rank."""
    batch_size: PositiveCount
    """Samples per rank."""
    bytes: Bytes
    """Bytes that a rank read, mean over ranks."""
    read_mode: str | None = None
    round: Count | None = None
    ranks: PositiveCount | None = None


class Dataset(Part):
    """The content of a store and its origin."""

    name: str
    head: str
    data_origin: str
    """Official files, or a sample of the dataset, or a stand-in for it."""
    level_of_theory: str | None = None
    energy_kind: str | None = None
    """What the energies are, and where their zero is."""
    source: str | None = None
    licence: str | None = None
    attribution: str | None = None
    published_structures: Count | None = None
    """Size of the whole dataset."""
    subset_of: str | None = None
    """The dataset that contains all of its structures."""
    store_bytes: Bytes | None = None


class MissingLabels(Part):
    """Numbers of structures with missing labels, of those left out because of them, and of remarks on structures."""

    structures: Count
    missing: Counts | None = None
    excluded: Counts | None = None
    remarks: list[tuple[str, str, Count]] | None = None


class ConversionCounts(Part):
    """Numbers of structures that a conversion read, left out and wrote, and its parameters."""

    structures_written: Count
    structures_read: Count | None = None
    excluded: Counts | None = None
    """Structures that were left out, by reason."""
    excluded_by_charge: Count | None = None
    examples: list[str] | None = None
    """Examples of structures that were left out."""
    parts: Count | None = None
    """Pieces of the dataset's files, each of which one worker reads."""
    workers: Count | None = None
    read_time_s: Seconds | None = None
    seconds: Seconds | None = None
    resumed: bool | None = None
    structures_per_s: Rate | None = None
    labels: list[str] | None = None
    duplicate_structures: Count | None = None
    """Structures with the geometry of another structure."""
    regrouped: Count | None = None
    """Structures that moved to another split."""
    stress_without_label: Count | None = None
    stress_dropped: Count | None = None
    missing_labels: MissingLabels | None = None
    skipped_files: Counts | None = None
    splits: Counts | None = None
    """Structures of train, validation and test."""
    cutoff: NonNegative | None = None
    max_neighbours: Count | None = None
    max_force: NonNegative | None = None
    split_seed: int | None = None
    strict: bool | None = None
    edges: bool | Count | None = None


class ReferenceEnergies(Part):
    """The linear model of composition that was fitted to the training split."""

    energy_ev: dict[str, Number | None] | None = None
    undetermined_elements: list[str] | None = None
    absent_elements: Count | None = None
    rank: Count | None = None
    """Rank of the least-squares fit: the number of independent energies that the data determine."""
    structures: Count | None = None
    mae_ev_per_atom: Error | None = None
    rmse_ev_per_atom: Error | None = None


class Spread(Part):
    """The distribution of a quantity: its moments, and a histogram whose bin edges have a constant ratio."""

    bins_per_octave: PositiveCount
    zero: Count
    negative: list[Any]
    positive: list[Any]
    mean: Number | None = None
    std: Number | None = None
    rms: Number | None = None
    min: Number | None = None
    max: Number | None = None
    quantiles: dict[str, Number] | None = None
    count: Count | None = None


class ElementCounts(Part):
    """Number of structures that contain an element, and number of atoms of the element."""

    structures: Count
    atoms: Count


class Statistics(Part):
    """Statistics of the structures in a store."""

    structures: Count
    atoms: Count
    groups_estimate: Count
    structures_by_periodicity: list[Count]
    """Structures that are periodic in none, one, two and three directions."""
    elements: dict[str, ElementCounts]
    charges: Counts
    neighbours_mean: NonNegative | None
    atoms_per_structure: Spread
    energy_ev_per_atom: Spread
    force_norm_ev_per_angstrom: Spread
    stress_ev_per_angstrom3: Spread
    sketch_registers: str | None = None
    """Registers of the sketch that estimates the number of groups (HyperLogLog), in base64."""
    spin_multiplicities: Counts | None = None
    edges: Count | None = None
    edge_atoms: Count | None = None


class CopyFloor(Part):
    """A lower bound of the time of reading a sample, and the operation that takes this time."""

    us_per_sample: NonNegative
    description: str


class Reading(Part):
    """One mode of reading, and the cost of opening the stores in this mode."""

    read_mode: str
    ranks: PositiveCount
    nodes: PositiveCount | None = None
    datasets: list[str] | None = None
    data_origins: list[str] | None = None
    split: str | None = None
    samples: Count | None = None
    open_s: Seconds | None = None
    rss_bytes: Number | None = None
    """Increase of the memory of one rank, including its part of shared memory; negative if memory was released."""
    bytes_per_sample_mean: NonNegative | None = None
    floor: CopyFloor | None = None
    """Lower bound of the time of reading."""
    replica_ranks: PositiveCount | None = None
    """Ranks that share one copy of the data, in the mode `distributed`."""
    backend: str | None = None


class DataFacts(Facts):
    """Facts of conversion and reading."""

    dataset: Dataset | None = None
    conversion: ConversionCounts | None = None
    reference_energies: ReferenceEnergies | None = None
    statistics: Statistics | None = None
    reading: list[Reading] | Reading | None = None
    unavailable_modes: list[str] | None = None
    """Modes for which there was not enough memory."""


EVENTS = (ReadSample,)
