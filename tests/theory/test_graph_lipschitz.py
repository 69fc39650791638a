"""Lipschitz constants of graphs: operators against matrices, gradients in balls, and the NumPy route."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.graph import constants as graph_constants
from theory.graph.constants import lipschitz_constants, norm_product, operator_norm, path_norm
from theory.graph.lipschitz import local_lipschitz
from theory.graph.network import Conv2d, Dense, Graph, Linear, Node, Source, adjoint, from_relu_network
from theory.graph.reader import read
from theory.laws import graph as laws
from theory.laws import relu as relu_laws
from theory.laws.adjoint import values_of_adjoint
from theory.laws.strategies import EXTREME, arrays, attack_norms, convolutions, graphs, relu_networks, tensors
from theory.norms import dual, norm
from theory.relu import lipschitz as relu_lipschitz
from theory.relu.exact_lipschitz import exact_local_lipschitz
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

AGREEMENT = 1e-9  # two sound values of one constant differ by their allowances for rounding
UNDERFLOW = 1e-290  # and for underflow

ABSOLUTE = ReLUNetwork(  # g_0 - g_1 = 1 - |x|
    (np.array([[1.0], [-1.0]]), np.array([[-1.0, -1.0], [0.0, 0.0]])), (np.zeros(2), np.array([1.0, 0.0]))
)
# With stride 2 and dilation 2 an entry stands at all three places of the kernel, not at two.
DILATED = Conv2d(torch.ones(1, 1, 1, 3).double(), (1, 2), (0, 0), (1, 2), 1, (1, 1, 13))


def norm_of(operation: Linear, inputs: tuple[int, ...], *, q: float) -> float:
    zero = torch.zeros(1, *inputs, dtype=torch.float64)
    outputs = tuple(operation.apply(zero).shape[1:])
    graph = Graph((Node(Source(), (), inputs),), torch.float64, torch.device("cpu"))
    return float(operator_norm(operation, inputs, outputs, graph=graph, q=q))


@pytest.mark.parametrize("materialised", [True, False])
@given(q=st.sampled_from([1.0, 2.0]), data=st.data())
@example(q=2.0, data=None)
def test_operator_norms_of_convolutions_bound_their_matrices(materialised, q, data):
    if data is None:
        operation, inputs = DILATED, DILATED.inputs
    else:
        inputs = (data.draw(st.integers(1, 2)), data.draw(st.integers(2, 5)), data.draw(st.integers(2, 5)))
        operation, _ = data.draw(convolutions(inputs))
    with pytest.MonkeyPatch.context() as patch:
        if not materialised:
            patch.setattr(graph_constants, "DENSE_ENTRIES", 0)
        laws.law_bounds_operator(lambda a, inputs: norm_of(a, inputs, q=q), operation, inputs, q=q)


@given(graph=graphs(), q=st.sampled_from([1.0, 2.0]))
def test_operator_norms_bound_every_operator_and_are_exact_for_dense_ones(graph, q):
    for node in graph.nodes:
        if isinstance(node.operation, laws.OPERATORS):
            operation, inputs = node.operation, graph.nodes[node.inputs[0]].shape
            laws.law_bounds_operator(lambda a, inputs: norm_of(a, inputs, q=q), operation, inputs, q=q)
            if isinstance(operation, Dense):
                matrix = operation.weight
                exact = torch.linalg.matrix_norm(matrix, ord=2) if q == 2 else matrix.abs().sum(1).max()
                assert norm_of(operation, inputs, q=q) <= float(exact) * (1 + AGREEMENT) + UNDERFLOW


def test_the_law_rejects_power_iteration():
    """A few steps of power iteration estimate the spectral norm from below."""
    operation = Conv2d(
        torch.arange(9.0).reshape(1, 1, 3, 3).double() - 3, (1, 1), (1, 1), (1, 1), 1, (1, 4, 4)
    )

    def power_iteration(operation, inputs):
        x = torch.ones(1, *inputs).double()
        for _ in range(3):
            x = operation.transpose(operation.apply(x))
            x = x / x.norm()
        return float(operation.apply(x).norm())

    laws.law_bounds_operator(lambda a, i: norm_of(a, i, q=2.0), operation, (1, 4, 4), q=2.0)
    with pytest.raises(AssertionError):
        laws.law_bounds_operator(power_iteration, operation, (1, 4, 4), q=2.0)
    with pytest.raises(AssertionError):  # overlap counted without the dilation
        laws.law_bounds_operator(lambda *_: math.sqrt(3 * 2), DILATED, DILATED.inputs, q=2.0)


# A dead layer between two large ones: what may be lost to underflow is multiplied by both.
DEAD_BETWEEN = ReLUNetwork(
    (np.array([[0.0, 2.5e11]]), np.array([[0.0]]), np.array([[0.0], [2.5e11]])),
    (np.zeros(1), np.zeros(1), np.zeros(2)),
)


@given(net=relu_networks(scales=EXTREME) | relu_networks(), p=attack_norms())
@example(net=DEAD_BETWEEN, p=2.0)
def test_constants_of_dense_networks_agree_with_the_numpy_route(net, p):
    graph = from_relu_network(net)
    for ours, theirs in (
        (path_norm, relu_lipschitz.path_norm),
        (norm_product, relu_lipschitz.norm_product),
        (lipschitz_constants, relu_lipschitz.lipschitz_constants),
    ):
        found, expected = ours(graph, p=p).numpy(), theirs(net, p=p)
        with np.errstate(over="ignore", invalid="ignore"):
            assert (found >= expected * (1 - AGREEMENT)).all()
        # What overflows or underflows on the way is infinite or enlarged here, and exact there.
        if max(abs(np.log10(np.abs(w[w != 0]))).max(initial=0) for w in net.weights) < 50:
            largest = math.prod(max(np.abs(w).max(), 1.0) for w in net.weights)
            np.testing.assert_allclose(found, expected, rtol=AGREEMENT, atol=UNDERFLOW * largest)


@settings(max_examples=50)
@given(net=relu_networks(max_hidden=3), p=attack_norms())
def test_constants_bound_every_activation_pattern(net, p):
    def constants(net, *, p):
        return lipschitz_constants(from_relu_network(net), p=p).numpy()

    relu_laws.law_bounds_every_gradient(constants, net, p=p)


@st.composite
def balls(draw: st.DrawFn, graph: Graph):
    """Two centres, predicted labels and radii."""
    x = draw(tensors((2, *graph.nodes[0].shape)))
    radius = torch.tensor([draw(st.sampled_from([0.0, 0.1, 0.5, 2.0])) for _ in range(2)]).double()
    return x, graph.scores(x).argmax(1), radius


@settings(max_examples=50)
@given(
    graph=graphs(),
    p=attack_norms(),
    effort=st.sampled_from([2, 2, 1, 0]),
    relaxed=st.booleans(),
    data=st.data(),
)
def test_local_constants_bound_difference_quotients_and_gradients(graph, p, effort, relaxed, data):
    x, y, radius = data.draw(balls(graph))
    constants = partial(local_lipschitz, effort=effort, relaxed=relaxed)
    laws.law_bounds_difference_quotients(constants, graph, x, y, radius, p=p)
    laws.law_bounds_generic_gradients(constants, graph, x, y, radius, p=p)


class Around(torch.nn.Module):
    """What is ``inside``, and its own input once more, or twice."""

    def __init__(self, inside: torch.nn.Module, *, twice: bool = False) -> None:
        super().__init__()
        self.inside, self.twice = inside, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x + self.inside(x)
        return total + x if self.twice else total


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("effort", [0, 1, 2])
@pytest.mark.parametrize(
    "block",
    [
        Around(torch.nn.Identity()),
        Around(torch.nn.Dropout()),
        Around(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU()), twice=True),
        torch.nn.Sequential(Around(torch.nn.Identity(), twice=True), torch.nn.ReLU()),
    ],
)
def test_what_a_sum_reads_twice_counts_twice(block, effort, p):
    """Constants at radius 0 are the gradient's norms, here by autograd; values read twice were taken once."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 6), torch.nn.ReLU(), block, torch.nn.Linear(6, 5), torch.nn.ReLU()
    net = torch.nn.Sequential(*layers, torch.nn.Linear(5, 3)).double().eval()
    x = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    scores = net(x)
    y = scores.argmax(1)
    found = local_lipschitz(read(net, (4,)), x.detach(), y, p=p, radius=torch.zeros(20), effort=effort)
    for other in range(3):
        margins = scores.gather(1, y[:, None])[:, 0] - scores[:, other]
        (gradient,) = torch.autograd.grad(margins.sum(), x, retain_graph=True)
        truth = torch.linalg.vector_norm(gradient, ord=dual(p), dim=1)
        assert (found[:, other] >= truth * (1 - 1e-9)).all()
        if effort == 2:
            torch.testing.assert_close(found[:, other].detach(), truth, rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_more_effort_never_gives_a_larger_constant(graph, p, data):
    x, y, radius = data.draw(balls(graph))
    none, less, most = (
        local_lipschitz(graph, x, y, p=p, radius=radius, effort=effort) for effort in range(3)
    )
    assert (none >= less).all()
    assert (less >= most).all()


@settings(max_examples=25)
@given(graph=graphs(), p=attack_norms(), data=st.data())
def test_global_constants_bound_difference_quotients(graph, p, data):
    x, y, radius = data.draw(balls(graph))
    for table in (path_norm, norm_product):

        def constants(graph, x, y, *, p, radius, table=table):
            return table(graph, p=p)[y]

        laws.law_bounds_difference_quotients(constants, graph, x, y, radius, p=p)


@settings(max_examples=25)
@given(
    net=relu_networks(width=2, max_depth=3, max_hidden=3, scales=(1.0,)),
    radius=st.sampled_from([0.1, 0.5, 2.0]),
    data=st.data(),
)
@example(net=ABSOLUTE, radius=0.5, data=None)
def test_local_constants_bound_every_pattern_that_meets_the_ball(net, radius, data):
    width = net.weights[0].shape[1]
    x = np.full(width, 0.25) if data is None else data.draw(arrays((width,)))
    y = int(net.scores(x[None]).argmax())
    found = local_lipschitz(
        from_relu_network(net),
        torch.tensor(x[None]),
        torch.tensor([y]),
        p=math.inf,
        radius=torch.tensor([radius]),
    )
    laws.law_bounds_every_pattern(found[0].numpy(), net, x, y, radius)


@given(net=relu_networks(scales=(1.0,)), p=attack_norms(), data=st.data())
def test_radius_zero_gives_the_gradient_where_no_unit_is_at_its_kink(net, p, data):
    x = data.draw(arrays((1, net.weights[0].shape[1])))
    hidden, generic = x, True
    matrix = np.eye(x.shape[1])
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        z = hidden @ weight.T + bias
        generic &= bool((np.abs(z) > 1e-9).all())
        hidden, matrix = np.maximum(z, 0), (z[0] > 0)[:, None] * (weight @ matrix)
    if not generic:
        return
    y = net.scores(x).argmax(axis=1)
    rows = (net.weights[-1][y] - net.weights[-1]) @ matrix
    found = local_lipschitz(
        from_relu_network(net), torch.tensor(x), torch.tensor(y), p=p, radius=torch.zeros(1)
    )
    truth = norm(rows, p=dual(p))
    np.testing.assert_allclose(found[0], truth, rtol=1e-9, atol=1e-9 * truth.max(initial=0) + UNDERFLOW)


@settings(max_examples=25)
@given(graph=graphs(dtype=torch.float32), p=attack_norms(), data=st.data())
def test_float32_constants_hold_for_the_float64_network(graph, p, data):
    exact = laws.in_float64(graph)
    x, y, radius = data.draw(balls(exact))

    def local(_, x, y, *, p, radius):
        return local_lipschitz(graph, x, y, p=p, radius=radius).double()

    laws.law_bounds_difference_quotients(local, exact, x, y, radius, p=p)
    assert (lipschitz_constants(graph, p=p).double() >= lipschitz_constants(exact, p=p) * (1 - 1e-4)).all()


@given(graph=graphs(), data=st.data())
def test_the_adjoint_is_the_graph_of_the_gradient(graph, data):
    """With the derivatives at x in place of the activations it gives what automatic differentiation gives."""
    x = data.draw(tensors((1, *graph.nodes[0].shape))).requires_grad_()
    cotangent = data.draw(tensors((1, graph.classes)))
    values = graph.values(x)
    for i in graph.activations:
        if (values[graph.nodes[i].inputs[0]] == 0).any():
            return
    (expected,) = torch.autograd.grad((values[-1] * cotangent).sum(), x)
    derivatives = {i: (values[graph.nodes[i].inputs[0]] > 0).double() for i in graph.activations}
    found = values_of_adjoint(adjoint(graph), cotangent, derivatives)[-1]
    assert (found - expected).abs().max() <= laws.ROUNDING * (1 + expected.abs().max())


def test_laws_reject_unsound_constants():
    graph = from_relu_network(ABSOLUTE)
    x, y, radius = torch.tensor([[0.25]]).double(), torch.tensor([0]), torch.tensor([0.5]).double()

    def halved(graph, x, y, *, p, radius):
        return local_lipschitz(graph, x, y, p=p, radius=radius) / 2

    def at_the_origin(graph, x, y, *, p, radius):
        return local_lipschitz(BENT, 0 * x, y, p=p, radius=0 * radius)

    for law in (laws.law_bounds_difference_quotients, laws.law_bounds_generic_gradients):
        law(local_lipschitz, graph, x, y, radius, p=2.0)
        with pytest.raises(AssertionError):
            law(halved, graph, x, y, radius, p=2.0)
        with pytest.raises(AssertionError):
            law(at_the_origin, BENT, 0 * x, y, 4 * radius, p=2.0)
    with pytest.raises(AssertionError):
        laws.law_bounds_every_pattern(np.array([0.0, 0.9]), ABSOLUTE, np.array([0.25]), 0, 0.5)


# g_0 = relu(x - 1): flat at the origin, steep beyond 1.
BENT_NETWORK = ReLUNetwork((np.array([[1.0]]), np.array([[1.0], [0.0]])), (np.array([-1.0]), np.zeros(2)))
BENT = from_relu_network(BENT_NETWORK)


def test_constants_of_another_type_are_rounded_up():
    """0.7 rounds down to float32, 1e300 overflows it; the true constant is 1."""
    x, y, radius = torch.tensor([[2.0]]), torch.tensor([0]), torch.tensor([0.5])
    for table, least in ((0.7, 0.7), (1e300, 1.0)):
        constants = torch.full((2, 2), table, dtype=torch.float64)
        for graph in (BENT, from_relu_network(BENT_NETWORK, dtype=torch.float32)):
            found = local_lipschitz(graph, x, y, p=2.0, radius=radius, constants=constants)
            assert found.dtype == graph.dtype
            assert least <= float(found[0, 1]) <= least * (1 + 1e-5)
            narrow = local_lipschitz(graph, x, y, p=2.0, radius=radius, constants=constants.float())
            assert narrow.dtype == graph.dtype


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("radius", [np.ones(2), np.float64(1.0), np.array([-1.0]), np.array([np.inf])])
def test_the_exact_constant_wants_one_finite_radius_per_example(radius):
    with pytest.raises(InvalidInput, match=r"radius has|radius\[0\] is inf"):
        exact_local_lipschitz(BENT_NETWORK, np.ones((1, 1)), np.array([0]), p=2.0, radius=radius)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 3.0}, "p is 3.0"),
        ({"y": torch.tensor([2])}, "labels must lie in"),
        ({"y": torch.tensor([True])}, "y has dtype torch.bool"),
        ({"x": torch.ones(1, 1, 1)}, "x has shape"),
        ({"x": torch.ones(1, 1, dtype=torch.complex128)}, "x has dtype torch.complex128; .* real numbers"),
        ({"radius": torch.tensor([-1.0])}, "radius has a negative"),
        ({"radius": torch.ones(2)}, "radius has shape"),
        ({"constants": torch.ones(3, 3)}, "constants has shape"),
        ({"effort": 3}, "effort is 3"),
        ({"constants": torch.full((2, 2), math.nan)}, "constants has a negative or NaN"),
    ],
)
def test_illegal_calls_name_the_argument(changes, message):
    arguments = {"x": torch.ones(1, 1), "y": torch.tensor([0]), "p": 2.0, "radius": torch.ones(1)} | changes
    with pytest.raises(InvalidInput, match=message):
        local_lipschitz(BENT, arguments.pop("x"), arguments.pop("y"), **arguments)
    for table in (path_norm, norm_product, lipschitz_constants):
        with pytest.raises(InvalidInput, match="p is 1"):
            table(BENT, p=1.0)


def test_inputs_beyond_the_type_of_the_graph_are_refused():
    """Their scores would be NaN, or certain."""
    graph = from_relu_network(BENT_NETWORK, dtype=torch.float32)
    with pytest.raises(InvalidInput, match="x has an entry beyond torch.float32; scale it, or read"):
        graph.scores(torch.tensor([[1e39]], dtype=torch.float64))
