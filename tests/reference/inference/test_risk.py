"""The risk of predictions: its features, its calibration, the files it is stored in, and its use by the calculator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.structure import Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.levels import GFN1_METAL
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.calibrate_risk import (
    FOLDS,
    RIDGE,
    HeadErrors,
    Observations,
    calibrate_quantiles,
    compute_conformal_quantile,
    fit_scale,
    measure_coverage_inside,
)
from harness.reference.inference.fit_risk import RiskFitter, main
from harness.reference.inference.fit_statistics import fit_members
from harness.reference.inference.risk import (
    FEATURES,
    KIND,
    SHIPPED,
    RiskModel,
    compute_shortest_contacts,
    evaluate,
    find_risk_path,
    hash_checkpoint,
    load_risk,
    write_risk,
)
from harness.reference.inference.risk_labels import LABELS_FILE, SPLITS, is_plausible, read_labels
from harness.reference.models import checkpoints, sealed
from harness.reference.models.foundation import FoundationModel


@pytest.fixture(scope="module")
def model() -> FoundationModel:
    return checkpoints.load_named("painn-64")[0].double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def risk() -> RiskModel:
    return load_risk("painn-64")[0]


def build_crystals(model: FoundationModel, scale: float = 1.0) -> Batch:
    structures = []
    for symbol in ("Cu", "Pt", "Al"):
        atoms = bulk(symbol, cubic=True)
        cell = np.array(atoms.cell) * scale
        structures.append(Structure(symbol, atoms.numbers, atoms.positions * scale, cell, (True,) * 3))
    return build_batch([model.config.neighbour_spec.build_list(s) for s in structures])


def select_head(model: FoundationModel, name: str, count: int) -> torch.Tensor:
    weights = torch.zeros(count, model.config.heads, dtype=torch.float64)
    weights[:, HEADS.index(name)] = 1.0
    return weights


def make_errors(rng: np.random.Generator, head: int, unit: float, count: int = 2000) -> HeadErrors:
    """Return structures inside the training set with errors unit * exp(2 x - y / 2) of two features x and y."""
    features = rng.standard_normal((count, len(FEATURES)))
    error = unit * np.exp(2.0 * features[:, 0] - 0.5 * features[:, 1] + 0.1 * rng.standard_normal(count))
    return HeadErrors(head, features, error, np.ones(count, dtype=bool), np.zeros(count, dtype=np.int64))


def test_splits_of_the_labels_share_no_prototype_and_no_set_of_elements() -> None:
    labels = read_labels()
    assert labels.level_of_theory == GFN1_METAL.name
    prototypes = [{x.prototype for x in labels.select(split)} for split in SPLITS]
    elements = [{tuple(np.unique(x.structure.numbers)) for x in labels.select(split)} for split in SPLITS]
    for k, other in ((0, 1), (0, 2), (1, 2)):
        assert prototypes[k]
        assert not prototypes[k] & prototypes[other]
        assert not elements[k] & elements[other]


@pytest.mark.slow
def test_shipped_labels_are_reproduced() -> None:
    """Labels computed here equal the shipped ones, but for differences of libraries."""
    pytest.importorskip("tblite")
    for label in [x for x in read_labels().select("test") if len(x.structure) == 8][:3]:
        energy = GFN1_METAL.label(label.structure)[0]
        assert energy == pytest.approx(label.energy_ev, abs=0.01 * len(label.structure))


def test_collapsed_labels_are_implausible() -> None:
    assert is_plausible(-4.4)
    assert is_plausible(30.0)
    assert not is_plausible(-36.0)


def test_contacts_are_relative_to_covalent_radii(model: FoundationModel) -> None:
    batch = build_crystals(model)
    nearest = bulk("Cu", cubic=True).get_all_distances(mic=True)
    assert float(compute_shortest_contacts(batch)[0]) == pytest.approx(nearest[nearest > 0].min() / (2 * 1.32))


def test_risk_grows_with_every_feature(risk: RiskModel) -> None:
    assert (risk.coefficients >= 0).all()
    assert (risk.quantiles[:, 1] > 0).all()
    assert risk.coefficients.max() > 0


def test_compressed_crystals_are_riskier(model: FoundationModel, risk: RiskModel) -> None:
    risks = []
    for scale in (1.0, 0.8):
        batch = build_crystals(model, scale)
        weights = select_head(model, "OC2020", 3)
        risks.append(risk.estimate(model, batch, evaluate(model, batch, weights), weights))
    assert (risks[1] > risks[0]).all()
    assert (risks[1] > risk.threshold_ev_per_atom).all()


def test_risk_of_a_weighted_sum_is_the_weighted_sum_of_risks(model: FoundationModel, risk: RiskModel) -> None:
    batch = build_crystals(model)
    one, other = (select_head(model, name, 3) for name in ("OC2020", "OMat24"))
    evaluation = evaluate(model, batch, one)
    estimates = [risk.estimate(model, batch, evaluation, w) for w in (one, other, 0.25 * one + 0.75 * other)]
    torch.testing.assert_close(estimates[2], 0.25 * estimates[0] + 0.75 * estimates[1])


def test_risk_does_not_depend_on_the_batch(model: FoundationModel, risk: RiskModel) -> None:
    batch = build_crystals(model)
    weights = model.gate_weights(batch.composition)
    mixed = risk.estimate(model, batch, evaluate(model, batch, weights), weights)
    atoms = bulk("Pt", cubic=True)
    calculator = ReferenceCalculator("painn-64", risk=True)
    atoms.calc = calculator
    atoms.get_potential_energy()
    assert calculator.results["risk_ev_per_atom"] == pytest.approx(float(mixed[1]))


def test_heads_that_lack_an_element_do_not_contribute(model: FoundationModel) -> None:
    atoms = molecule("H2O")
    atoms.calc = ReferenceCalculator(model, risk=load_risk("painn-64")[0], precision="fp32")
    atoms.get_potential_energy()
    assert 0 < atoms.calc.results["risk_ev_per_atom"] < np.inf


def test_unknown_weights_give_no_risk(model: FoundationModel, risk: RiskModel) -> None:
    """Weights are NaN for elements outside all training sets; the risk is NaN then, and not 0."""
    batch = build_crystals(model)
    weights = select_head(model, "OC2020", 3)
    weights[1] = torch.nan
    evaluation = evaluate(model, batch, weights)
    assert torch.isnan(evaluation.force_max).tolist() == [False, True, False]
    assert torch.isnan(risk.estimate(model, batch, evaluation, weights)).tolist() == [False, True, False]


def test_equal_sampled_energies_give_a_finite_risk(model: FoundationModel, risk: RiskModel) -> None:
    """The energy range of a head has the width 0, and the energy is on it."""
    batch = build_crystals(model)
    weights = select_head(model, "OC2020", 3)
    evaluation = evaluate(model, batch, weights)
    energy = evaluation.residual_ev_per_atom[0, HEADS.index("OC2020")]
    statistics = replace(risk.statistics, energy_range=torch.full_like(risk.statistics.energy_range, float(energy)))
    assert torch.isfinite(replace(risk, statistics=statistics).estimate(model, batch, evaluation, weights)).all()


def test_head_without_calibration_has_an_infinite_risk(risk: RiskModel) -> None:
    scale = replace(risk, quantiles=torch.ones_like(risk.quantiles))
    rng = np.random.default_rng(3)
    parts = [make_errors(rng, head, 0.1, count=count) for head, count in ((0, 99), (2, 5))]
    labels = replace(make_errors(rng, 0, 1.0), inside=np.zeros(2000, dtype=bool))
    quantiles = calibrate_quantiles(scale, parts, labels)
    assert torch.isfinite(quantiles).all(1).nonzero()[:, 0].tolist() == [0, 2]
    scores = [part.error / part.compute_risks(scale) for part in parts]
    assert float(quantiles[0, 0]) == np.sort(scores[0])[89]
    assert float(quantiles[2, 0]) == compute_conformal_quantile(np.concatenate(scores), 0.9)  # too few of its own


def test_coverage_inside_counts_only_structures_inside(risk: RiskModel) -> None:
    """Errors outside are never covered here, those inside are with the promised share."""
    rng = np.random.default_rng(4)
    heads = len(risk.unit)
    test = make_errors(rng, 0, 0.1)
    outside = np.arange(2000) % 2 == 0
    test = replace(test, inside=~outside, error=np.where(outside, 1e9, test.error), fold=rng.integers(0, FOLDS, 2000))
    labels = {split: make_errors(rng, 0, 0.1) for split in SPLITS}
    labels = {split: replace(x, inside=np.zeros(2000, dtype=bool)) for split, x in labels.items()}
    observations = Observations(risk.statistics, torch.ones(heads), [make_errors(rng, 0, 0.1)], [test], labels)
    assert measure_coverage_inside(observations, test) == pytest.approx(0.9, abs=0.03)
    assert np.isnan(measure_coverage_inside(observations, replace(test, inside=np.zeros(2000, dtype=bool))))


def test_members_disagree_more_outside_the_training_set() -> None:
    rng = np.random.default_rng(0)
    inputs = np.column_stack([rng.standard_normal((500, 2)), np.zeros((500, 2))])
    members = fit_members(inputs, 0.1 * rng.standard_normal(500), prior_scale=1.0, rng=rng)
    inside = (members @ np.array([1.0, 1.0, 0.0, 0.0, 1.0])).std()
    outside = (members @ np.array([1.0, 1.0, 1.0, 1.0, 1.0])).std()
    assert members.mean(0) == pytest.approx(0.0, abs=1e-12)
    assert inside < 0.05
    assert outside > 0.5


def test_conformal_quantile_covers_the_promised_share() -> None:
    """Over many calibrations with 99 scores, a new score is within the quantile in 90% of the cases."""
    rng = np.random.default_rng(1)
    scores = rng.lognormal(sigma=2.0, size=(4000, 100))
    covered = [row[-1] <= compute_conformal_quantile(row[:-1], 0.9) for row in scores]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)
    assert compute_conformal_quantile(scores[0, :5], 0.9) == np.inf


def test_scale_recovers_a_known_dependence() -> None:
    """Errors exp(2 x) times a unit for each head give the coefficient 2 and 0 for features that do not matter."""
    rng = np.random.default_rng(2)
    validation = [make_errors(rng, 0, 0.01), make_errors(rng, 2, 0.1)]
    coefficients, unit = fit_scale(validation, make_errors(rng, 0, 0.05), 3)
    # features have the variance 1 and errors the weight 2
    assert float(coefficients[0]) == pytest.approx(2.0 * 2.0 / (2.0 + RIDGE), abs=0.03)
    assert float(coefficients[1]) == pytest.approx(0.0, abs=1e-9)  # a risk that falls with a feature is not fitted
    assert float(unit[2] / unit[0]) == pytest.approx(10.0, rel=0.05)


def test_risk_of_another_checkpoint_is_refused(tmp_path: Path, risk: RiskModel) -> None:
    """A checkpoint that was replaced after the fit, and one without a risk, give one line that names the command."""
    path = tmp_path / "mine.safetensors"
    shipped = checkpoints.find_path("painn-64")
    path.write_bytes(shipped.read_bytes())
    with pytest.raises(InputError, match=r"has no risk; fit it: python -m harness\.reference\.inference\.fit_risk"):
        load_risk(str(path))
    write_risk(risk, str(path), find_risk_path(str(path)), {})
    assert load_risk(str(path))[0].threshold_ev_per_atom == risk.threshold_ev_per_atom
    model, notes = checkpoints.load(path)
    checkpoints.save(model, path, {**notes, "changed": True})
    with pytest.raises(InputError, match="fitted to another checkpoint"):
        load_risk(str(path))
    with pytest.raises(InputError, match="fitted to another checkpoint"):
        ReferenceCalculator(path, risk=True)
    tensors = sealed.read_tensors(find_risk_path(str(path)))
    del tensors["force"]
    sealed.write(find_risk_path(str(path)), KIND, tensors, {"checkpoint_sha256": hash_checkpoint(str(path))})
    with pytest.raises(InputError, match=r"a risk file of another version; fit it: python -m"):
        load_risk(str(path))
    find_risk_path(str(path)).write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a readable risk file"):
        load_risk(str(path))


def test_risk_of_a_model_in_memory_needs_a_risk_model(model: FoundationModel) -> None:
    with pytest.raises(InputError, match="needs the name or the path of a checkpoint"):
        ReferenceCalculator(model, risk=True)


def test_fit_of_a_missing_checkpoint_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["missing.safetensors"]) == 2
    assert capsys.readouterr().err == "error: missing.safetensors: no such checkpoint\n"


def test_labels_that_the_head_does_not_cover_are_an_input_error() -> None:
    fitter = RiskFitter("painn-64")
    fitter.labels = replace(fitter.labels, labels=[x for x in fitter.labels.labels if x.split != "fit"])
    with pytest.raises(InputError, match="covers no label of the splits fit; train it on"):
        fitter.observe()


def test_shipped_files_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000
    assert LABELS_FILE.parent == SHIPPED


def test_risk_is_finite_in_single_precision(model: FoundationModel, risk: RiskModel) -> None:
    """Atoms at half of their distance have a finite risk in single precision."""
    batch = build_crystals(model, 0.5).to("cpu", torch.float32)
    single = risk.to(torch.device("cpu"), torch.float32)
    weights = select_head(model, "OC2020", 3).float()
    low = checkpoints.load_named("painn-64")[0].float().eval().requires_grad_(False)
    estimate = single.estimate(low, batch, evaluate(low, batch, weights), weights)
    assert torch.isfinite(estimate).all()
