"""Exact networks in standard operators, and exported ones, give the same integers."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.exact.int8_convolutions import QuantisedConv2d, QuantisedConvTranspose2d
from italic.coding.exact.portable import LatticeContexts, PixelPredictor, exported, portable
from italic.coding.streams.codec import Codec
from italic.models.lattice import LatticeNetwork
from italic.schedule import Schedule

IMAGES = np.random.default_rng(0).integers(90, 160, (2, 20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def network() -> LatticeNetwork:
    torch.manual_seed(0)
    floating = LatticeNetwork(8, 1, 3, 2, 8, 2, 4).eval()
    with torch.no_grad():
        for parameter in floating.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 4).encode(IMAGES)

    exact = make_exact(floating, calibrate)
    assert isinstance(exact, LatticeNetwork)
    return exact


def test_streams_of_a_network_in_standard_operators_are_the_same(network: LatticeNetwork) -> None:
    other = copy.deepcopy(network)
    for name in ("entry", "known_entry", "body", "exit", "context"):
        setattr(other, name, portable(getattr(network, name)))
    streams = [Codec(one, NoBase(), Schedule(), 6).encode(IMAGES) for one in (network, other)]
    assert streams[0] == streams[1]


def predictor_inputs(network: LatticeNetwork, count: int) -> tuple[Tensor, ...]:
    places = network.window**2
    return (
        torch.randint(-127, 128, (count, 3 * places + 3), dtype=torch.int8),
        torch.randint(0, 2, (count, places), dtype=torch.int8),
        torch.randint(0, 7, (count,)),
        torch.randn(count, network.features),
    )


def directly(
    network: LatticeNetwork, rows: Tensor, known: Tensor, level: Tensor, context: Tensor
) -> Tensor:
    x = network.known_entry(known) + network.stride_embedding(level)
    return network.exit(network.body(network.entry(rows) + x + context))


@pytest.mark.slow
def test_exported_parts_give_the_same_numbers(network: LatticeNetwork) -> None:
    with torch.no_grad():
        program = exported(PixelPredictor(network), predictor_inputs(network, 40), rows=True)
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert all(name.startswith("aten.") for name in names)  # standard operators alone
        for count in (1, 77):
            inputs = predictor_inputs(network, count)
            assert torch.equal(program.module()(*inputs), directly(network, *inputs))
        lattice, level = torch.randn(2, 4, 11, 9), torch.tensor([2])
        program = exported(LatticeContexts(network), (lattice, level), rows=False)
        assert network.context is not None
        expected = network.context._tile(lattice, network.context_embedding.weight[2])
        assert torch.equal(program.module()(lattice, level), expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimised", [False, True])
def test_onnx_runtime_gives_the_same_numbers(
    network: LatticeNetwork, tmp_path: Path, optimised: bool
) -> None:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    lattice, level = torch.randn(2, 4, 11, 9), torch.tensor([2])
    examples, more = (predictor_inputs(network, count) for count in (40, 77))
    for program, inputs in (
        (exported(PixelPredictor(network), examples, rows=True), more),
        (exported(LatticeContexts(network), (lattice, level), rows=False), (lattice, level)),
    ):
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "part.onnx")
        session = onnxruntime.InferenceSession(
            tmp_path / "part.onnx", options, providers=["CPUExecutionProvider"]
        )
        names = [item.name for item in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))
        with torch.no_grad():
            assert np.array_equal(found, program.module()(*inputs).numpy())


def test_layers_without_a_portable_form_are_refused() -> None:
    strided = QuantisedConv2d(nn.Conv2d(3, 4, 2, stride=2))
    for layer in (strided, QuantisedConvTranspose2d(nn.ConvTranspose2d(3, 4, 2, 2))):
        with pytest.raises(ValueError, match="has no portable form"):
            portable(nn.Sequential(layer))
