"""Programs whose operators have translations are traced once."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from attention_export.operators import skip_decompositions
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram


class OfOperators(nn.Module):
    """A function of a sequence [T, 4], as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def translated(x: Tensor) -> Tensor:
    return nn.functional.dropout(x.double().float(), training=False).softmax(-1).to(torch.float32)


def with_an_operator_to_decompose(x: Tensor) -> Tensor:
    return nn.functional.one_hot(x.argmax(-1), 4) * x


def of_sizes(x: Tensor) -> Tensor:
    repeated = [x.repeat_interleave(2, each) for each in (0, -1)]
    return torch.stack([repeated[0], -repeated[0]], -1).flatten(-2) + repeated[1].repeat_interleave(2, 0)


def written_in_place(x: Tensor) -> Tensor:
    return torch.zeros_like(x).add_(x).masked_fill_(x > 0, 3.0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch by torch
@pytest.mark.parametrize(
    ("function", "traced_again"),
    [(translated, 0), (with_an_operator_to_decompose, 1), (of_sizes, 1), (written_in_place, 1)],
)
def test_a_program_is_traced_again_where_it_must_be(
    function: Callable[[Tensor], Tensor], traced_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph computes what the module computes; only unknown operators, and writes, cost a second tracing."""
    times = []
    decompose = ExportedProgram.run_decompositions
    monkeypatch.setattr(
        ExportedProgram, "run_decompositions", lambda program, table: times.append(1) or decompose(program, table)
    )
    examples = (torch.zeros(5, 4),)
    program = torch.export.export(OfOperators(function).eval(), examples, dynamic_shapes=({0: Dim("T")},))
    exported = torch.onnx.export(skip_decompositions(program), examples, dynamo=True, optimize=False, verbose=False)
    assert exported is not None and len(times) == traced_again
    model = exported.model_proto
    assert "Dropout" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, function(x.clone()).numpy(), rtol=1e-6)
