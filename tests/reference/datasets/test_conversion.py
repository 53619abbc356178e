"""Conversion of official files to a store: nothing is lost or repeated, even after interruptions."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness.reference.data.neighbours import add_neighbours, build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import tabulate
from harness.reference.datasets import inspect
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.conversion import convert as conversion
from harness.reference.datasets.conversion.convert import Conversion, convert, describe_official, find_official_files
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.readers import ani1x, aselmdb
from harness.reference.datasets.splits import assign_by_name
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.structure_codec import decode_text
from tests.reference.conftest import ignore_progress
from tests.reference.datasets.official_files.writers import encode_array, read_all_files, write_ani1x, write_aselmdb

N_FILES = 6
N_GROUPS = 12


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Write files of methanol under many names, so that there are many groups, and return their paths."""
    result = []
    for k in range(N_FILES):
        path = tmp_path / "official" / f"ani-{k}.h5"
        path.parent.mkdir(exist_ok=True)
        write_ani1x(path, {f"g{k}-{n}": 5 + n for n in range(N_GROUPS)})
        result.append(path)
    return result


def make_conversion(files: list[Path], store: Path, *, workers: int = 1, **rules: object) -> Conversion:
    entry = find_source("ani1x")
    return Conversion(
        slug="ani1x",
        format=ani1x.FORMAT,
        paths=tuple(files),
        store=store,
        source=entry,
        about=describe_official(entry),
        rules=ConversionRules(**rules),  # type: ignore[arg-type]
        workers=workers,
    )


def read_content(store: Path) -> dict[str, tuple[str, bytes, float]]:
    """Return split, positions and energy of each id."""
    result = {}
    with BPFile(store) as file:
        for label in file.splits:
            for k in range(file.count_samples(label)):
                record = file.read_sample(label, k)
                name = decode_text(record["id"])
                assert name not in result
                result[name] = (label, record["pos"].tobytes(), float(record["energy"][0]))
    return result


def test_store_contains_every_structure_once_and_exactly(files: list[Path], tmp_path: Path) -> None:
    facts = convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)
    frames, faults = read_all_files(ani1x.FORMAT, *files)
    stored = read_content(tmp_path / "s.bp")
    assert not faults
    assert (
        len(stored)
        == len(frames)
        == facts["conversion"]["structures_written"]
        == sum(facts["conversion"]["splits"].values())
    )
    for s in frames.structures():
        assert stored[s.name][1:] == (s.positions.tobytes(), s.energy)
    splits: dict[str, set[str]] = {}
    for s in frames.structures():
        splits.setdefault(s.group, set()).add(stored[s.name][0])
    assert all(len(result) == 1 for result in splits.values())
    assert set.union(*splits.values()) == {"trainset", "valset", "testset"}
    assert not (tmp_path / "s.bp.spool").exists()


def test_the_store_does_not_depend_on_the_number_of_workers(files: list[Path], tmp_path: Path) -> None:
    serial = convert(make_conversion(files, tmp_path / "one.bp"), ignore_progress)
    parallel = convert(make_conversion(files, tmp_path / "two.bp", workers=2), ignore_progress)
    assert list(read_content(tmp_path / "one.bp").items()) == list(read_content(tmp_path / "two.bp").items())
    assert serial["statistics"] == parallel["statistics"]
    assert serial["reference_energies"] == parallel["reference_energies"]


def test_conversion_killed_while_reading_resumes_without_loss_or_duplicates(files: list[Path], tmp_path: Path) -> None:
    uninterrupted = convert(make_conversion(files, tmp_path / "whole.bp"), ignore_progress)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.reference.datasets import test_conversion as t\n"
        "def slow(count, total, activity): time.sleep(0.2)\n"
        "t.convert(t.make_conversion([Path(p) for p in sys.argv[2:]], Path(sys.argv[1])), slow)\n"
    )
    store = tmp_path / "s.bp"
    spool = tmp_path / "s.bp.spool"
    for reached in (1, 3, 5):
        process = subprocess.Popen([sys.executable, "-c", program, str(store), *map(str, files)])
        deadline = time.monotonic() + 300
        while len(list(spool.glob("0*.json"))) < reached and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not store.exists()
        assert len(list(spool.glob("0*.json"))) >= reached
    read = []
    facts = convert(make_conversion(files, store), lambda count, total, activity: read.append((count, activity)))
    assert read[0][0] >= 5
    assert read_content(store) == read_content(tmp_path / "whole.bp")
    assert facts["statistics"] == uninterrupted["statistics"]


def test_conversion_stopped_while_writing_resumes(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(count: int, total: int, activity: str) -> None:
        if activity == "structures written" and count > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(make_conversion(files, tmp_path / "s.bp"), stop)
    assert not (tmp_path / "s.bp").exists()
    monkeypatch.setattr(conversion, "read_part", None)  # nothing is read again
    convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)
    assert len(read_content(tmp_path / "s.bp")) == N_FILES * sum(range(5, 5 + N_GROUPS))


def test_spool_of_other_options_is_rejected(files: list[Path], tmp_path: Path) -> None:
    def stop(count: int, total: int, activity: str) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(make_conversion(files, tmp_path / "s.bp"), stop)
    with pytest.raises(InputError, match=r"s.bp.spool: left by a conversion of other files or with other options"):
        convert(make_conversion(files, tmp_path / "s.bp", max_force=5.0), ignore_progress)
    convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)
    with pytest.raises(InputError, match="there is a store of this name already"):
        convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)


def test_concurrent_conversions_of_one_store_are_rejected(files: list[Path], tmp_path: Path) -> None:
    def convert_again(count: int, total: int, activity: str) -> None:
        with pytest.raises(InputError, match="another conversion is at work here"):
            convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)

    convert(make_conversion(files, tmp_path / "s.bp"), convert_again)


def test_bad_structures_are_counted_or_end_a_strict_conversion(files: list[Path], tmp_path: Path) -> None:
    with h5py.File(files[2], "r+") as file:
        file["g2-4/wb97x_dz.forces"][3] = 1e6
        file["g2-5/coordinates"][1] = np.nan
        file["g2-6/wb97x_dz.energy"][2] *= 27.2114
        file["g2-7/wb97x_dz.energy"][0] = np.nan
        del file["g2-8/atomic_numbers"]
    facts = convert(make_conversion(files, tmp_path / "s.bp"), ignore_progress)
    left_out = facts["conversion"]["excluded"]
    group_size = 5 + 8
    assert left_out["unlabelled"] == 1
    # a group without elements is one fault, or one fault per frame
    assert sum(left_out.values()) in (4 + group_size, 5)
    assert facts["conversion"]["structures_written"] == N_FILES * sum(range(5, 5 + N_GROUPS)) - 4 - group_size
    assert all(text.startswith("ani-2.h5: ") for text in facts["conversion"]["examples"])
    with pytest.raises(InputError, match=r"^ani-2.h5: "):
        convert(make_conversion(files, tmp_path / "strict.bp", strict=True), ignore_progress)


def test_duplicate_ids_keep_the_first_structure(files: list[Path], tmp_path: Path) -> None:
    facts = convert_with_ids_of_the_first(files[:2], tmp_path / "s.bp")
    assert facts["conversion"]["excluded"] == {"duplicate": sum(range(5, 5 + N_GROUPS))}
    assert len(read_content(tmp_path / "s.bp")) == sum(range(5, 5 + N_GROUPS))


def convert_with_ids_of_the_first(files: list[Path], store: Path) -> dict[str, Any]:
    """Convert as if all files had the ids and groups of the first."""
    from dataclasses import replace

    dataset_format = replace(
        ani1x.FORMAT, read_chunk=lambda part: ani1x.FORMAT.read_chunk(replace(part, path=files[0]))
    )
    parts = ani1x.FORMAT.list_chunks([files[0]]) * 2
    return convert(
        replace(make_conversion(files, store), format=replace(dataset_format, list_chunks=lambda paths: parts)),
        ignore_progress,
    )


def test_a_truncated_file_ends_a_strict_conversion(files: list[Path], tmp_path: Path) -> None:
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"ani-1\.h5"):
        convert(make_conversion(files, tmp_path / "s.bp", strict=True), ignore_progress)


def write_crystals(path: Path, count: int, first: int = 1, **changes: object) -> None:
    """Write rock salt in the official format of OMat24, with forces and stress unless changed."""
    cell = 5.64 * np.eye(3)
    row = {
        "numbers": encode_array([11, 17]),
        "positions": encode_array([[0.0, 0, 0], [2.82, 0, 0]]),
        "cell": encode_array(cell),
        "pbc": encode_array([True, True, True]),
        "energy": -6.5,
        "forces": encode_array(np.zeros((2, 3))),
        "stress": encode_array(np.zeros(6)),
    }
    rows = {first + k: row | {"data": {"sid": f"material-{k % 40}"}} | changes for k in range(count)}
    write_aselmdb(path, {k: {n: v for n, v in r.items() if v is not None} for k, r in rows.items()})


def convert_omat24(folder: Path, store: Path, **rules: object) -> dict[str, Any]:
    entry = find_source("omat24")
    about = describe_official(entry)
    conversion_rules = ConversionRules(**rules)  # type: ignore[arg-type]
    return convert(
        Conversion("omat24", aselmdb.FORMAT, (folder,), store, entry, about, conversion_rules), ignore_progress
    )


def test_structures_without_forces_are_left_out_if_other_structures_have_forces(tmp_path: Path) -> None:
    write_crystals(tmp_path / "files" / "a.aselmdb", 100, forces=None)
    write_crystals(tmp_path / "files" / "b.aselmdb", 60)
    facts = convert_omat24(tmp_path / "files", tmp_path / "s.bp")
    assert facts["conversion"]["excluded"] == {"unlabelled": 100}
    assert facts["conversion"]["labels"] == ["energy", "forces", "stress"]
    assert len(read_content(tmp_path / "s.bp")) == 60
    assert facts["reference_energies"]["structures"] == facts["conversion"]["splits"]["train"]


def test_stress_is_kept_for_structures_that_have_it(tmp_path: Path) -> None:
    write_crystals(tmp_path / "files" / "a.aselmdb", 50)
    write_crystals(tmp_path / "files" / "b.aselmdb", 1, stress=None)
    facts = convert_omat24(tmp_path / "files", tmp_path / "s.bp")
    assert facts["conversion"]["labels"] == ["energy", "forces", "stress"]
    assert facts["conversion"]["excluded"] == {}
    assert facts["conversion"]["stress_without_label"] == 1
    assert facts["conversion"]["missing_labels"]["missing"]["stress"] == 1
    n_with_stress, without_stress = 0, []
    with BPFile(tmp_path / "s.bp") as file:
        assert file.attributes["missing_labels"]["missing"]["stress"] == 1
        for label in file.splits:
            for k in range(file.count_samples(label)):
                record = file.read_sample(label, k)
                n_with_stress += bool(np.isfinite(record["stress"]).all())
                without_stress += [decode_text(record["id"])] if np.isnan(record["stress"]).all() else []
    assert n_with_stress == 50
    assert without_stress == ["b/1"]
    report = inspect.inspect_store(tmp_path / "s.bp", ignore_progress)
    assert not report.faults


def test_dataset_without_forces_stores_energies(tmp_path: Path) -> None:
    write_crystals(tmp_path / "files" / "a.aselmdb", 50, forces=None, stress=None)
    assert convert_omat24(tmp_path / "files", tmp_path / "s.bp")["conversion"]["labels"] == ["energy"]


def test_chunk_without_usable_structures_is_skipped(tmp_path: Path) -> None:
    write_crystals(tmp_path / "files" / "a.aselmdb", 50)
    write_crystals(tmp_path / "files" / "b.aselmdb", 5, energy=float("1e9"))
    facts = convert_omat24(tmp_path / "files", tmp_path / "s.bp", cutoff=3.0)
    assert facts["conversion"]["excluded"] == {"units": 5}
    with pytest.raises(InputError, match="no structure is left to write; left out: 5 units"):
        convert_omat24(tmp_path / "files" / "b.aselmdb", tmp_path / "b.bp", cutoff=3.0)


def test_errors_of_reference_energies_cover_only_written_structures(tmp_path: Path, files: list[Path]) -> None:
    single = convert(make_conversion(files[:1], tmp_path / "one.bp"), ignore_progress)
    doubled = convert_with_ids_of_the_first(files[:2], tmp_path / "two.bp")
    assert doubled["reference_energies"]["mae_ev_per_atom"] == pytest.approx(
        single["reference_energies"]["mae_ev_per_atom"]
    )
    assert doubled["reference_energies"]["structures"] == single["reference_energies"]["structures"]


def test_official_files_are_found_in_the_given_folder(tmp_path: Path) -> None:
    (tmp_path / "OMol25").mkdir()
    assert find_official_files("", find_source("omol25")) == ()
    for name in ("omol25", "omol25-neutral", "omol25-non-neutral"):
        assert find_official_files(str(tmp_path), find_source(name)) == (tmp_path / "OMol25",)
    assert find_official_files(str(tmp_path), find_source("ani1x")) == ()
    for wrong, message in (
        ("there", "absolute path"),
        (str(tmp_path / "x"), "no such folder"),
        ("/proc/self", "expected fol"),
    ):
        with pytest.raises(InputError, match=message):
            find_official_files(wrong, find_source("ani1x"))


def test_neighbour_lists_in_a_store_match_build_neighbour_list(files: list[Path], tmp_path: Path) -> None:
    convert(make_conversion(files, tmp_path / "s.bp", cutoff=3.0, max_neighbours=3), ignore_progress)
    with BPFile(tmp_path / "s.bp") as file:
        record = file.read_sample("trainset", 0)
    structure = Structure("x", record["atomic_numbers"][:, 0].astype(np.int64), record["pos"])
    graph = build_neighbour_list(structure, cutoff=3.0, max_neighbours=3)
    assert np.array_equal(record["edge_index"], np.stack([graph.sender, graph.receiver]))


def test_neighbours_of_a_table_match_the_neighbours_of_each_structure() -> None:
    rng = np.random.default_rng(3)
    structures = [
        Structure(
            name=str(k),
            numbers=rng.integers(1, 90, n),
            positions=rng.uniform(0, 6, (n, 3)),
            cell=np.eye(3) * 6 * periodic + rng.normal(0, 0.3, (3, 3)) * periodic,
            periodic=(periodic,) * 3,
        )
        for k, (n, periodic) in enumerate([(1, False), (12, True), (7, False), (30, True), (2, True)])
    ]
    table, faults = add_neighbours(tabulate(structures), cutoff=4.0, max_neighbours=8)
    assert not faults
    counts: Any = table.edge_counts
    stop = np.cumsum(counts)
    for k, structure in enumerate(structures):
        graph = build_neighbour_list(structure, cutoff=4.0, max_neighbours=8)
        span = slice(stop[k] - counts[k], stop[k])
        single: Any = table[k : k + 1]
        assert np.array_equal(single.receiver, graph.receiver)
        assert np.array_equal(table.sender[span], graph.sender)  # type: ignore[index]
        np.testing.assert_allclose(single.shift, graph.shift, atol=1e-12)
    assert len(table) == len(structures)


def test_coincident_atoms_are_rejected() -> None:
    good = Structure("good", np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.74]]))
    bad = Structure("bad", np.array([1, 1]), np.zeros((2, 3)))
    table, faults = add_neighbours(tabulate([good, bad, good]), cutoff=4.0, max_neighbours=None)
    assert [f.where for f in faults] == ["bad"]
    assert table.ids.tolist() == ["good", "good"]
    assert table.edge_counts is not None
    assert table.edge_counts.tolist() == [2, 2]


def test_splits_have_the_requested_fractions_and_depend_only_on_names() -> None:
    names = np.array([f"group-{k}" for k in range(20_000)])
    counts = np.bincount(assign_by_name(names)) / len(names)
    np.testing.assert_allclose(counts, [0.9, 0.05, 0.05], atol=0.01)
    order = np.random.default_rng(0).permutation(len(names))
    assert np.array_equal(assign_by_name(names)[order], assign_by_name(names[order]))
    assert not np.array_equal(assign_by_name(names, seed=1), assign_by_name(names))


def test_command_converts_checks_and_summarizes(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = str(tmp_path / "stores")
    assert main(["convert", "ani1x", *map(str, files), "--to", to, "--cutoff", "5", "-q"]) == 0
    assert "stores/ani1x.bp: 756 structures" in capsys.readouterr().out
    assert main(["check", "ani1x", *map(str, files), "-q"]) == 0
    assert "756 structures" in capsys.readouterr().out
    assert main(["check", f"{to}/ani1x.bp", "-q"]) == 0
    assert "756 structures" in capsys.readouterr().out
    assert main(["stats", to]) == 0
    assert "H C O" in capsys.readouterr().out
    with h5py.File(files[0], "r+") as file:
        file["g0-4/wb97x_dz.forces"][3] = 1e6
    assert main(["check", "ani1x", *map(str, files), "-q"]) == 1
    assert "ani-0.h5" in capsys.readouterr().out


@pytest.mark.slow
def test_options_may_precede_or_follow_files(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_file, second_file = map(str, files[:2])
    for k, arguments in enumerate(
        (
            ["ani1x", "--seed", "3", first_file, second_file],
            ["--seed", "3", "ani1x", first_file, "-q", second_file],
            ["ani1x", first_file, "--seed=3", second_file],
        )
    ):
        to = str(tmp_path / str(k))
        assert main(["convert", *arguments, "--to", to]) == 0
        assert f"{to}/ani1x.bp: 252 structures" in capsys.readouterr().out
    assert main(["check", "ani1x", "-q", first_file]) == 0
    assert main(["convert", "ani1x", "-q", "--", "-nowhere.h5"]) == 2
    assert main(["convert", "ani1x", "--seed", "3", "--bogus", first_file]) == 2
    assert "-nowhere.h5: no such file" in (error := capsys.readouterr().err)
    assert "unrecognized arguments: --bogus" in error


def test_conversion_without_usable_structures_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    write_ani1x(tmp_path / "x" / "none.h5", {"g": 3}, missing=3)
    assert main(["check", "ani1x", str(tmp_path / "x")]) == 1
    assert "ani1x: 0 structures can be used; 3 unlabelled" in capsys.readouterr().out
    for name in ("empty", "empty.bp"):
        (tmp_path / name).mkdir()
        assert main(["check", *([] if name.endswith(".bp") else ["ani1x"]), str(tmp_path / name)]) == 1
        assert f"{name}: an empty folder, with nothing to check" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["convert", "check"])
def test_file_under_two_names_is_rejected(
    command: str, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "renamed.h5"
    copy.write_bytes(files[0].read_bytes())
    assert main([command, "ani1x", *map(str, files), str(copy.parent)]) == 2
    error = capsys.readouterr().err
    assert f"{copy}: holds the same bytes as {files[0]}" in error
    assert error.count("\n") == 1
    copy.unlink()
    copy.symlink_to(files[0])
    assert main(["check", "ani1x", *map(str, files), str(copy.parent), str(files[0].parent)]) == 0
    assert "756 structures" in capsys.readouterr().out


def test_file_names_are_sanitized_in_messages(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\x1b[2J\nb"
    folder.mkdir()
    bad = folder / "c\x1b]0;d\x07\ne\udcff.h5"
    bad.write_bytes(files[0].read_bytes())
    with h5py.File(bad, "r+") as file:
        file["g0-4/wb97x_dz.forces"][3] = 1e6
    truncated_file = folder / "\x9bcut.h5"
    truncated_file.write_bytes(files[1].read_bytes()[:20_000])
    to = str(folder / "stores")
    main(["check", "ani1x", str(bad)])
    main(["check", "ani1x", str(bad), str(truncated_file)])
    main(["convert", "ani1x", str(bad), "--to", to])
    main(["convert", "ani1x", str(bad), "--to", to])
    main(["check", f"{to}/ani1x.bp"])
    main(["stats", to])
    main(["stats", str(folder)])
    main(["check", "ani1x", str(folder / "nowhere")])
    main(["convert", "ani1x", str(truncated_file), "--to", str(bad)])
    output = capsys.readouterr()
    lines = (output.out + output.err).splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 11
    assert "left out: c?]0;d? e?.h5: " in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "ani1", "x.h5"], "did you mean 'ani1x'?"),
        (["convert", "ani1x", "nowhere.h5"], "nowhere.h5: no such file or folder"),
        (["convert", "ani1x", "--cutoff", "-1"], "--cutoff: expected a number above 0, got -1.0"),
        (["convert", "ani1x", "--max-neighbours", "3"], "--max-neighbours needs --cutoff"),
        (["convert", "ani1x", "--workers", "x"], "invalid int value: 'x'; see `harness data convert --help`"),
        (["fetch", "omol25"], "cannot be fetched by address alone; by hand: accept the terms at"),
        (["fetch", "qm7x"], "say which of 1000.xz"),
        (["stats", "nowhere"], "nowhere: no store"),
        (["check", "nowhere.bp"], "nowhere.bp"),
        (["cheque"], "invalid choice: 'cheque'"),
    ],
)
def test_errors_of_the_command_are_reported_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_list_shows_all_datasets_and_stand_ins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert sum("stand-in for" in line for line in lines) >= 12
    assert main(["list", "OC2020"]) == 0
    assert "stand-in for OC2020" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from tests.reference.datasets import test_conversion as t\n"
        "t.convert(t.make_conversion([Path(p) for p in sys.argv[2:]], Path(sys.argv[1])), t.ignore_progress)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    peak = {}
    for count in (1, 10):
        files = []
        for k in range(count):
            files.append(tmp_path / f"{count}-{k}.h5")
            write_ani1x(files[-1], {f"g{k}-{n}": 400 for n in range(60)})
        arguments = [sys.executable, "-c", program, str(tmp_path / f"{count}.bp"), *map(str, files)]
        peak[count] = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout) / 1024
    assert peak[10] < peak[1] + 60, peak
