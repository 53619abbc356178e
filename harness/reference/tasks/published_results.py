"""Published results on the official data of the tasks, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

_FINETUNING = (
    "github.com/ORNL/HydraGNN_GFM_FineTuning4Materials, examples/md17/benchmark_results/benchmark_summary.json "
    "(commit 0f270a2): best validation error, 1,000 frames of one molecule, by default uracil, 70% to train"
)


@dataclass(frozen=True)
class Result:
    """A published mean absolute error.

    Attributes:
        model: The model.
        value: The error.
        unit: Its unit.
        train: Number of training structures.
        source: The publication.
        quantity: The quantity, if the task has several.
        subset: The subset of the task, if it has subsets.
        spread: Standard deviation over folds, or None.
    """

    model: str
    value: float
    unit: str
    train: int
    source: str
    quantity: str = ""
    subset: str = ""
    spread: float | None = None


def _list_leaderboard(task: str, unit: str, size: int, rows: dict[str, tuple[float, float]]) -> tuple[Result, ...]:
    """Return the results of a Matbench leaderboard.

    Args:
        task: The task.
        unit: The unit of the errors.
        size: Number of structures of the task.
        rows: (mean, standard deviation) of the error over the five folds, by model.
    """
    source = f"Matbench v0.1 leaderboard, {task} (github.com/materialsproject/matbench, docs_src)"
    return tuple(
        Result(model, mean, unit, size * 4 // 5, source, spread=deviation) for model, (mean, deviation) in rows.items()
    )


MATBENCH: dict[str, tuple[Result, ...]] = {
    "matbench_dielectric": _list_leaderboard(
        "matbench_dielectric",
        "1",
        4764,
        {
            "Dummy": (0.8088, 0.0718),
            "RF-SCM/Magpie": (0.4196, 0.0750),
            "CGCNN v2019": (0.5988, 0.0833),
            "MegNet (kgcnn v2.1.0)": (0.3391, 0.0745),
            "SchNet (kgcnn v2.1.0)": (0.3277, 0.0829),
            "DimeNet++ (kgcnn v2.1.0)": (0.3400, 0.0570),
            "MODNet (v0.1.12)": (0.2711, 0.0714),
        },
    ),
    "matbench_jdft2d": _list_leaderboard(
        "matbench_jdft2d",
        "meV/atom",
        636,
        {
            "Dummy": (67.2851, 10.1832),
            "RF-SCM/Magpie": (50.0440, 8.6271),
            "CGCNN v2019": (49.2440, 11.5865),
            "MegNet (kgcnn v2.1.0)": (54.1719, 11.4299),
            "SchNet (kgcnn v2.1.0)": (42.6637, 13.7201),
            "DimeNet++ (kgcnn v2.1.0)": (49.0243, 11.9027),
            "MODNet (v0.1.12)": (33.1918, 7.3428),
        },
    ),
    "matbench_log_gvrh": _list_leaderboard(
        "matbench_log_gvrh",
        "log10(GPa)",
        10987,
        {
            "Dummy": (0.2931, 0.0031),
            "RF-SCM/Magpie": (0.1040, 0.0016),
            "CGCNN v2019": (0.0895, 0.0016),
            "MegNet (kgcnn v2.1.0)": (0.0871, 0.0013),
            "SchNet (kgcnn v2.1.0)": (0.0796, 0.0022),
            "DimeNet++ (kgcnn v2.1.0)": (0.0792, 0.0011),
            "coNGN": (0.0670, 0.0006),
        },
    ),
    "matbench_log_kvrh": _list_leaderboard(
        "matbench_log_kvrh",
        "log10(GPa)",
        10987,
        {
            "Dummy": (0.2897, 0.0043),
            "RF-SCM/Magpie": (0.0820, 0.0027),
            "CGCNN v2019": (0.0712, 0.0028),
            "MegNet (kgcnn v2.1.0)": (0.0668, 0.0034),
            "SchNet (kgcnn v2.1.0)": (0.0590, 0.0022),
            "DimeNet++ (kgcnn v2.1.0)": (0.0572, 0.0032),
            "coNGN": (0.0491, 0.0026),
        },
    ),
    "matbench_perovskites": _list_leaderboard(
        "matbench_perovskites",
        "eV/unit cell",
        18928,
        {
            "Dummy": (0.5660, 0.0048),
            "RF-SCM/Magpie": (0.2355, 0.0034),
            "CGCNN v2019": (0.0452, 0.0007),
            "MegNet (kgcnn v2.1.0)": (0.0352, 0.0016),
            "SchNet (kgcnn v2.1.0)": (0.0342, 0.0005),
            "DimeNet++ (kgcnn v2.1.0)": (0.0376, 0.0011),
            "coGN": (0.0269, 0.0008),
        },
    ),
    "matbench_phonons": _list_leaderboard(
        "matbench_phonons",
        "1/cm",
        1265,
        {
            "Dummy": (323.9822, 17.7269),
            "RF-SCM/Magpie": (67.6126, 8.9900),
            "CGCNN v2019": (57.7635, 12.3109),
            "MODNet (v0.1.12)": (34.2751, 2.0781),
            "ALIGNN": (29.5385, 2.1148),
        },
    ),
}

QM9: tuple[Result, ...] = (
    Result("SchNet", 0.012, "eV", 100_000, "SchNetPack's documentation, Benchmarks and Trained Models (energy_U0)"),
)

MD17: tuple[Result, ...] = tuple(
    Result(f"HydraGNN, {mode}", value, unit, 700, _FINETUNING, quantity=quantity)
    for mode, quantity, value, unit in (
        ("fine-tuned", "energy", 0.0641, "eV"),
        ("fine-tuned", "forces", 0.2837, "eV/angstrom"),
        ("frozen", "energy", 0.1853, "eV"),
        ("frozen", "forces", 0.5921, "eV/angstrom"),
    )
)
