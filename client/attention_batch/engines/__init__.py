"""Engines, and the processes that score shards.

`client` calls a service and `local` computes with the server's core; `inline` scores shards with either in this
process. `processes` and `ray` spread shards over workers (`task`, `worker`) on this machine and on a cluster.
"""
