"""The cut: a traced source becomes a front, segments between sites, and a head."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir
from attention_proto.folder import NEXT

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.adapters import bias_graph
from attention_export.importing.transformer.clean import ancestors, clean, constant, dims, graph_constant, nodes_between
from attention_export.importing.transformer.interface import DOMAIN, INDEX
from attention_export.importing.transformer.parts import SiteSpec, TransformerParts
from attention_export.importing.transformer.registers import Lifetime, allocate
from attention_export.importing.transformer.rows import rows_depend
from attention_export.importing.transformer.segment import Segment
from attention_export.importing.transformer.source import Source
from attention_export.importing.transformer.trace import BATCH, LENGTH, POSITIONS, TOKENS, TYPES, Trace, trace

OUTSIDE = -1  # stage of a tensor that depends on no query: positions, constants


def cut_source(source: Source) -> TransformerParts:
    """Trace a source and cut it.

    Raises:
        ImportFailure: the source has no such parts, or the parts cannot be written; named by site.
    """
    traced = trace(source)
    clean(traced.model)
    count_by_positions(traced.model.graph, traced.position_base)
    return Cut(source, traced).parts()


def count_by_positions(graph: ir.Graph, base: int) -> None:
    """Let a model that counts its tokens inside read `position_ids` there: 0, 1, .. becomes positions of a row."""
    (positions,) = (value for value in graph.inputs if value.name == POSITIONS)
    for node in list(graph):
        if node.op_type != "Range" or dims(node.outputs[0]) != [LENGTH]:
            continue
        start, step = constant(node.inputs[0]), constant(node.inputs[2])
        if start is None or step is None or (start != 0).any() or (step != 1).any():
            continue
        name = node.outputs[0].name
        first = graph_constant(graph, f"{name}_first", np.array(0, np.int64))
        offset = graph_constant(graph, f"{name}_base", np.array(base, np.int64))
        row = ir.Node("", "Gather", [positions, first], attributes=[ir.AttrInt64("axis", 0)])
        counted = ir.Node("", "Sub", [row.outputs[0], offset])
        graph.insert_before(node, [row, counted])
        counted.outputs[0].shape, counted.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], counted.outputs[0])


@dataclass
class Cut:
    """A traced source with the stage of each tensor."""

    source: Source
    traced: Trace
    carried: dict[ir.Value, Lifetime] = field(default_factory=dict)

    def parts(self) -> TransformerParts:
        """Return the parts."""
        segments = self._segments()
        front = self._front()
        head = self._head()
        for each in (front, *segments, *([head] if head else [])):
            each.check_size()
        base, config = self.traced.position_base, self.source.config
        longest = getattr(config, "max_position_embeddings", None) or 0
        return TransformerParts(
            architecture=self.source.architecture,
            front=front,
            segments=tuple(segments),
            rows_dependent=tuple(_rows_depend(each) for each in segments),
            front_rows_dependent=_rows_depend(front),
            sites=tuple(self._site(index) for index in range(self.sites)),
            query_dim=self._width(self.query),
            hidden_dim=self._width(self.last),
            position_base=base,
            max_tokens=max(0, longest - base),
            takes_token_types=TYPES in front.inputs.values(),
            head=head,
            notes=self.source.notes,
        )

    @property
    def sites(self) -> int:
        """The number of sites."""
        return len(self.traced.sites)

    @cached_property
    def nodes(self) -> list[ir.Node]:
        """Nodes of sites, in the order of computation."""
        nodes = [node for node in self.traced.model.graph if node.domain == DOMAIN]
        return sorted(nodes, key=lambda node: node.attributes[INDEX].as_int())

    @cached_property
    def query(self) -> ir.Value:
        """The input of the first layer."""
        if "hidden_0" not in self.traced.outputs:
            raise ImportFailure(f"{self.source.architecture} tells no hidden states")
        return self.traced.outputs["hidden_0"]

    @cached_property
    def last(self) -> ir.Value:
        """The base model's own output."""
        return self.traced.outputs["last"]

    @cached_property
    def stages(self) -> dict[ir.Value, int]:
        """For each tensor the segment that can make it; `OUTSIDE` if it depends on no query."""
        found = {self.query: 0}
        for node in self.traced.model.graph:
            stage = max((found.get(v, OUTSIDE) for v in node.inputs if v is not None), default=OUTSIDE)
            if node.op_type == "Shape":  # the sizes of a batch are the same everywhere
                stage = OUTSIDE
            elif node.domain == DOMAIN:
                stage = node.attributes[INDEX].as_int() + 1
            for value in node.outputs:
                found.setdefault(value, stage)
        return found

    def _stage(self, value: ir.Value) -> int:
        return self.stages.get(value, OUTSIDE)

    @cached_property
    def outputs(self) -> dict[int, "Output"]:
        """`output` of the sites that have one."""
        found = {index: self._output(index) for index in range(self.sites)}
        return {index: output for index, output in found.items() if output is not None}

    def _output(self, index: int) -> "Output | None":
        """Return the first linear map right behind a site, or else the result of its module."""
        (heads,) = self.nodes[index].outputs
        linear = _linear_map(heads)
        if linear is not None:
            return Output(linear, affine=True)
        returned = self.traced.outputs.get(f"returned_{index}")
        if returned is None or returned is heads or self._stage(returned) != index + 1 or not _is_rows(returned):
            return None
        return Output(returned, affine=False)

    @cached_property
    def hidden(self) -> dict[int, ir.Value]:
        """The hidden state that each segment gives, by segment."""
        found: dict[int, ir.Value] = {}
        last = self._stage(self.last)
        for name, value in self.traced.outputs.items():
            if not name.startswith("hidden_") or value is self.query:
                continue
            stage = self._stage(value)
            if stage < 1 or (stage in found and stage != last):
                raise ImportFailure(
                    f"{name} of {self.source.architecture} is made "
                    + ("before its first attention" if stage < 1 else f"behind site {stage - 1}, as another one is")
                    + ": a layer has no attention, or computes it beside the attention interface of transformers"
                )
            found[stage] = value
        found[last] = self.last
        return found

    def _segments(self) -> list[Segment]:
        """Collect segments from the last to the first, since a later one decides which tensors are carried to it."""
        wanted = [self._targets(k) for k in range(self.sites + 1)]
        bodies: dict[int, _Body] = {}
        for k in reversed(range(self.sites + 1)):
            carried = [value for value, life in self.carried.items() if life.made == k]
            bodies[k] = self._collect(k, [*wanted[k].values(), *carried])
        registers = {value: f"carry_{number}" for value, number in allocate(self.carried).items()}
        return [self._segment(k, bodies[k], wanted[k], registers) for k in range(self.sites + 1)]

    def _targets(self, k: int) -> dict[str, ir.Value]:
        """Return the results of segment k by name, without the carried ones."""
        targets: dict[str, ir.Value] = {}
        if k < self.sites:
            for name, value in zip("qkv", self.nodes[k].inputs, strict=True):
                assert value is not None
                targets[name] = value
        if k - 1 in self.outputs:
            targets["output"] = self.outputs[k - 1].value
        if k in self.hidden:
            targets["hidden"] = self.hidden[k]
        return targets

    def _collect(self, k: int, targets: Iterable[ir.Value]) -> "_Body":
        """Collect the nodes of segment k, and record the tensors carried to it."""
        heads = self.nodes[k - 1].outputs[0] if k else self.query

        def stop(value: ir.Value) -> bool:
            return value is heads or OUTSIDE < self._stage(value) < k or _is_shape(value)

        found = ancestors(targets, stop)
        given: dict[ir.Value, str] = {}
        for value in self._ordered(found):
            if value is heads:
                given[value] = "heads" if k else "query"
            elif OUTSIDE < self._stage(value) < k:
                made = self._stage(value)
                self.carried.setdefault(value, Lifetime(made, k))
                given[value] = ""
            elif value.is_graph_input():
                if value.name == TOKENS:
                    raise ImportFailure(
                        f"{self._behind(k)} reads the tokens beside the results of the layers before it"
                    )
                given[value] = str(value.name)
        return _Body(heads, given)

    def _ordered(self, values: set[ir.Value]) -> list[ir.Value]:
        """Return values in the order of computation."""
        graph = self.traced.model.graph
        order = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        return [value for value in order if value in values]

    def _segment(self, k: int, body: "_Body", targets: dict[str, ir.Value], registers: dict[ir.Value, str]) -> Segment:
        inputs = {value: name or registers[value] for value, name in body.inputs.items()}
        inputs = {body.heads: inputs.get(body.heads, "heads" if k else "query"), **inputs}
        made = sorted((registers[v], v) for v, life in self.carried.items() if life.made == k)
        taken = set(inputs.values())
        outputs = targets | {(NEXT + name if name in taken else name): value for name, value in made}
        for name, value in outputs.items():
            if not _is_rows(value):
                raise ImportFailure(
                    f"{self._behind(k)} gives {name} of shape {dims(value)}; [B, T, width] was expected"
                )
        return self._part(f"segment {k}", inputs, outputs, body.heads)

    def _part(
        self,
        name: str,
        inputs: dict[ir.Value, str],
        outputs: dict[str, ir.Value],
        measure: ir.Value,
        *,
        rows: bool = False,
    ) -> Segment:
        nodes = tuple(nodes_between(outputs.values(), inputs))
        ordered = dict(sorted(inputs.items(), key=lambda item: item[1]))
        part = Segment(name, nodes, ordered, outputs, measure, lambda key: self.source.value(key).numpy(), rows=rows)
        for value in part.parameters():
            if (missing := str(value.name).removeprefix("model.")) in self.source.missing:
                self.source.value(missing)  # raises
        return part

    def _front(self) -> Segment:
        found = ancestors([self.query], _is_shape)
        if any(value.producer() in self.nodes for value in found):
            raise ImportFailure(f"{self.source.architecture} attends before its first layer")
        given = {value: str(value.name) for value in self.traced.model.graph.inputs if value in found}
        (tokens,) = (value for value in self.traced.model.graph.inputs if value.name == TOKENS)
        return self._part("the embedding", given, {"query": self.query}, tokens)

    def _head(self) -> Segment | None:
        logits, last = self.traced.outputs.get("logits"), self.last
        if logits is None:
            return None
        found = ancestors([logits], lambda value: value is last or _is_shape(value))
        inside = range(self._stage(last))  # stages of the layers before the last one
        others = [value for value in found - {last} if value.is_graph_input() or self._stage(value) in inside]
        if others:
            raise ImportFailure(
                f"the head of {self.source.architecture} reads more than the last hidden state; `--task base` leaves "
                "it out"
            )
        return self._part("the head", {last: "hidden"}, {"logits": logits}, last, rows=True)

    def _site(self, index: int) -> SiteSpec:
        call, output = self.traced.sites[index], self.outputs.get(index)
        stages = (
            *(["output"] if output else []),
            *(["contributions"] if output and output.affine else []),
            *(["hidden"] if index + 1 in self.hidden else []),
        )
        return SiteSpec(
            name=str(index),
            path=call.path,
            heads=call.heads,
            key_value_heads=call.key_value_heads,
            head_dim=call.head_dim,
            value_head_dim=call.value_head_dim,
            output_dim=self._width(output.value) if output else 0,
            scale=call.scale,
            softcap=call.softcap,
            causal=call.causal,
            window=call.window,
            bias=bias_graph(call.module),
            stages=stages,
        )

    def _width(self, value: ir.Value) -> int:
        shape = dims(value)
        if shape is None or not isinstance(shape[-1], int):
            raise ImportFailure(f"the width of {value.name} in {self.source.architecture} is not constant")
        return shape[-1]

    def _behind(self, k: int) -> str:
        return f"the part behind site {k - 1} ({self.traced.sites[k - 1].path})" if k else "the part before site 0"


@dataclass(frozen=True)
class Output:
    """`output` of a site, and whether it is one linear map of the heads."""

    value: ir.Value
    affine: bool


@dataclass(frozen=True)
class _Body:
    """A segment's inputs by name; carried ones are named later."""

    heads: ir.Value
    inputs: dict[ir.Value, str]


def _rows_depend(part: Segment) -> bool:
    return rows_depend(part.nodes, part.inputs, part.outputs.values())


def _is_shape(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Shape"


def _is_rows(value: ir.Value) -> bool:
    """Whether a tensor is [B,T,width]."""
    shape = dims(value)
    return shape is not None and shape[:2] == [BATCH, LENGTH] and len(shape) == 3 and isinstance(shape[2], int)


def _linear_map(heads: ir.Value) -> ir.Value | None:
    """Return heads.M + b, or heads.M, where that is all that is made of the heads."""
    users = [use.node for use in heads.uses()]
    if len(users) != 1 or users[0].op_type != "MatMul" or users[0].inputs[0] is not heads:
        return None
    matrix = users[0].inputs[1]
    if matrix is None or not _is_parameter(matrix):
        return None
    product = users[0].outputs[0]
    users = [use.node for use in product.uses()]
    if len(users) == 1 and users[0].op_type == "Add":
        added = [value for value in users[0].inputs if value is not product]
        if len(added) == 1 and added[0] is not None and _is_parameter(added[0]):
            return users[0].outputs[0]
    return product if product.shape is not None else None


def _is_parameter(value: ir.Value) -> bool:
    """Whether a tensor is a parameter, or made of one alone."""
    node = value.producer()
    if node is None:
        return value.is_initializer()
    return all(each is None or _is_parameter(each) for each in node.inputs) and node.op_type != "Shape"
