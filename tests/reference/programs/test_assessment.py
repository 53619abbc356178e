"""The assessment of a screening: its sample, its spreads, and the candidates that it leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.experiments.screening.metrics import build_tables
from harness.protocol.events import CaseLog, read_last_events
from harness.protocol.programs.assessment import Assessment
from harness.reference.data.batch import build_batch
from harness.reference.inference.prediction import batched_heads
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.assessment import (
    NOT_FINITE,
    describe_labels,
    sample_candidates,
    select_covered,
)
from harness.reference.programs.screening.overlap import MAX_POINTS, log_overlap, log_projection
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.spot_checks import SpotLabels
from harness.reference.programs.screening.uncertainty import log_uncertainty
from harness.results.runs import RunRecord
from tests.reference.conftest import SMALL, make_crystal, make_model, make_molecule


def make_known_model(config: ModelConfig = SMALL, seed: int = 0) -> FoundationModel:
    model = make_model(config, seed)
    model.mark_all_elements_known()
    return model


@pytest.fixture
def log(tmp_path: Path) -> CaseLog:
    return CaseLog(tmp_path / "events.jsonl", "screening")


@pytest.mark.parametrize("n_selected", [None, 3])
def test_sample_contains_no_candidate_twice_and_each_equally_often(n_selected: int | None) -> None:
    parts = IndexPartition(total=25, size=8, n_selected=n_selected)
    everything = [k for number in parts.selected for k in range(*parts.bounds(number))]
    assert sample_candidates(parts, 100, np.random.default_rng(0)) == everything
    samples = [sample_candidates(parts, 5, np.random.default_rng(seed)) for seed in range(1000)]
    assert all(len(set(sample)) == 5 for sample in samples)
    counts = np.bincount(np.concatenate(samples), minlength=25)[everything]
    assert counts.min() > 0.7 * counts.mean()
    assert counts.max() < 1.3 * counts.mean()


def test_figure_of_embeddings_has_a_limited_number_of_points(log: CaseLog) -> None:
    embeddings = np.random.default_rng(0).normal(size=(2 * MAX_POINTS - 1, 3))
    log_projection(embeddings, {"candidates": embeddings[:MAX_POINTS]}, log)
    assert [len(e["x"]) for e in read_last_events(log.path)] == [MAX_POINTS, MAX_POINTS]


def test_training_sets_with_an_outlier_overlap_with_themselves(log: CaseLog) -> None:
    embeddings = np.random.default_rng(0).normal(size=(1000, 3))
    embeddings[0] = 1e4
    log_overlap(embeddings, {"same": embeddings}, [], [], log)
    overlap = read_last_events(log.path)[0]
    assert overlap["mean"] == 0
    assert overlap["outside_range_fraction"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("step", "components"), [(0.1, 1), (0.0, 0)])
def test_training_sets_on_a_line_or_a_point_have_a_figure(log: CaseLog, step: float, components: int) -> None:
    embeddings = 0.1 + step * np.arange(3.0)[:, None] * np.ones(4)
    log_overlap(embeddings, {"same": embeddings}, [], [], log)
    log_projection(embeddings, {}, log)
    events = read_last_events(log.path)
    assert [len(e["wasserstein"]) for e in events if e["event"] == "overlap"] == [components] * components
    (points,) = (e for e in events if e["event"] == "embedding")
    assert len(set(points["x"])) == 1 + 2 * components
    assert points["y"] == [0, 0, 0]


def test_candidates_without_a_finite_embedding_are_counted(log: CaseLog) -> None:
    assert select_covered(make_known_model(), [make_crystal()], 2, log).tolist() == [0]
    (event,) = read_last_events(log.path)
    assert event["candidates"] == 3
    assert event["reasons"][NOT_FINITE] == 2


def make_ensemble(monkeypatch: pytest.MonkeyPatch) -> list[FoundationModel]:
    """Return models with other weights, cutoffs, backbones and reference energies, and let checkpoints load them."""
    configs = {
        "painn": SMALL,
        "cutoff": SMALL.replace(cutoff=3.0),
        "dimenet": ModelConfig(backbone="dimenet", hidden_dim=16),
    }
    models = {}
    for seed, (name, config) in enumerate(configs.items()):
        models[name] = make_known_model(config, seed)
    monkeypatch.setattr(checkpoints, "load_named", lambda name: (models[name], {}))
    return list(models.values())


def test_spread_of_an_ensemble_is_that_of_the_energies_of_its_models(
    monkeypatch: pytest.MonkeyPatch, log: CaseLog
) -> None:
    models, structure = make_ensemble(monkeypatch), make_molecule(6)
    energies = []
    for model in models:
        graph = model.config.neighbour_spec.build_list(structure)
        batch = build_batch([graph], with_triplets=model.config.needs_triplets)
        energies.append(batched_heads(model, batch, model.gate_weights(batch.composition)).energy[0].item() / 6)
    config = Assessment(ensemble=("cutoff", "dimenet"))
    models[1].known_elements[:, 92] = False
    unknown = replace(structure, numbers=np.full(6, 92))
    log_uncertainty(config, models[0], [structure, unknown], np.array([True, True]), log)
    (event,) = read_last_events(log.path)
    assert event["ensemble_ev_per_atom"] == pytest.approx(np.std(energies), rel=1e-6)
    assert event["with_spread"] == {"heads": 2, "dropout": 2, "ensemble": 1}


def test_spread_of_one_value_is_unknown(log: CaseLog) -> None:
    config = Assessment(dropout_samples=1)
    model = make_known_model()
    log_uncertainty(config, model, [make_molecule(6)], np.array([False]), log)
    model.known_elements[1:] = False
    log_uncertainty(config, model, [make_molecule(6)], np.array([False]), log)
    two_heads, one_head = read_last_events(log.path)
    assert two_heads["heads_ev_per_atom"] > 0
    assert one_head["heads_ev_per_atom"] is None
    assert not {"dropout_ev_per_atom", "ensemble_ev_per_atom"} & {k for k, v in two_heads.items() if v is not None}


def test_missing_labels_and_relaxations_are_in_the_table(log: CaseLog) -> None:
    config = Assessment(n_labels=3, label_time_limit_s=5.0)
    labels = SpotLabels("head", "level", index=[4])
    labels.failed["no label (RuntimeError)"] += 2
    assert describe_labels(config, labels, 3) == "1 of 3 labels: none of 3 candidates is left"
    assert describe_labels(config, labels, 9) == "1 of 3 labels: the time limit, 5 s, has passed"
    events: dict[str, list[dict[str, Any]]] = {
        "label": [{"flagged": False, "energy_error_ev_per_atom": 0.1, "force_error_ev_per_angstrom": 0.1, "head": "h",
                   "level_of_theory": "l"}],
        "unlabelled": [{"reason": "1 of 3 labels", "failed": {"no label (RuntimeError)": 2}}],
        "unrelaxed": [{"candidates": 4, "reasons": {"outside": 1}}],
    }  # fmt: skip
    record = RunRecord("folder", {"name": "case", "program": "screening"}, "done", events_by_kind=events)
    rows = build_tables([record])["screening_assessment"].to_dict("records")
    assert [(r["quantity"], r["kind"], r["value"], r["n"]) for r in rows] == [
        ("labels", "1 of 3 labels", 1, 3), ("no label", "no label (RuntimeError)", 2, 3),
        ("best candidates not relaxed", "outside", 1, 4),
    ]  # fmt: skip
