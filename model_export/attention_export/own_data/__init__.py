"""Learning from a user's own data: a file of sequences and labels, and one of the blocks with a head for each label.

What the served model then does: a word is what stands between spaces, whatever its case and the punctuation behind it;
words that were not learned from are read as the unknown token, which is trained too; texts may be as long as the
longest row. Vectors go to the block as they are: bring them to about the length 1, and if order matters, put it in.
"""

from attention_export.own_data.checkpoint import CheckpointError
from attention_export.own_data.learning import Options, own_data
from attention_export.own_data.rows import DataError

__all__ = ["CheckpointError", "DataError", "Options", "own_data"]
