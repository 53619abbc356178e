"""Fit and calibrate the risk of a checkpoint that was trained on the shipped sets, and print measures of it.

python -m harness.reference.inference.fit_risk [CHECKPOINT]

CHECKPOINT is the path of a checkpoint or the name of a shipped one (painn-64). The ensemble and the statistics come
from the training splits, the scale from the validation splits and the labels for the fit, the quantiles from the test
splits and the labels for the calibration, none of which the model was trained on. The labels for tests enter the
measures alone. The measured coverage inside the training sets is that of a cross-validation by composition.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import DatasetCollection, load_shipped_splits
from harness.reference.datasets.shipped_sets import SHIPPED_SETS
from harness.reference.datasets.splits import SEED, SPLITS
from harness.reference.errors import InputError
from harness.reference.inference.calibrate_risk import (
    FOLDS,
    HeadErrors,
    Observations,
    calibrate,
    measure_coverage_inside,
    measure_labels,
)
from harness.reference.inference.fit_statistics import HeadSample, fit_statistics
from harness.reference.inference.risk import (
    COVERAGE,
    FEATURES,
    Evaluation,
    TrainingStatistics,
    evaluate,
    find_risk_path,
    write_risk,
)
from harness.reference.inference.risk_labels import SPLITS as LABEL_SPLITS
from harness.reference.inference.risk_labels import LabelSplit, is_plausible, read_labels
from harness.reference.models import checkpoints
from harness.reference.models.coverage import compute_contact_ratios
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import SampleIndices

BATCH = 32
MAX_STRUCTURES = 500  # of each set in each split
INSIDE_SHARE = 0.95  # of the training structures count as inside
CONTACT_TOLERANCE = 1e-5  # relative; positions in single precision may be a little closer than in training


class RiskFitter:
    """The model and the labels from which a risk is fitted.

    Args:
        name: The path of a checkpoint, or the name of a shipped checkpoint.

    Raises:
        InputError: The checkpoint or the labels cannot be read, or the head with labels was not trained.
    """

    def __init__(self, name: str) -> None:
        model, notes = checkpoints.load_named(name)
        self.model: FoundationModel = model.double().eval().requires_grad_(False)
        training = notes.get("training")
        self.training = training if isinstance(training, dict) else {}
        self.labels = read_labels()
        self.labelled_head = HEADS.index(self.labels.head)
        if not bool(self.model.trained[self.labelled_head]):
            raise InputError(f"{name}: the head {self.labels.head}, which has labels, was not trained")

    def observe(self) -> Observations:
        """Evaluate the model on all structures.

        Raises:
            InputError: The labelled head has no validation or no test structures, or covers no label of a split.
        """
        labelled = {part: self.build_labels(part) for part in LABEL_SPLITS}
        if uncovered := [part for part, graphs in labelled.items() if not graphs]:
            raise InputError(
                f"{self.labels.head}: the head covers no label of the splits {', '.join(uncovered)}; train it on a set"
                " with more elements"
            )
        splits = {s.branch: self.load_splits(s.name) for s in SHIPPED_SETS if bool(self.model.trained[s.branch])}
        samples = {head: self.collect_sample(head, graphs[SPLITS[0]]) for head, graphs in splits.items()}
        statistics = fit_statistics(self.model, samples, SEED)
        limits = torch.ones(self.model.config.heads, dtype=torch.float64)
        for head, sample in samples.items():
            limits[head] = compute_inside_limit(statistics, head, np.concatenate(sample.structures))

        def describe(head: int, graphs: Sequence[NeighbourList]) -> HeadErrors:
            return self.compute_errors(statistics, limits, head, graphs)

        complete = {head: graphs for head, graphs in splits.items() if graphs[SPLITS[1]] and graphs[SPLITS[2]]}
        if self.labelled_head not in complete:
            raise InputError(
                f"{self.labels.head}: the head covers no validation or no test structures, from which the risk is"
                " calibrated"
            )
        validation, test = (
            [describe(head, graphs[split]) for head, graphs in complete.items()] for split in SPLITS[1:]
        )
        labels = {part: describe(self.labelled_head, graphs) for part, graphs in labelled.items()}
        return Observations(statistics, limits, validation, test, labels)

    def load_splits(self, name: str) -> dict[str, list[NeighbourList]]:
        """Return at most MAX_STRUCTURES evenly spaced structures of each split of a shipped set."""
        datasets = load_shipped_splits(
            name, test_fraction=self.training.get("test_fraction", 0.1), seed=self.training.get("split_seed", SEED)
        )
        graphs = {}
        for split, dataset in datasets.items():
            count = len(dataset.samples)
            rows = np.linspace(0, count - 1, min(count, MAX_STRUCTURES)).round().astype(np.int64)
            collection = DatasetCollection([dataset], self.model.config.neighbour_spec)
            loaded = collection.load_graphs(SampleIndices(np.zeros(len(rows), dtype=np.int64), rows))
            graphs[split] = [g for g in loaded if self._is_covered(dataset.head, g)]
        return graphs

    def build_labels(self, split: LabelSplit) -> list[NeighbourList]:
        """Return the labelled crystals of a split that the head covers and whose labels are plausible."""
        graphs = []
        for label in self.labels.select(split):
            structure = replace(label.structure, energy=label.energy_ev, head=self.labelled_head)
            reference = float(self.model.reference_energy[self.labelled_head][structure.numbers].sum())
            if is_plausible((label.energy_ev - reference) / len(structure)):
                graphs.append(self.model.config.neighbour_spec.build_list(structure))
        return [g for g in graphs if self._is_covered(self.labelled_head, g)]

    def _is_covered(self, head: int, graph: NeighbourList) -> bool:
        """Return whether a head knows all elements and has been trained on contacts as short as these."""
        shortest = compute_contact_ratios(graph).min(initial=np.inf)
        knows_all = bool(self.model.known_elements[head, graph.structure.numbers].all())
        return knows_all and bool(shortest >= (1 - CONTACT_TOLERANCE) * float(self.model.closest[head]))

    def evaluate(self, head: int, graphs: Sequence[NeighbourList]) -> Iterator[tuple[Batch, Evaluation, Array]]:
        """Yield batches of structures with their evaluations, and the labels minus the energies, [g] eV/atom."""
        weights = torch.nn.functional.one_hot(torch.tensor(head), self.model.config.heads).double()
        for first in range(0, len(graphs), BATCH):
            chunk = graphs[first : first + BATCH]
            batch = build_batch(chunk, with_triplets=self.model.config.needs_triplets)
            evaluation = evaluate(self.model, batch, weights.expand(len(chunk), -1))
            labels = torch.tensor([g.structure.energy for g in chunk], dtype=torch.float64)
            residual = (labels - batch.composition @ self.model.reference_energy[head]) / batch.n_atoms
            yield batch, evaluation, (residual - evaluation.residual_ev_per_atom[:, head]).numpy()

    def collect_sample(self, head: int, graphs: Sequence[NeighbourList]) -> HeadSample:
        """Return the model outputs for training structures of a head."""
        sample = HeadSample()
        for batch, evaluation, error in self.evaluate(head, graphs):
            sample.add(self.model, head, batch, evaluation, error)
        return sample

    def compute_errors(
        self, statistics: TrainingStatistics, limits: torch.Tensor, head: int, graphs: Sequence[NeighbourList]
    ) -> HeadErrors:
        """Return the features and the errors of structures whose labels belong to a head."""
        rows = [
            (statistics.compute_features(self.model, batch, evaluation)[:, head].numpy(), np.abs(error))
            for batch, evaluation, error in self.evaluate(head, graphs)
        ]
        features, error = (np.concatenate(column) for column in zip(*rows, strict=True))
        inside = features[:, FEATURES.index("distance of structure")] <= np.log(float(limits[head]))
        return HeadErrors(head, features, error, inside, np.array([assign_fold(g) for g in graphs]))


def compute_inside_limit(statistics: TrainingStatistics, head: int, structures: Array) -> float:
    """Return the distance that INSIDE_SHARE of the training structures [s, F] of a head do not exceed."""
    deviation = (structures - statistics.structure_means[head].numpy()) @ statistics.structure_whitening[head].numpy()
    return float(np.quantile(np.sqrt(np.square(deviation).mean(1)), INSIDE_SHARE))


def assign_fold(graph: NeighbourList) -> int:
    """Return the fold of the cross-validation to which a structure belongs, by its composition."""
    elements, counts = np.unique(graph.structure.numbers, return_counts=True)
    return hashlib.sha256(np.stack([elements, counts // np.gcd.reduce(counts)]).tobytes()).digest()[0] % FOLDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the risk of a checkpoint, write it, print measures, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="painn-64", help="path, or name of a shipped checkpoint")
    name = parser.parse_args(arguments).checkpoint
    try:
        fitter = RiskFitter(name)
        observations = fitter.observe()
        risk = calibrate(observations)
        path = find_risk_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        about: dict[str, object] = {
            "head": fitter.labels.head, "level_of_theory": fitter.labels.level_of_theory, "coverage": COVERAGE,
        }  # fmt: skip
        write_risk(risk, name, path, about)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part in observations.test:
        coverage = measure_coverage_inside(observations, part)
        print(f"{HEADS[part.head]:20} {part.inside.sum()} of {len(part.error)} inside, coverage {coverage:.3f}")
    used = sum(len(part.error) for part in observations.labels.values())
    print(f"{used} of {len(fitter.labels.labels)} labels are plausible, and inside the coverage of the model")
    print("coefficients:", {name: round(c, 3) for name, c in zip(FEATURES, risk.coefficients.tolist(), strict=True)})
    print("threshold (eV/atom):", round(float(risk.threshold_ev_per_atom), 3))
    for measure, value in measure_labels(risk, observations.labels["test"]).items():
        print(f"{measure}: {value:.4g}")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
