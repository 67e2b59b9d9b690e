"""The ONNX graphs of a site: attention on q, k and v alone, by its shape and the constants of its scores.

Written as text, as a `torch.onnx.export` of each takes seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx.parser
from attention_proto.attention.v1.attention_pb2 import AttendGraph, File

from attention_export.graphs import OPSET, WEIGHTS_AFTER_SOFTMAX
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.parts import SiteSpec

IR_VERSION = 10


@dataclass(frozen=True)
class SiteGraph:
    """A graph of a site: q [B, T, H * Dh], k, v [, mask] -> heads [B, T, H * Dv] [, weights [B, H, T, S]].

    Attributes:
        file: name.
        content: ONNX.
        weights: whether it gives weights.
        mask: whether it takes a mask.
        explicit: whether products and softmax are spelled out, for devices whose `Attention` returns no weights.
    """

    file: str
    content: bytes
    weights: bool
    mask: bool
    explicit: bool

    def entry(self, file: File) -> AttendGraph:
        """Return the entry of the graph in the manifest."""
        devices = ["cuda"] if self.explicit else ["cpu"] if self.weights or self.mask else []
        return AttendGraph(file=file, weights=self.weights, mask=self.mask, devices=devices)


@dataclass(frozen=True)
class SiteShape:
    """The constants that the graphs of a site depend on; sites of one shape share these files.

    Attributes:
        heads: H.
        key_value_heads: Hkv.
        head_dim: Dh.
        value_head_dim: Dv.
        scale: the factor of q.k.
        softcap: the bound of the scores; 0 for none.
        sinks: [H], the score of one key more of each head, with a value of zeros, which no mask hides; empty for none.

    Raises:
        ImportFailure: ONNX's Attention cannot compute it.
    """

    heads: int
    key_value_heads: int
    head_dim: int
    value_head_dim: int
    scale: float
    softcap: float
    sinks: tuple[float, ...] = ()

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
        if self.sinks and (self.softcap or len(self.sinks) != self.heads):
            raise ImportFailure(
                f"an attention of {self.heads} heads with {len(self.sinks)} sinks and the softcap {self.softcap:g} "
                "cannot be written: each head has one sink, and no softcap bounds it"
            )

    @classmethod
    def of(cls, site: SiteSpec) -> "SiteShape":
        """Return a site's shape."""
        sizes = (site.heads, site.key_value_heads, site.head_dim, site.value_head_dim)
        return cls(*sizes, site.scale, site.softcap or 0.0, site.sinks)

    def graphs(self) -> Iterator[SiteGraph]:
        """Yield the graphs, the cheapest first."""
        for weights in (False, True):
            for mask in (False, True):
                file = ("explain" if weights else "attend") + ("-masked" if mask else "") + ".onnx"
                content = self._onnx(self._attention(weights=weights, mask=mask), weights=weights, mask=mask)
                yield SiteGraph(file, content, weights, mask, explicit=False)
        content = self._onnx(self._explicit(), weights=True, mask=True)
        yield SiteGraph("explain-explicit.onnx", content, weights=True, mask=True, explicit=True)

    def _onnx(self, nodes: str, *, weights: bool, mask: bool) -> bytes:
        """Return the file of a graph, of its nodes as text."""
        inputs = [
            f"float[B,T,{self.heads * self.head_dim}] q",
            f"float[B,S,{self.key_value_heads * self.head_dim}] k",
            f"float[B,S,{self.key_value_heads * self.value_head_dim}] v",
            *(["float[mask_B,mask_H,T,S] mask"] if mask else []),
        ]
        outputs = [f"float[B,T,{self.heads * self.value_head_dim}] heads"]
        outputs += [f"float[B,{self.heads},T,S] weights"] if weights else []
        header = f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>'
        signature = f"site ({', '.join(inputs)}) => ({', '.join(outputs)})"
        model = onnx.parser.parse_model(f"{header} {signature} {{{nodes}}}")
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _attention(self, *, weights: bool, mask: bool) -> str:
        """Return the nodes of a graph with ONNX's Attention."""
        attributes = (
            f"q_num_heads: int = {self.heads}, kv_num_heads: int = {self.key_value_heads}, "
            f"scale: float = {self.scale!r}, softcap: float = {self.softcap!r}"
        )
        if weights:
            attributes += f", qk_matmul_output_mode: int = {WEIGHTS_AFTER_SOFTMAX}"
        given = ["q", "k", "v", *(["mask"] if mask else [])]
        if not self.sinks:
            results = 'heads, "", "", weights' if weights else "heads"
            return f"{results} = Attention <{attributes}> ({', '.join(given)})"
        results = 'heads, "", "", with_sink' if weights else "heads"
        return f"""
            {self._with_sinks(mask=mask)}
            {results} = Attention <{attributes}> ({", ".join(f"{name}_sink" for name in given)})
            {WITHOUT_SINK if weights else ""}"""

    def _with_sinks(self, *, mask: bool) -> str:
        """Return nodes that put one key more behind the others, whose product with a query is the head's sink.

        Queries and keys are one component wider: sink / scale in queries, 0 in keys, 1 in the last key.
        """
        shared, width = self.key_value_heads, self.head_dim
        return f"""
            {_ints("q_split", 0, 0, self.heads, width)}
            q_rows = Reshape (q, q_split)
            {_floats("sinks", [each / self.scale for each in self.sinks], 1, 1, self.heads, 1)}
            rows = Shape <start: int = 0, end: int = 2> (q)
            {_ints("by_head", self.heads, 1)}
            sink_shape = Concat <axis: int = 0> (rows, by_head)
            sink = Expand (sinks, sink_shape)
            q_wide = Concat <axis: int = 3> (q_rows, sink)
            {_ints("q_joined", 0, 0, self.heads * (width + 1))}
            q_sink = Reshape (q_wide, q_joined)
            {_ints("k_split", 0, 0, shared, width)}
            k_rows = Reshape (k, k_split)
            {_ints("wider", 0, 0, 0, 0, 0, 0, 0, 1)}
            k_wide = Pad (k_rows, wider)
            {_ints("k_joined", 0, 0, shared * (width + 1))}
            keys = Reshape (k_wide, k_joined)
            {_floats("last_key", ([0.0] * width + [1.0]) * shared, 1, 1, shared * (width + 1))}
            batch = Shape <start: int = 0, end: int = 1> (k)
            {_ints("one_row", 1, 1)}
            last_shape = Concat <axis: int = 0> (batch, one_row)
            last = Expand (last_key, last_shape)
            k_sink = Concat <axis: int = 1> (keys, last)
            {_ints("longer", 0, 0, 0, 0, 1, 0)}
            v_sink = Pad (v, longer)
            {"mask_sink = Pad (mask, wider)" if mask else ""}"""

    def _explicit(self) -> str:
        """Return the nodes of the graph with products and softmax; a row that is masked whole gives zeros."""
        capped = f"""
            {_floats("softcap", [self.softcap])}
            parts = Div (scaled, softcap)
            bounded = Tanh (parts)
            scores = Mul (bounded, softcap)"""
        return f"""
            {_ints("q_split", 0, 0, self.heads, self.head_dim)}
            q_rows = Reshape (q, q_split)
            queries = Transpose <perm: ints = [0, 2, 1, 3]> (q_rows)
            {self._by_head("k", self.head_dim)}
            keys = Transpose <perm: ints = [0, 2, 3, 1]> (k_by_head)
            products = MatMul (queries, keys)
            {_floats("scale", [self.scale])}
            {"scaled" if self.softcap else "scores"} = Mul (products, scale)
            {capped if self.softcap else ""}
            {self._softmax_with_sinks() if self.sinks else SOFTMAX}
            {self._by_head("v", self.value_head_dim)}
            values = Transpose <perm: ints = [0, 2, 1, 3]> (v_by_head)
            sums = MatMul (weights, values)
            sums_by_row = Transpose <perm: ints = [0, 2, 1, 3]> (sums)
            {_ints("joined", 0, 0, self.heads * self.value_head_dim)}
            heads = Reshape (sums_by_row, joined)"""

    def _softmax_with_sinks(self) -> str:
        return f"""
            masked = Add (scores, mask)
            {_floats("sinks", self.sinks, 1, self.heads, 1, 1)}
            sizes = Shape <start: int = 0, end: int = 3> (masked)
            {_ints("one", 1)}
            sink_shape = Concat <axis: int = 0> (sizes, one)
            sink = Expand (sinks, sink_shape)
            all = Concat <axis: int = 3> (masked, sink)
            with_sink = Softmax <axis: int = -1> (all)
            {WITHOUT_SINK}"""

    def _by_head(self, name: str, width: int) -> str:
        """Return nodes: [B, S, Hkv * width] -> `NAME_by_head` [B, S, H, width], each row for all heads of a group."""
        return f"""
            {_ints(f"{name}_groups", 0, 0, self.key_value_heads, 1, width)}
            {name}_rows = Reshape ({name}, {name}_groups)
            {_ints(f"{name}_group", 1, 1, 1, self.heads // self.key_value_heads, 1)}
            {name}_shared = Expand ({name}_rows, {name}_group)
            {_ints(f"{name}_split", 0, 0, self.heads, width)}
            {name}_by_head = Reshape ({name}_shared, {name}_split)"""


SOFTMAX = """
            lowest = Constant <value_float: float = -inf> ()
            shown = Greater (mask, lowest)
            shown_numbers = Cast <to: int = 1> (shown)
            keys_axis = Constant <value_ints: ints = [-1]> ()
            attends = ReduceMax <keepdims: int = 1> (shown_numbers, keys_axis)
            attending = Cast <to: int = 9> (attends)
            masked = Add (scores, mask)
            zero = Constant <value_float: float = 0.0> ()
            safe = Where (attending, masked, zero)
            powers = Softmax <axis: int = -1> (safe)
            weights = Mul (powers, attends)"""
WITHOUT_SINK = """
            begin = Constant <value_ints: ints = [0]> ()
            end = Constant <value_ints: ints = [-1]> ()
            weights = Slice (with_sink, begin, end, end)"""


def _ints(name: str, *numbers: int) -> str:
    return f"{name} = Constant <value_ints: ints = [{', '.join(map(str, numbers))}]> ()"


def _floats(name: str, numbers: Sequence[float], *shape: int) -> str:
    dims = ",".join(map(str, shape))
    values = ", ".join(repr(float(each)) for each in numbers)
    return f"{name} = Constant <value: tensor = float{f'[{dims}]' if shape else ''} {{{values}}}> ()"
