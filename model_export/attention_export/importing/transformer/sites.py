"""The ONNX graphs of a site: attention on q, k and v alone, by its shape and the constants of its scores."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from attention_export.blocks import Dims, DotProduct
from attention_export.graphs import Attend, Graph, attend_graphs, to_onnx
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.parts import SiteSpec

NAMES = {"query": "q", "output": "heads"}  # of a block without matrices -> of a site


@dataclass(frozen=True)
class SiteShape:
    """The constants that the graphs of a site depend on; sites of one shape share their files.

    Attributes:
        heads: H.
        key_value_heads: Hkv.
        head_dim: Dh.
        value_head_dim: Dv.
        scale: the factor of q.k.
        softcap: the bound of the scores; 0 for none.

    Raises:
        ImportFailure: ONNX's Attention cannot compute it.
    """

    heads: int
    key_value_heads: int
    head_dim: int
    value_head_dim: int
    scale: float
    softcap: float

    def __post_init__(self) -> None:
        sizes = (self.heads, self.key_value_heads, self.head_dim, self.value_head_dim)
        if min(sizes) < 1 or self.heads % self.key_value_heads:
            raise ImportFailure(
                f"an attention of {self.heads} heads on {self.key_value_heads} key-value heads, {self.head_dim} and "
                f"{self.value_head_dim} wide, is not what ONNX's Attention computes: each size must be 1 or more, and "
                "the heads a multiple of the key-value heads"
            )
        if not self.scale > 0 or self.softcap < 0:  # `not >` also catches NaN
            raise ImportFailure(
                f"an attention with the scale {self.scale:g} and the softcap {self.softcap:g} is not what ONNX's "
                "Attention computes: the scale must be above 0, the softcap 0 or above"
            )

    @classmethod
    def of(cls, site: SiteSpec) -> "SiteShape":
        """Return a site's shape."""
        return cls(
            site.heads, site.key_value_heads, site.head_dim, site.value_head_dim, site.scale, site.softcap or 0.0
        )

    def graphs(self) -> Iterator[tuple[Graph, Attend]]:
        """Yield the graphs, the cheapest first: q [B, T, H * Dh], k, v [, mask] -> heads [B, T, H * Dv] [, weights]."""
        dims = Dims(
            query=self.heads * self.head_dim,
            key=self.key_value_heads * self.head_dim,
            value=self.key_value_heads * self.value_head_dim,
            heads=self.heads,
            head=self.head_dim,
            value_head=self.value_head_dim,
            key_value_heads=self.key_value_heads,
        )
        for graph, module in attend_graphs(DotProduct(dims, scale=self.scale, softcap=self.softcap)):
            inputs, outputs = (
                {NAMES.get(name, name): shape for name, shape in shapes.items()}
                for shapes in (graph.inputs, graph.outputs)
            )
            yield replace(graph, inputs=inputs, outputs=outputs), module


@functools.cache  # an export takes seconds
def site_files(shape: SiteShape) -> tuple[tuple[str, bytes, Attend], ...]:
    """Return the graphs of a shape, the cheapest first: file name, ONNX, and the module that describes it."""
    return tuple((graph.file, to_onnx(graph), module) for graph, module in shape.graphs())
