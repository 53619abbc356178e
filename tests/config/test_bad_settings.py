"""Invalid settings are reported with their source: the command line, a variable, or the user's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import resources
from harness.config.system import load_system
from tests.config.conftest import GetErrors
from tests.support.expected_errors import SUITE, SYSTEM

THREADS = "threads: {help: threads, default: 1}"
UNSAFE = "expected letters, digits, $NAME and any of ./:@%+=,~_-"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("threads=two", "-S threads: expected a whole number, such as 1, got 'two'"),
        ("threads=1.5", "-S threads: expected a whole number, such as 1, got '1.5'"),
        ("threads=", "-S threads: expected a whole number, such as 1, got ''"),
        ("threads=٣", "-S threads: expected a whole number, such as 1, got '٣'"),
        ("threads=" + "9" * 5000, "-S threads: expected a whole number, such as 1, got '" + "9" * 56 + "..."),
        ("threads", "-S threads: expected key=value"),
        ("thread=2", "-S thread: no such setting of system 'here' (did you mean 'threads'?)"),
        ("=2", "-S : no such setting of system 'here' (there are: account, share, threads)"),
        ("share=much", "-S share: expected a number, such as 0.5, got 'much'"),
        ("share=inf", "-S share: expected a number, such as 0.5, got 'inf'"),
        ("share=nan", "-S share: expected a number, such as 0.5, got 'nan'"),
        *(
            (f"account={text}", f"-S account: {UNSAFE}, got {text!r}")
            for text in (
                "a;rm -rf",
                "$(x)",
                "a b",
                "`x`",
                "'x'",
                'a"b',
                "a\nb",
                "a\n",
                "a|b",
                "${x",
                "a&",
                "é",
                "*",
                "#x",
            )
        ),
    ],
)
def test_invalid_settings_on_the_command_line_are_reported(get_errors: GetErrors, option: str, message: str) -> None:
    system = SYSTEM + "  share: {help: a share, default: 0.5}\n  account: {help: who pays, default: me}\n"
    assert get_errors("plan", "suite.yaml", "--system", "here.yaml", "-S", option, suite=SUITE, here=system) == [
        f"error: {message}"
    ]


def test_a_required_setting_may_not_be_empty(get_errors: GetErrors) -> None:
    args = ("plan", "suite.yaml", "--system", "aurora", "-S", "account=")
    assert get_errors(*args, suite=SUITE) == [f"error: -S account: {UNSAFE}, got ''"]


def test_all_invalid_settings_are_reported(get_errors: GetErrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RANKS_PER_NODE", "many")
    assert get_errors("plan", "suite.yaml", "-S", "threads=x", "-S", "thread=2", suite=SUITE) == [
        "error: -S thread: no such setting of system 'local' (did you mean 'threads'?)",
        "error: -S threads: expected a whole number, such as 1, got 'x'",
        "error: HARNESS_RANKS_PER_NODE: expected a whole number, such as 2, got 'many'",
    ]


def test_all_missing_settings_are_reported(get_errors: GetErrors, tmp_path: Path) -> None:
    system = SYSTEM.replace(THREADS, "account: {help: who pays}\n  queue: {help: where}")
    lines = get_errors("run", "suite.yaml", "--system", "here.yaml", suite=SUITE, here=system)
    settings_file = tmp_path / "config" / "gfm-harness" / "settings.yaml"
    assert lines == [
        f"error: system 'here' needs the setting {name!r} ({why}): give -S {name}=..., HARNESS_{name.upper()}, or"
        f" `here: {{{name}: ...}}` in {settings_file}"
        for name, why in (("account", "who pays"), ("queue", "where"))
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("local: {threads: x}", "1:9: threads: expected a whole number, such as 1, got 'x'"),
        ("local: {thread: 1}", "1:9: thread: no such setting of system 'local' (did you mean 'threads'?)"),
        ("threads: x", "1:1: threads: expected a whole number, such as 1, got 'x'"),
        ("local: 3", "1:1: local: expected a mapping from settings to values"),
        ("local: {threads: [1]}", "1:9: threads: expected text or a number, got ['1']"),
        ("local: {threads: null}", "1:9: threads: expected a whole number, such as 1, got 'null'"),
        ("local: {threads: true}", "1:9: threads: expected a whole number, such as 1, got 'true'"),
        ("local: {threads: }", "1:9: threads: expected text or a number, got null"),
        ("local: {threads: 0x10}", "1:9: threads: expected a whole number, such as 1, got '0x10'"),
        ("local: {threads: 1_000}", "1:9: threads: expected a whole number, such as 1, got '1_000'"),
        ("local: {threads: 1e3}", "1:9: threads: expected a whole number, such as 1, got '1e3'"),
        (
            "local: {telemetry_interval_s: 1_0.5}",
            "1:9: telemetry_interval_s: expected a number, such as 1.0, got '1_0.5'",
        ),
        ("- threads", "1:1: expected a mapping of keys at the top of the file"),
        ("threads: [", "1:11: while parsing a flow node: expected the node content, but found the end of the file"),
        ("threads: !!python/object:os.system x", "1:10: tags are not supported, got 'tag:yaml.org,2002:python/obj"),
    ],
)
def test_invalid_settings_in_the_users_settings_file_are_reported(
    get_errors: GetErrors, tmp_path: Path, text: str, message: str
) -> None:
    settings_file = tmp_path / "config" / "gfm-harness" / "settings.yaml"
    settings_file.parent.mkdir(parents=True)
    settings_file.write_text(text)
    assert get_errors("plan", "suite.yaml", suite=SUITE)[0].startswith(f"error: {settings_file}:{message}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "frontier: {account: abc}\n", "account: abc\n", "local: {}\n"])
def test_a_settings_file_without_this_system_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from harness.cli.main import main

    settings_file = tmp_path / "gfm-harness" / "settings.yaml"
    settings_file.parent.mkdir()
    settings_file.write_text(text)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "ladder"]) == 0


LITERALS = (
    "0123",
    "1e10",
    "1_000",
    "0x10",
    "0o17",
    "yes",
    "true",
    "null",
    "~",
    "1.50",
    "2026-11-28",
    "12:30",
    "+7",
    ".5",
)


@pytest.mark.parametrize("text", LITERALS)
def test_a_value_in_the_settings_file_is_literal_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """An account that consists of digits keeps leading zeros, as on the command line and in a variable."""
    settings_file = tmp_path / "gfm-harness" / "settings.yaml"
    settings_file.parent.mkdir()
    settings_file.write_text(f"aurora: {{account: {text}}}\nqueue: {text}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    aurora = resources.find_resource("systems", "aurora")
    assert {name: load_system(aurora, {}).settings[name] for name in ("account", "queue")} == {
        "account": text,
        "queue": text,
    }
    assert load_system(aurora, {"account": text}).settings["account"] == text
    settings_file.unlink()
    monkeypatch.setenv("HARNESS_ACCOUNT", text)
    assert load_system(aurora, {}).settings["account"] == text


@pytest.mark.parametrize(
    ("text", "default"),
    [("0123", "0123"), ("12.10", "12.10"), ("1e3", "1e3"), ("0x10", "0x10"), ("yes", "yes"), ("true", "true"),
     ("12", 12), ("-1", -1), ("0.5", 0.5), ("5.0", 5.0), ("'12'", "12"), ("2026-11-28", "2026-11-28")],
)  # fmt: skip
def test_a_default_is_a_number_only_if_it_is_written_as_python_prints_it(
    tmp_path: Path, text: str, default: str | float
) -> None:
    path = tmp_path / "here.yaml"
    path.write_text(SYSTEM.replace("default: 1", f"default: {text}").replace("local.sh.j2", "slurm.sh.j2"))
    [value] = load_system(path, {}).settings.values()
    assert (value, type(value)) == (default, type(default))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "laddr"], "no suite named 'laddr' (did you mean 'ladder'?)"),
        (["run", "ladder", "--system", "locl"], "no system named 'locl' (did you mean 'local'?)"),
        (["rn", "ladder"], "unknown command 'rn' (did you mean 'run'?)"),
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (["plan", ""], "no suite named '' (there are: "),
        (["plan", "a" * 5000], "[Errno 36] File name too long: "),
        (["list", "ladder", "--suites", "nowhere"], "nowhere: no such folder"),
        (["run", "ladder", "-n", "fp16"], "suite 'ladder': no case is left by -n, -t and -x"),
        (["plan", "ladder", "--repeat", "0"], "argument --repeat: expected a whole number of at least 1, got '0'"),
        (["plan", "ladder", "--repeat", "x"], "argument --repeat: expected a whole number of at least 1, got 'x'"),
        (
            ["plan", "ladder", "--max-node-hours", "nan"],
            "argument --max-node-hours: expected a number above 0, got 'nan'",
        ),
        (["run", "ladder", "--max-jobs", "-1"], "argument --max-jobs: expected a whole number of at least 1, got '-1'"),
        (["run", "ladder", "--sytem", "local"], "unrecognized arguments: --sytem local"),
        (["run"], "the following arguments are required: SUITE"),
        (["report", "--out", "empty"], "empty/runs: no run folders"),
    ],
)
def test_invalid_command_lines_are_reported(get_errors: GetErrors, args: list[str], message: str) -> None:
    lines = get_errors(*args)
    assert lines[0].startswith(f"error: {message}")
    assert len(lines) == 1
