"""A benchmark and reproducibility harness for graph foundation models of atomistic data.

A suite says WHAT to measure, a system says WHERE; together they expand into a plan of cases; cases become job scripts
that run the bundled reference implementation; its event logs and the jobs' telemetry become tables; tables become
figures, a report and a verdict on each claim of a paper, and are kept by commit.

    suites/*.yaml --+                                                                     claims/*.yaml
                    +- planning -- execution -- runs/<campaign>/<case>/ -- results -- experiments -- report
    systems/*.yaml -+                  |             ^ events.jsonl         ^ telemetry     |
                                       +- reference -+                                      +- tracking (across commits)

Imports point down one list: cli > drills > report > claims > tracking > experiments > document, importers > telemetry >
results > execution > planning > config > stats, protocol, host. The reference implementation is a program of its own:
it imports only stats, protocol and host of the rest, and nothing else of the harness imports torch.
"""

__version__ = "0.2.0"
