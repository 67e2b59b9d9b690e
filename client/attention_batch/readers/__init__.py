"""Readers of the input: files, shards of files, and rows of sequences.

`selection` finds the files and the format, `tables` (`parquet`, `ipc`) and `text` (`jsonl`, `delimited`) read shards,
`fields` maps columns to the fields of a sequence by way of `columns` and `documents`, and `vectors` views Arrow lists
as arrays. `files` and `remote` open files, here and at addresses; `inflation` bounds the size of decompressed content.
"""
