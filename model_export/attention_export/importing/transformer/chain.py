"""A chain: the computation of one sequence, as a front and segments between sites."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir
from attention_proto.folder import NEXT

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.adapters import bias_graph
from attention_export.importing.transformer.clean import ancestors, dims, nodes_between
from attention_export.importing.transformer.interface import SiteCall
from attention_export.importing.transformer.parts import ChainParts, SiteSpec
from attention_export.importing.transformer.registers import Lifetime, allocate
from attention_export.importing.transformer.rows import rows_depend
from attention_export.importing.transformer.segment import Segment
from attention_export.importing.transformer.sides import TOKENS, TYPES, Side, embeddings
from attention_export.importing.transformer.source import Source
from attention_export.importing.transformer.trace import BATCH, Trace

OUTSIDE = -1  # stage of a tensor that depends on no query: positions, constants


@dataclass(frozen=True)
class TracedSite:
    """An attention in a traced graph.

    Attributes:
        name: the site's, `3` or `decoder.3`.
        node: of q, k and v.
        call: of the attention function.
        is_cross: whether k and v come from another chain.
        returned: the result of the module that attends; None if it is unknown.
    """

    name: str
    node: ir.Node
    call: SiteCall
    is_cross: bool
    returned: ir.Value | None


@dataclass
class Chain:
    """The computation of one sequence in a traced source.

    Attributes:
        source: gives the values of parameters.
        traced: the graph.
        side: the sequence.
        sites: in the order of computation.
        results: tensors that the last segment gives beside `output` and `hidden`, by name.
        carried: tensors that segments leave to later ones.
    """

    source: Source
    traced: Trace
    side: Side
    sites: tuple[TracedSite, ...]
    results: dict[str, ir.Value] = field(default_factory=dict)
    carried: dict[ir.Value, Lifetime] = field(default_factory=dict)

    def parts(self) -> ChainParts:
        """Return the parts.

        Raises:
            ImportFailure: the chain has no such parts, or a part cannot be written; named by site.
        """
        segments = self._segments()
        front = self._front()
        for each in (front, *segments):
            each.check_size()
        return ChainParts(
            side=self.side.number,
            front=front,
            segments=tuple(segments),
            rows_dependent=tuple(_rows_depend(each) for each in segments),
            front_rows_dependent=_rows_depend(front),
            sites=tuple(self._site(index) for index in range(len(self.sites))),
            query_dim=self._width(self.query),
            hidden_dim=self._width(self.last),
            takes_token_types=TYPES in front.inputs.values(),
            vocabulary_size=len(embeddings(self.source.skeleton)[self.side].weight),
        )

    @cached_property
    def query(self) -> ir.Value:
        """The input of the first layer."""
        name = self.side.name("hidden_0")
        if name not in self.traced.outputs:
            raise ImportFailure(f"{self.source.architecture} tells no hidden states")
        return self.traced.outputs[name]

    @cached_property
    def last(self) -> ir.Value:
        """The base model's own output."""
        return self.traced.outputs[self.side.name("last")]

    @cached_property
    def stages(self) -> dict[ir.Value, int]:
        """For each tensor the segment that can make it; `OUTSIDE` if it depends on no query."""
        found = {self.query: 0}
        behind = {site.node: index + 1 for index, site in enumerate(self.sites)}
        for node in self.traced.model.graph:
            given = max((found.get(v, OUTSIDE) for v in node.inputs if v is not None), default=OUTSIDE)
            # The sizes of a batch are the same everywhere.
            stage = OUTSIDE if node.op_type == "Shape" else behind.get(node, given)
            for value in node.outputs:
                found.setdefault(value, stage)
        return found

    def _stage(self, value: ir.Value) -> int:
        return self.stages.get(value, OUTSIDE)

    @cached_property
    def outputs(self) -> dict[int, "Output"]:
        """`output` of the sites that have one."""
        found = {index: self._output(index) for index in range(len(self.sites))}
        return {index: output for index, output in found.items() if output is not None}

    def _output(self, index: int) -> "Output | None":
        """Return the first linear map right behind a site, or else the result of its module."""
        (heads,) = self.sites[index].node.outputs
        linear = _linear_map(heads)
        if linear is not None:
            return Output(linear, affine=True)
        returned = self.sites[index].returned
        if returned is None or returned is heads or self._stage(returned) != index + 1 or not self._is_rows(returned):
            return None
        return Output(returned, affine=False)

    @cached_property
    def hidden(self) -> dict[int, ir.Value]:
        """The hidden state that each segment gives, by segment."""
        found: dict[int, ir.Value] = {}
        last = self._stage(self.last)
        for name, value in self.traced.outputs.items():
            if not name.startswith(self.side.name("hidden_")) or value is self.query:
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
        numbers = range(len(self.sites) + 1)
        wanted = [self._targets(k) for k in numbers]
        bodies: dict[int, _Body] = {}
        for k in reversed(numbers):
            carried = [value for value, life in self.carried.items() if life.made == k]
            bodies[k] = self._collect(k, [*wanted[k].values(), *carried])
        registers = {value: f"carry_{number}" for value, number in allocate(self.carried).items()}
        return [self._segment(k, bodies[k], wanted[k], registers) for k in numbers]

    def _targets(self, k: int) -> dict[str, ir.Value]:
        """Return the results of segment k by name, without the carried ones."""
        targets: dict[str, ir.Value] = {}
        if k < len(self.sites):
            site = self.sites[k]
            for name, value in zip("q" if site.is_cross else "qkv", site.node.inputs, strict=False):
                assert value is not None
                targets[name] = value
        if k - 1 in self.outputs:
            targets["output"] = self.outputs[k - 1].value
        if k in self.hidden:
            targets["hidden"] = self.hidden[k]
        return targets | (self.results if k == len(self.sites) else {})

    def _collect(self, k: int, targets: Iterable[ir.Value]) -> "_Body":
        """Collect the nodes of segment k, and record the tensors carried to it."""
        heads = self.sites[k - 1].node.outputs[0] if k else self.query

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
                given[value] = self._input(value, self._behind(k))
                if given[value] == TOKENS:
                    raise ImportFailure(
                        f"{self._behind(k)} reads the tokens beside the results of the layers before it"
                    )
        return _Body(heads, given)

    def _input(self, value: ir.Value, where: str) -> str:
        """Return the name that an input of the traced graph has in a file.

        Raises:
            ImportFailure: it is an input of another chain.
        """
        if value.name not in self.side.inputs:
            raise ImportFailure(f"{where} reads {value.name}, which only cross attentions may attend to")
        return self.side.inputs[value.name]

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
            if not self._is_rows(value):
                raise ImportFailure(
                    f"{self._behind(k)} gives {name} of shape {dims(value)}; [B, {self.side.length}, width] was "
                    "expected"
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
        self._check_sizes(name, nodes)
        ordered = dict(sorted(inputs.items(), key=lambda item: item[1]))
        part = Segment(name, nodes, ordered, outputs, measure, lambda key: self.source.value(key).numpy(), rows=rows)
        for value in part.parameters():
            if (missing := str(value.name).removeprefix("model.")) in self.source.missing:
                self.source.value(missing)  # raises
        return part

    def _check_sizes(self, name: str, nodes: Iterable[ir.Node]) -> None:
        """Refuse a part that reads the length of another sequence, since sizes are read from the part's own inputs."""
        for node in nodes:
            if node.op_type == "Shape" and node.inputs[0] is not None:
                start, end = (node.attributes[key].as_int() for key in ("start", "end"))
                if any(size not in (BATCH, self.side.length) for size in (dims(node.inputs[0]) or [])[start:end]):
                    raise ImportFailure(f"{name} reads the length of the other sequence")

    def _front(self) -> Segment:
        where = "the embedding"
        found = ancestors([self.query], _is_shape)
        if any(value.producer() is site.node for site in self.sites for value in found):
            raise ImportFailure(f"{self.source.architecture} attends before its first layer")
        given = {v: self._input(v, where) for v in self.traced.model.graph.inputs if v in found}
        tokens = next(v for v in self.traced.model.graph.inputs if v.name == self.side.name(TOKENS))
        return self._part(where, given, {"query": self.query}, tokens)

    def head(self) -> Segment | None:
        """Return the graph of logits; None for a base model.

        Raises:
            ImportFailure: logits depend on more than rows of the last hidden state.
        """
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
        head = self._part("the head", {last: "hidden"}, {"logits": logits}, last, rows=True)
        head.check_size()
        return head

    def _ends_layer(self, index: int) -> bool:
        """Whether the layer of a site ends behind it, or behind the cross attentions that follow."""
        if self.sites[index].is_cross:
            return False
        behind = index + 1
        while behind < len(self.sites) and self.sites[behind].is_cross:
            behind += 1
        return any(k in self.hidden for k in range(index + 1, behind + 1))

    def _site(self, index: int) -> SiteSpec:
        site, output = self.sites[index], self.outputs.get(index)
        call = site.call
        stages = (
            *(["output"] if output else []),
            *(["contributions"] if output and output.affine else []),
            *(["hidden"] if self._ends_layer(index) else []),
        )
        return SiteSpec(
            name=site.name,
            is_cross=site.is_cross,
            path=call.path,
            heads=call.heads,
            key_value_heads=call.key_value_heads,
            head_dim=call.head_dim,
            value_head_dim=call.value_head_dim,
            output_dim=self._width(output.value) if output else 0,
            scale=call.scale,
            softcap=call.softcap,
            causal=call.causal and not site.is_cross,  # some modules say it of all their attentions
            window=call.window,
            bias=bias_graph(call.module),
            stages=stages,
            sinks=tuple(self.source.value(f"{call.path}.sinks").tolist()) if call.sinks else (),
        )

    def _width(self, value: ir.Value) -> int:
        shape = dims(value)
        if shape is None or not isinstance(shape[-1], int):
            raise ImportFailure(f"the width of {value.name} in {self.source.architecture} is not constant")
        return shape[-1]

    def _behind(self, k: int) -> str:
        if not k:
            return f"the part before site {self.sites[0].name}"
        return f"the part behind site {self.sites[k - 1].name} ({self.sites[k - 1].call.path})"

    def _is_rows(self, value: ir.Value) -> bool:
        """Whether a tensor is [B,T,width], T being the length of this chain's sequence."""
        shape = dims(value)
        rows = [BATCH, self.side.length]
        return shape is not None and shape[:2] == rows and len(shape) == 3 and isinstance(shape[2], int)


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
