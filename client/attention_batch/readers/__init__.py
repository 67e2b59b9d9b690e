"""Readers of the input: files, shards of files, and rows of sequences.

`selection` finds the files and the format, `tables` (`parquet`, `ipc`) and `jsonl` read shards, `fields` maps columns
to the fields of a sequence, and `vectors` views Arrow lists as arrays.
"""
