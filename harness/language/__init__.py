"""The language of suites and systems: YAML that knows its places, expressions, extension, agreement of its parts."""
