"""File scoring: attention over each row of a file, resumable after any end of the run.

Shards of rows go from a reader (`readers`) through an engine (`scorer`, `engines`) to the output (`output`). `run`
joins the three by a `plan`, `spec` resolves the requested outputs, `retry` waits for a server, `interrupts` handles
signals, `progress` displays the run, and `cli` is the command.
"""
