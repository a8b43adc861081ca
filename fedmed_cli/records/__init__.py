"""Every format that fedmed writes, as frozen dataclasses with strict reading and writing; a module for each file.

docs/formats.md describes the fields. JSON records start with `format`, `version` and `fedmed_version`;
what differs from run to run is in the one object `run`.
"""
