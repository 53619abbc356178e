"""The commands of `harness data`: do_NAME runs the command NAME, and returns the exit code."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from harness.protocol.text import sanitize, sanitize_line
from harness.reference.datasets.catalog import SOURCES, DatasetSource, find_source
from harness.reference.datasets.hydragnn.stores import is_bp_folder, require_seal
from harness.reference.datasets.shipped_sets import find_shipped_set
from harness.reference.datasets.splits import SPLIT_NAMES
from harness.reference.errors import InputError

DONE, FAILED = 0, 1
STORE_ENDING = ".bp"
STORES = Path("stores")
HYDRAGNN = "hydragnn"


def do_list(arguments: Namespace) -> int:
    """Print a table of all datasets, or a description of the named ones."""
    if arguments.datasets:
        for name in arguments.datasets:
            print(describe_source(find_source(name)))
        return DONE
    print(f"{'dataset':<20} {'published':>11}  {'level of theory':<36} {'shipped':>7}  as")
    for entry in SOURCES:
        shipped = find_shipped_set(entry.slug)
        count = f"{entry.count:,}" if entry.count else "a part"
        origin = f"{shipped.data_origin}, {shipped.level}"
        print(f"{entry.slug:<20} {count:>11}  {entry.level:<36} {shipped.count:>7,}  {origin}")
    return DONE


def describe_source(entry: DatasetSource) -> str:
    """Return a description of a dataset in several lines."""
    shipped = find_shipped_set(entry.slug)
    facts = {
        "format": entry.format,
        "files": entry.files,
        "units": entry.units,
        "level": entry.level,
        "energies": f"{entry.energy_kind}; zero: {entry.zero_energy_state}",
        "structures": f"{entry.count:,}" if entry.count else f"those of {entry.head.split('-')[0]} by charge",
        "licence": entry.licence,
        "citation": entry.citation,
        "page": entry.url,
        "to fetch": entry.fetch,
        "shipped": f"{shipped.count:,} structures, {shipped.data_origin}: {shipped.chemistry}; {shipped.level};"
        f" {shipped.licence}",
    }
    lines = [f"{entry.slug} (branch {entry.branch}, {entry.head})"]
    for name, text in facts.items():
        lines.append(textwrap.fill(text, 116, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13))
    return "\n".join(lines)


def do_fetch(arguments: Namespace) -> int:
    """Download files that have a public address, or explain how to get other files."""
    from harness.reference.datasets.fetch import DOWNLOADS, fetch, select_downloads

    entry = find_source(arguments.dataset)
    known = DOWNLOADS.get(entry.slug, ())
    if not known:
        raise InputError(f"{entry.slug} cannot be fetched by address alone; by hand: {entry.fetch} ({entry.url})")
    names = arguments.files or [d.name for d in known if len(known) == 1]
    if not names:
        raise InputError(f"{entry.slug}: say which of {', '.join(d.name for d in known)}")
    for download in select_downloads(entry.slug, names):
        path = fetch(download, arguments.to / entry.slug, make_progress(arguments.quiet))
        is_archive = ".tar" in path.name
        print(f"{sanitize_line(str(path))}{' (unpack it with tar -xf before it is converted)' if is_archive else ''}")
    return DONE


def do_convert(arguments: Namespace) -> int:
    """Convert files to a store, and print its summary."""
    from harness.reference.datasets.conversion import read_part
    from harness.reference.datasets.conversion.convert import convert, plan_conversion
    from harness.reference.datasets.conversion.read_part import ConversionRules

    if arguments.max_neighbours is not None and arguments.cutoff is None and arguments.form is None:
        raise InputError("--max-neighbours needs --cutoff")
    for name in ("cutoff", "max_neighbours", "max_force", "workers"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: expected a number above 0, got {value}")
    entry = find_source(arguments.dataset)
    if arguments.form == HYDRAGNN:
        return _convert_for_hydragnn(entry, arguments)
    if any(is_bp_folder(path) for path in arguments.paths):
        return _convert_store(entry, arguments)
    rules = ConversionRules(
        cutoff=arguments.cutoff,
        max_neighbours=arguments.max_neighbours,
        max_force=arguments.max_force,
        split_seed=arguments.seed,
        strict=arguments.strict,
    )
    workers = arguments.workers or len(os.sched_getaffinity(0))
    store = (arguments.to or STORES) / (entry.slug + STORE_ENDING)
    result = convert(plan_conversion(entry, arguments.paths, store, rules, workers), make_progress(arguments.quiet))
    print(f"{sanitize_line(str(store))}: {summarize_conversion(result)}")
    for line in read_part.describe_missing_labels(
        read_part.parse_label_counts(result["conversion"]["missing_labels"]), entry.labels
    ):
        print(f"  {line}")
    for text in result["conversion"]["examples"]:
        print(f"  left out: {sanitize_line(text)}")
    return DONE


def _convert_for_hydragnn(entry: DatasetSource, arguments: Namespace) -> int:
    """Write NAME-v2.bp from a store, or from files or the shipped set through a temporary store."""
    from harness.reference.datasets.hydragnn.export import (
        CUTOFF_ANGSTROM,
        MAX_NEIGHBOURS,
        format_store_name,
        write_for_hydragnn,
    )

    for option, value, fixed in (
        ("--cutoff", arguments.cutoff, CUTOFF_ANGSTROM),
        ("--max-neighbours", arguments.max_neighbours, MAX_NEIGHBOURS),
    ):
        if value not in (None, fixed):
            raise InputError(f"{option} {value:g}: HydraGNN's stores have {fixed:g}; leave it out with --for hydragnn")
    target = (arguments.to or STORES) / format_store_name(entry.head)
    if target.exists():
        raise InputError(f"{target}: there is a store of this name already; remove it, or choose another folder")
    if any(is_bp_folder(path) for path in arguments.paths):
        origin = arguments.paths[0]
        if len(arguments.paths) > 1:
            raise InputError(f"{origin}: expected one store, or files")
        require_seal(origin)
        _require_dataset_of_store(entry, origin)
        result = write_for_hydragnn(origin, target, make_progress(arguments.quiet))
    else:
        folder = target.with_name(f"{target.name}.origin")
        shutil.rmtree(folder / (entry.slug + STORE_ENDING), ignore_errors=True)  # an earlier run may have been killed
        plain = {**vars(arguments), "form": None, "to": folder, "cutoff": None, "max_neighbours": None}
        do_convert(Namespace(**plain))
        result = write_for_hydragnn(folder / (entry.slug + STORE_ENDING), target, make_progress(arguments.quiet))
        shutil.rmtree(folder)
    splits = ", ".join(f"{n:,} {label}" for label, n in result.samples.items())
    print(
        f"{target}: {result.samples.total():,} structures ({splits}) with {result.edges:,} edges for HydraGNN;"
        " the linear regression on the composition is subtracted from the energies"
    )
    if result.isolated:
        print(f"  {result.isolated:,} structures have no edges; HydraGNN can read these only if it preloads the store")
    if result.coincident:
        print(f"  left out: {result.coincident:,} structures with coincident atoms")
    return DONE


def _require_dataset_of_store(entry: DatasetSource, path: Path) -> None:
    from harness.reference.datasets.hydragnn.in_place import require_dataset
    from harness.reference.storage.adios.reader import BPFile

    with BPFile(path) as file:
        require_dataset(entry, path, file.attributes.get("dataset_name"))


def _convert_store(entry: DatasetSource, arguments: Namespace) -> int:
    """Make a store that HydraGNN wrote usable without copying or changing it."""
    from harness.reference.datasets.hydragnn.in_place import convert_in_place

    unsupported = {
        "--cutoff": arguments.cutoff,
        "--max-neighbours": arguments.max_neighbours,
        "--strict": arguments.strict,
    }
    options = [option for option, value in unsupported.items() if value]
    if len(arguments.paths) > 1 or options:
        reason = f"{options[0]} would change it" if options else "one at a time"
        raise InputError(f"{arguments.paths[0]}: a store is converted in place: {reason}")
    print(convert_in_place(entry, arguments.paths[0], arguments.to, make_progress(arguments.quiet)))
    return DONE


def summarize_conversion(facts: dict[str, object]) -> str:
    """Summarize a conversion in one line."""
    dataset, c = facts["dataset"], facts["conversion"]
    assert isinstance(dataset, dict)
    assert isinstance(c, dict)
    splits = ", ".join(f"{n:,} {name}" for name, n in c["splits"].items())
    left_out = ", ".join(f"{n:,} {kind}" for kind, n in c["excluded"].items())
    rate = "" if c["structures_per_s"] is None else f"; {c['structures_per_s']:,.0f}/s"
    others = f"; {c['excluded_by_charge']:,} with other charges skipped" if c["excluded_by_charge"] else ""
    others += "".join(f"; skipped: {what}: {n:,}" for what, n in c["skipped_files"].items())
    empty = [name for name in SPLIT_NAMES.values() if name not in c["splits"]]
    if empty:
        others += f"; no {' and no '.join(empty)}, as there are too few groups to split"
    if c["duplicate_structures"]:
        others += f"; {c['duplicate_structures']:,} structures have the geometry of another and are in the same split"
    return (
        f"{c['structures_written']:,} structures ({splits}) of {dataset['data_origin']} {dataset['level_of_theory']};"
        f" {'left out: ' + left_out if left_out else 'none left out'}{others}{rate}"
    )


def do_check(arguments: Namespace) -> int:
    """Check files or stores; return 1 if some structures cannot be used or there are no structures."""
    from harness.reference.datasets import inspect

    first = Path(arguments.dataset)
    paths = [first, *arguments.paths] if first.suffix == STORE_ENDING else arguments.paths
    for path in paths or [first]:
        if path.is_dir() and not any(path.iterdir()):
            print(f"{sanitize_line(str(path))}: an empty folder, with nothing to check")
            return FAILED
    if paths and all(path.suffix == STORE_ENDING for path in paths):
        reports = [inspect.inspect_store(path, make_progress(arguments.quiet)) for path in paths]
    else:
        entry = find_source(arguments.dataset)
        reports = [inspect.inspect_files(entry, arguments.paths, make_progress(arguments.quiet))]
    print("\n".join(sanitize(report.text) for report in reports))
    return FAILED if any(report.faults for report in reports) else DONE


def do_stats(arguments: Namespace) -> int:
    """Print a summary of each store in one line."""
    from harness.reference.datasets import inspect

    for path in list_stores(arguments.stores):
        print(sanitize_line(inspect.summarize_store(path)))
    return DONE


def list_stores(paths: list[Path]) -> list[Path]:
    """Return the stores among the paths and those in folders among them; raises InputError for a folder without any."""
    stores: list[Path] = []
    for path in paths:
        inside = sorted(path.glob(f"*{STORE_ENDING}")) if path.suffix != STORE_ENDING else [path]
        if not inside:
            raise InputError(f"{path}: no store (*{STORE_ENDING}) in this folder")
        stores += inside
    return stores


def make_progress(quiet: bool) -> Callable[[int, int, str], None]:
    """Return a function that reports progress in one line of a terminal; without a terminal, it does nothing."""
    is_visible = not quiet and sys.stderr.isatty()

    def report(count: int, total: int, unit: str) -> None:
        if is_visible:
            print(f"\r{count:,} of {total:,} {unit} ", end="\n" if count >= total else "", file=sys.stderr, flush=True)

    return report
