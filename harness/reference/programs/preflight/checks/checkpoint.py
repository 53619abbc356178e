"""Checkpoint: a model of the user loads, predicts on the device, and passes the checks of potentials."""

from __future__ import annotations

from harness.reference.inference.precision import find_precision
from harness.reference.models import checkpoints
from harness.reference.potentials.reference_model import check_model
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome, make_unchecked
from harness.reference.programs.preflight.checks.devices import open_device

TRANSFORMATIONS = 3  # random rotations and reflections of each structure
# Checks that take long, or that depend on the model more than on the machine.
SKIPPED = ("force constants", "smoothness")
EXPECTED = "the model of the parameter `checkpoint` loads and predicts, and its physics is correct"
ADVICE = "Convert the checkpoint again, or train the model longer; `harness run models` measures each violation."


def check(context: CheckContext) -> Outcome:
    """Load the checkpoint, and check its physics on the device in double precision."""
    name = context.config.checkpoint
    if name is None:
        return make_unchecked(EXPECTED, "no checkpoint is named", "Set the parameter `checkpoint` to check your model.")
    model, _ = checkpoints.load_named(name)
    model = find_precision("fp64").apply(model).eval().requires_grad_(False).to(open_device(context))
    results = list(check_model(model, transformations=TRANSFORMATIONS, skip=SKIPPED))
    problems = [
        f"{v.check} of {v.structure}: {v.reason or f'{v.value:.1e}, more than {v.tolerance:.0e} {v.unit}'}"
        for v in results
        if not v.passed
    ]
    parameters = sum(p.numel() for p in model.parameters())
    observed = f"{model.config.backbone} with {parameters:,} parameters; {len(results)} checks of physics pass"
    return make_outcome(EXPECTED, observed, problems, ADVICE)
