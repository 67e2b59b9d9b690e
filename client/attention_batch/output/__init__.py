"""The output: a part for each shard, the journal of finished parts, and one file assembled from all parts.

`sink` writes parts (`columns` in Arrow, `json_lines` in JSON), `durable` makes files survive a crash, `journal` records
finished shards, and `assembly` makes the output file.
"""
