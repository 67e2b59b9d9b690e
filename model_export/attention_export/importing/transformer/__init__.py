"""Any transformer that `transformers` loads, as segments and sites."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from attention_export.importing.transformer.comparison import compare
from attention_export.importing.transformer.cut import cut_source
from attention_export.importing.transformer.heads import make_head
from attention_export.importing.transformer.pooling import read_pooling
from attention_export.importing.transformer.sides import ALONE, SOURCE, TARGET, embeddings
from attention_export.importing.transformer.source import load_source
from attention_export.importing.transformer.tokenizer import ImportedTokenizer, read_tokenizer
from attention_export.importing.transformer.version import write_version
from attention_export.manifest import new_version, read_manifest, version_folder, write_manifest

Progress = Callable[[str], None]


def import_transformer(
    folder: Path,
    repository: Path,
    name: str,
    version: int = 1,
    *,
    task: str | None = None,
    pool: str = "",
    license_: str = "",
    source: str = "",
    progress: Progress = lambda _: None,
) -> Path:
    """Write a checkpoint as a version, compare it with the checkpoint, and move it into the repository if it is equal.

    Args:
        folder: of config.json, weights and tokenizer, which `transformers` loads.
        repository: the folder of models; made when absent.
        name: of the model.
        version: 1 or above.
        task: of the head to import; by default, that of config.json's `architectures`.
        pool: the pooling of `hidden` into an embedding; by default, as the checkpoint's files say.
        license_: of the weights, an SPDX expression.
        source: the origin of the weights; the folder's name by default.
        progress: called with a line for each step, for each part that is left out, and for the memory it took.

    Returns:
        The version's folder.

    Raises:
        ManifestError: the name or version is not valid in a repository.
        FileExistsError: the version exists already.
        ImportFailure: the checkpoint is of a kind that is not imported, or a file is missing or unreadable.
        Mismatch: the version differs from the checkpoint, and is removed.
    """
    target = new_version(repository, name, version)
    progress(f"reading {folder}")
    checkpoint = load_source(folder, task)
    pooling = read_pooling(folder, pool)
    tokenizer, source_tokenizer = _tokenizers(folder, checkpoint.skeleton)
    progress(f"tracing {checkpoint.architecture}, and cutting it at its attentions")
    parts = cut_source(checkpoint)
    with version_folder(target) as scratch:
        head, notes = make_head(checkpoint, parts)
        further = () if source_tokenizer is None else source_tokenizer.notes
        for note in dict.fromkeys((*parts.notes, *further, *tokenizer.notes, *pooling.notes, *notes)):
            progress(f"note: {note}")
        segments = sum(len(chain.segments) for chain in parts.chains)
        progress(f"writing {parts.site_count} sites and {segments} segments")
        manifest = write_version(
            parts,
            tokenizer,
            scratch,
            source_tokenizer=source_tokenizer,
            head=head,
            pooling=pooling,
            token_types=getattr(checkpoint.config, "type_vocab_size", 2) if parts.target.takes_token_types else 0,
            license_=license_,
            source=source or folder.resolve().name,
        )
        write_manifest(scratch, manifest)
        memory = f"the most memory used: {_peak()} for the export"
        parity = compare(checkpoint, scratch, progress)
        manifest = read_manifest(scratch)  # the comparison may have taken stages away
        manifest.parity.CopyFrom(parity)
        write_manifest(scratch, manifest)
    progress(f"{memory}, {_peak()} with the comparison")
    progress(f"wrote {target}")
    return target


def _tokenizers(folder: Path, model: PreTrainedModel) -> tuple[ImportedTokenizer, ImportedTokenizer | None]:
    """Return the tokenizer of a model's texts, and in an encoder-decoder that of the source's."""
    sizes = {side: len(each.weight) for side, each in embeddings(model).items()}
    if SOURCE in sizes:
        return read_tokenizer(folder, sizes[TARGET], target=True), read_tokenizer(folder, sizes[SOURCE])
    return read_tokenizer(folder, sizes[ALONE]), None


def _peak() -> str:
    """Return the process's greatest resident size so far, in words."""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
