"""The language of suites and systems: YAML that knows its places, expressions, extension, types of fields."""
