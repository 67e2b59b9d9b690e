"""Training on user data: a file of sequences and labels, a block, and a classifier for each label.

Properties of the served model: words are separated by spaces; case and trailing punctuation are ignored; words outside
the training rows are read as the unknown token, which is trained too; texts have at most `Options.max_tokens` tokens,
and those behind the length of the longest row have no position vector, since none was trained. Vectors go to the block
unchanged: scale vectors to about length 1, and add positions if order matters.
"""

from attention_export.own_data.checkpoint import CheckpointError
from attention_export.own_data.learning import Options, OwnData, own_data
from attention_export.own_data.rows import DataError

__all__ = ["CheckpointError", "DataError", "Options", "OwnData", "own_data"]
