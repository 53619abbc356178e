"""A benchmark and reproducibility harness for graph foundation models of atomistic data.

A suite says WHAT to measure, a system says WHERE; together they expand into a plan of cases; cases become job scripts
that run the bundled reference implementation; its event logs and the jobs' telemetry become tidy tables; tables become
figures, a report and a verdict on each claim of the paper, and are kept by commit.

    suites/*.yaml --+                                                                    reports/
                    +- plan -- packing -- jobs -- runs/<campaign>/<case>/ -- collect -- analysis -- report
    systems/*.yaml -+                      |             ^   events.jsonl, telemetry      |
                                           +- reference -+                                +- track (across commits)

Arrows point down one list: cli > commands > report > track > analysis > collect > jobs > packing > plan > suites,
systems > language. The reference is a program of its own: it imports nothing of the harness but events, and nothing
else of the harness imports torch.
"""

__version__ = "0.1.0"
