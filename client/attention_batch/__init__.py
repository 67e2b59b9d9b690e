"""Scoring files: a million sequences, killed at any point, nothing lost.

A row's way, by file names: `source` (`parquet`, `jsonl`; `fields` say which column is what) -> `rows` -> `scorer` (one
of `engines` answers) -> `spec` (what is kept of an answer) -> `arrow` -> `sink`.
`run` joins them, `patience` waits for a server, `journal` remembers what is done, `progress` shows it, and `cli` is the
command.
"""
