"""A benchmark and reproducibility harness for graph foundation models of atomistic data.

A suite says WHAT to measure, a system says WHERE; together they expand into a plan of cases; cases become job scripts
that run the bundled reference implementation; its event logs and the jobs' telemetry become tidy tables; tables become
figures, a report and a verdict on each claim of the paper, and are kept by commit.

    suites/*.yaml --+                                                             claims
                    +- planning -- execution -- runs/<campaign>/<case>/ -- results -- experiments -- report
    systems/*.yaml -+                  |              ^ events                 ^ telemetry    +- tracking (commits)
                                       +- reference --+

Imports point one way: cli > report > tracking > experiments > document, importers > telemetry > results, stats >
execution > planning > config > reference > protocol, host. The reference implementation runs in jobs only: no other
room imports it, and it imports protocol and host alone.
"""

__version__ = "0.1.0"
