"""Writes an int8 version of a float32 one, if its error and speed are within bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attention_proto.attention.v1.attention_pb2 import Manifest, Quantization
from attention_proto.folder import TRANSFORMER, named_files

from attention_export.int8.examples import read_data
from attention_export.int8.measuring import cpu_graphs, measure
from attention_export.int8.rounding import to_int8
from attention_export.manifest import (
    ManifestError,
    add_file,
    doubled_bytes,
    new_version,
    read_files,
    read_manifest,
    version_folder,
    write_manifest,
)

Progress = Callable[[str], None]


class BoundExceeded(ValueError):
    """The int8 version's error or speed is out of bounds; it was not written."""


@dataclass(frozen=True)
class Bounds:
    """The bounds within which an int8 version is written.

    Attributes:
        weight_error: the largest |error| of a weight, between 0 and 1.
        output_error: the largest |error| of an output, as a share of the largest |output|.
        speedup: the least ratio of float32's time to int8's; 0 is no bound.
    """

    weight_error: float = 0.05
    output_error: float = 0.05
    speedup: float = 1.1

    def check(self, found: Quantization) -> None:
        """Compare the measurement with the bounds.

        Raises:
            BoundExceeded: a bound is exceeded; the message has every figure.
        """
        outputs = max(error.relative for error in found.errors if error.stage == "output")
        weights = max(error.largest for error in found.errors if error.stage == "weights")
        # `not <=` also catches NaN.
        if not (outputs <= self.output_error and weights <= self.weight_error and found.speedup >= self.speedup):
            raise BoundExceeded(
                f"not written: weights are off by up to {weights:.3g} (bound {self.weight_error:g}), outputs by up to "
                f"{outputs:.2%} of the largest (bound {self.output_error:.2%}), and int8 is {found.speedup:.2f} x as "
                f"fast as float32 (bound {self.speedup:g}): {1e3 * found.int8_seconds:.3f} against "
                f"{1e3 * found.float32_seconds:.3f} ms a sequence"
            )


def quantize(
    folder: Path,
    data: Path,
    version: int,
    *,
    repository: Path | None = None,
    bounds: Bounds | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Make an int8 version, measure it against float32, and move it into the repository if it is within bounds.

    The matrices of the first segment, `project`, and of every CPU attention graph become int8. Fronts, heads, later
    segments and the graph for CUDA stay in float32; `pool` and `combine` are left out. The same float32 version gives
    the same graphs.

    Args:
        folder: a float32 version's folder.
        data: the file of sequences to measure on; see `read_data`.
        version: the version to write, 1 or above.
        repository: the folder of models to write to; by default that of `folder`.
        bounds: the bounds of error and speed-up; `Bounds()` by default.
        progress: called with a line for each step.

    Returns:
        The new version's folder.

    Raises:
        FileExistsError: the version exists already.
        ManifestError: the folder differs from its manifest, is int8 already, or has no matrices.
        BadData: a row of the data is no valid input of the model.
        BoundExceeded: the int8 version is out of bounds; nothing is written.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
    _check_source(folder, manifest)
    target = new_version(repository or folder.parent.parent, folder.parent.name, version)
    contents = read_files(folder, manifest)
    examples = read_data(data, folder, manifest)
    with version_folder(target) as written:
        progress(f"quantizing {folder}")
        _write_files(written, manifest, contents)
        progress(f"measuring on {len(examples)} sequences")
        manifest.quantization.CopyFrom(measure(folder, written, manifest, examples))
        manifest.ClearField("parity")
        (bounds or Bounds()).check(manifest.quantization)
        write_manifest(written, manifest)
    progress(f"wrote {target}")
    return target


def _check_source(folder: Path, manifest: Manifest) -> None:
    if manifest.HasField("quantization"):
        raise ManifestError(f"{folder} is int8 already; quantize the version it was made from")
    if manifest.block == TRANSFORMER:
        raise ManifestError(
            f"{folder} is an imported {manifest.architecture}: only versions of the blocks that this project defines "
            "are quantized"
        )
    if not manifest.segments:
        raise ManifestError(f"{folder} is a {manifest.block}, which has no matrices: there is nothing to quantize")


def _write_files(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    """Write every file of the version, and enter its hash in the manifest."""
    chosen = {graph.file.name for layer in manifest.layers for graph in cpu_graphs(layer)}
    chosen.add(manifest.segments[0].graph.name)
    for layer in manifest.layers:
        layer.ClearField("pool")  # its products differ, so pooled outputs would be float32
        layer.stages[:] = ["output"]  # rounded sums are not linear, so contributions would not add up
    del manifest.segments[len(manifest.layers) :]
    for file in named_files(manifest):
        content = contents[file.name]
        file.CopyFrom(add_file(folder, file.name, to_int8(content) if file.name in chosen else content))
    manifest.doubled_bytes = doubled_bytes(folder, manifest)
