"""Readers of the input: the files that an input names, their shards, and rows of sequences.

`selection` finds the files and their format, `tables` (`parquet`, `ipc`) and `jsonl` read shards, `fields` maps columns
to the fields of a sequence, and `vectors` views Arrow lists as arrays.
"""
