"""Configuration: one typed schema, one reader.

`schema` says what can be set, `loading` is the only reader of configuration files and `HEADRACE_*` variables, and
`table` renders the schema for README. Lower layers never import this package: `runtime` hands them plain values.
"""
