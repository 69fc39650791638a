"""Every attack keeps the contract of a measuring instrument, and comes close to the known truth."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import nn

from empirical.attacks import (
    carlini_wagner,
    closest,
    ddn,
    deepfool,
    fmn,
    fmn_init,
    minimal_fgs,
    minimal_pgd,
    minimal_rfgs,
    pgd,
    rfgs,
    shorten,
    strongest,
)
from empirical.attacks.active import margins
from empirical.attacks.fgsm import loss_gradient_sign
from empirical.attacks.geometry import norm, project, unit_step
from empirical.attacks.strongest import STEPS
from empirical.ensembles import MLPEnsemble, from_modules, from_networks, to_module
from empirical.measurement import verified_radius
from tests.empirical.boxes import distance_in_box, radius_in_box
from theory.linear import radius
from theory.types import BinaryLinear, InvalidInput, LinearClassifier, ReLUNetwork

INF, BOX = math.inf, (0.0, 1.0)

MINIMAL = {
    ("deepfool", 2.0): lambda n, x, y, box=None: deepfool(n, x, y, p=2, box=box),
    ("deepfool", INF): lambda n, x, y, box=None: deepfool(n, x, y, p=INF, box=box),
    ("ddn", 2.0): lambda n, x, y, box=None: ddn(n, x, y, steps=60, box=box),
    ("fmn", 2.0): lambda n, x, y, box=None: fmn(n, x, y, p=2, steps=60, box=box),
    ("fmn", INF): lambda n, x, y, box=None: fmn(n, x, y, p=INF, steps=60, box=box),
    ("fmn_init", 2.0): lambda n, x, y, box=None: fmn_init(n, x, y, x, p=2, box=box),
    ("fmn_init", INF): lambda n, x, y, box=None: fmn_init(n, x, y, x, p=INF, box=box),
    ("carlini_wagner", 2.0): lambda n, x, y, box=None: carlini_wagner(n, x, y, steps=40, searches=5, box=box),
    ("minimal_pgd", 2.0): lambda n, x, y, box=None: minimal_pgd(n, x, y, p=2, steps=15, halvings=6, box=box),
    ("minimal_pgd", INF): lambda n, x, y, box=None: minimal_pgd(
        n, x, y, p=INF, steps=15, halvings=6, box=box
    ),
    ("minimal_fgs", INF): lambda n, x, y, box=None: minimal_fgs(n, x, y, box=box),
    ("minimal_rfgs", INF): lambda n, x, y, box=None: minimal_rfgs(n, x, y, box=box),
    ("strongest", 2.0): lambda n, x, y, box=None: strongest(n, x, y, p=2, effort=1, box=box),
    ("strongest", INF): lambda n, x, y, box=None: strongest(n, x, y, p=INF, effort=1, box=box),
}
# How far beyond the exact radius an attack's mean may lie on binary linear models, without and with a box:
# the attack's resolution at these few steps. R+FGSM starts off at random and has none.
SLACK = {
    "deepfool": (0.0201, 0.0201),
    "ddn": (0.005, 0.02),
    "fmn": (0.005, 0.005),
    "fmn_init": (0.005, 0.02),
    "carlini_wagner": (0.03, 0.03),
    "minimal_pgd": (0.02, 0.02),
    "minimal_fgs": (1e-6, 1e-4),
    "strongest": (1e-6, 0.001),
}
# With several classes an attack may end at another class than the nearest.
SEVERAL = 0.06
CASES = [pytest.param(attack, p, id=f"{name}-{p}") for (name, p), attack in MINIMAL.items()]
CLOSE = [
    pytest.param(attack, p, *SLACK[name], id=f"{name}-{p}")
    for (name, p), attack in MINIMAL.items()
    if name in SLACK
]


def linear_problem(seed=0, features=12, examples=40, classes=4):
    """Non-uniform weights, so that l_2 and l_inf optima differ; examples in the unit box, many at walls."""
    rng = np.random.default_rng(seed)
    clf = LinearClassifier(
        rng.normal(size=(classes, features)) * np.geomspace(0.1, 3, features), rng.normal(size=classes)
    )
    x = np.clip(rng.normal(0.3, 0.5, size=(examples, features)), 0, 1)
    return clf, x, clf.scores(x).argmax(1)


def ensemble_of(clf):
    return from_networks([ReLUNetwork((clf.weight,), (clf.bias,))])


def random_ensemble(widths=(8, 12, 9, 4), members=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = tuple(draw(members, b, a) for a, b in zip(widths, widths[1:], strict=False))
    biases = tuple(draw(members, b) for b in widths[1:])
    nets = MLPEnsemble(weights, biases, tuple(torch.ones_like(w, dtype=torch.bool) for w in weights))
    x = torch.rand(20, widths[0], generator=generator, dtype=torch.float64).mul(2).sub(0.5).clamp(0, 1)
    return nets, x, torch.randint(0, widths[-1], (20,), generator=generator)


def law_close_to_the_truth(attack, p, exact, nets, x, y, slack):
    """Never below the exact radius, found wherever that is finite, and on average within the slack."""
    tx, ty = torch.tensor(x), torch.tensor(y)
    measured = verified_radius(nets, tx, ty, *attack(nets, tx, ty), p=p)[0].numpy()
    known = np.isfinite(exact)
    assert known.mean() > 0.5
    assert (measured >= exact * (1 - 1e-9)).all()
    assert np.isfinite(measured[known]).all()
    assert measured[known].mean() <= (1 + slack) * exact[known].mean()


@pytest.mark.parametrize(("attack", "p", "free", "boxed"), CLOSE)
@pytest.mark.parametrize("classes", [2, 4])
def test_close_to_exact_on_linear_models(attack, p, free, boxed, classes):
    clf, x, y = linear_problem(classes=classes)
    nets, more = ensemble_of(clf), SEVERAL if classes > 2 else 0.0
    exact = radius(clf, x, y, p=p)
    law_close_to_the_truth(attack, p, exact, nets, x, y, free + more)
    in_box = np.array(
        [radius_in_box(clf.weight, clf.bias, a, b, p=p, box=BOX) for a, b in zip(x, y, strict=True)]
    )
    assert (in_box >= exact * (1 - 1e-12)).all()
    assert in_box.mean() > 1.01 * exact.mean()

    def in_the_box(nets, x, y):
        return attack(nets, x, y, box=BOX)

    law_close_to_the_truth(in_the_box, p, in_box, nets, x, y, boxed + more)


@pytest.mark.parametrize(("attack", "p", "free", "boxed"), CLOSE)
def test_a_constant_runner_up_hides_no_nearer_boundary(attack, p, free, boxed):
    """Pruning leaves classes of constant scores: the smallest margin is flat, another boundary near."""
    clf, x, _ = linear_problem(classes=4)
    weight = np.where(np.arange(4)[:, None] == 3, clf.weight, 0.0)
    shift = float((x @ weight[3]).mean())
    clf, y = LinearClassifier(weight, np.array([1.12, 1.01, 0.97, -2.0 - shift])), np.zeros(len(x), dtype=int)
    assert (np.sort(clf.scores(x)[:, 1:3]).max(1) < 1.12).all()
    live = BinaryLinear(clf.weight[3], float(clf.bias[3]) - 1.12)
    nets, exact = ensemble_of(clf), radius(clf, x, y, p=p)
    assert np.median(exact) == pytest.approx(np.median(radius(live, x, y, p=p)))
    law_close_to_the_truth(attack, p, exact, nets, x, y, free)

    def in_the_box(nets, x, y):
        return attack(nets, x, y, box=BOX)

    in_box = np.array(
        [radius_in_box(clf.weight, clf.bias, a, b, p=p, box=BOX) for a, b in zip(x, y, strict=True)]
    )
    law_close_to_the_truth(in_the_box, p, in_box, nets, x, y, boxed)


@pytest.mark.parametrize("p", [2.0, INF])
def test_the_law_rejects_faulty_attacks(p):
    clf, x, y = linear_problem()
    nets, exact = ensemble_of(clf), radius(clf, x, y, p=p)
    other = INF if p == 2 else 2.0

    def identity(nets, x, y):
        return x.expand(1, *x.shape), torch.ones(1, len(x), dtype=torch.bool)

    def gives_up(nets, x, y):
        return x.expand(1, *x.shape), torch.zeros(1, len(x), dtype=torch.bool)

    def far(nets, x, y):
        x_adv, found = fmn(nets, x, y, p=p)
        return x + 1.1 * (x_adv - x), found

    def wrong_norm(nets, x, y):
        return fmn(nets, x, y, p=other)

    for faulty in (identity, gives_up, far, wrong_norm):
        with pytest.raises(AssertionError):
            law_close_to_the_truth(faulty, p, exact, nets, x, y, 0.03)


def law_finds_the_smallest_step_in_the_box(attack):
    """Never before the first success of 4000 places along the clipped path, and there for most examples."""
    nets, x, _ = random_ensemble(widths=(16, 20, 14, 5), members=1)
    y, box, places = nets.logits(x)[0].argmax(1), (-0.5, 1.0), torch.linspace(0, 1.5, 4001).double()[1:]
    sign = loss_gradient_sign(nets, x, y)[0]
    path = (x + places[:, None, None] * sign).clamp(*box)
    changed = margins(nets.logits(path.flatten(0, 1)), y.repeat(len(places))).view(len(places), -1) < 0
    reached = changed.any(0)
    first, spacing = places[changed.int().argmax(0)], places[0]
    x_adv, found = attack(nets, x, y, box)
    at = verified_radius(nets, x, y, x_adv, found, p=INF)[0]
    assert reached.sum() > 12
    assert torch.isfinite(at[reached]).all()
    assert (at >= first - spacing)[reached].all()
    assert (at <= first + 1e-6)[reached].double().mean() > 0.9


def test_the_smallest_step_in_the_box():
    law_finds_the_smallest_step_in_the_box(lambda n, x, y, box: minimal_fgs(n, x, y, box=box))


def test_the_law_of_the_smallest_step_rejects_one_that_is_too_long():
    def long(nets, x, y, box):
        x_adv, found = minimal_fgs(nets, x, y, box=box)
        return (x + 1.05 * (x_adv - x)).clamp(*box), found

    with pytest.raises(AssertionError):
        law_finds_the_smallest_step_in_the_box(long)


def law_ends_at_the_first_boundary(attack, p, box):
    """On most rays the point lies where the ray first leaves its class, as the exact walk says."""
    nets, x, _ = random_ensemble(members=1)
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = attack(nets, x, y, box)
    at = verified_radius(nets, x, y, x_adv, found, p=p)
    first = verified_radius(nets, x, y, *shorten(nets, x, y, x_adv, found), p=p)
    moved = torch.isfinite(at) & (at > 0)
    assert moved.sum() > 15
    assert (at >= first * (1 - 1e-9)).all()
    assert (at <= first * (1 + 5e-4))[moved].double().mean() > 0.9


@pytest.mark.parametrize("p", [2.0, INF])
def test_where_no_gradient_leads_fmn_starts_from_other_examples(p):
    """The unit is off around x, so scores are constant; the boundary is where the first two sum to 1.5."""
    weight = lambda rows: torch.tensor(rows, dtype=torch.float64)[None]  # noqa: E731
    layers = (weight([[1.0, 1.0, 0.0]]), weight([[0.0], [1.0]]))
    biases = (weight([-1.0]), weight([0.5, 0.0]))
    nets = MLPEnsemble(layers, biases, tuple(torch.ones_like(w, dtype=torch.bool) for w in layers))
    x, y = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), torch.tensor([0])
    others = torch.tensor([[0.1, 0.0, 0.0], [2.0, 0.1, 9.0], [3.0, 3.0, 0.0]], dtype=torch.float64)
    assert not fmn(nets, x, y, p=p)[1].any()
    x_adv, found = fmn_init(nets, x, y, others, p=p)
    radius = float(verified_radius(nets, x, y, x_adv, found, p=p))
    assert radius == pytest.approx(1.0 / math.sqrt(2) if p == 2 else 0.5, rel=1e-3)
    assert not fmn_init(nets, x, y, others[:1], p=p)[1].any()  # none of another class
    both = strongest(nets, x, y, p=p, others=others)
    assert float(verified_radius(nets, x, y, *both, p=p)) <= radius * (1 + 1e-9)


def layered(weights, biases) -> MLPEnsemble:
    """One network of these layers."""
    layers = tuple(torch.tensor(weight, dtype=torch.float64)[None] for weight in weights)
    shifts = tuple(torch.tensor(bias, dtype=torch.float64)[None] for bias in biases)
    return MLPEnsemble(layers, shifts, tuple(weight != 0 for weight in layers))


def test_another_example_on_a_boundary_hides_none_behind_it():
    """At -1 all units are off and both classes score 0, which is no success; at -4 the other one leads."""
    nets = layered([[[1.0], [1.0], [-1.0]], [[0.0, 0.0, 1.0], [1.0, -1.0, 0.0]]], [[0.0, -1.0, -2.0], [0, 0]])
    x, y = torch.tensor([[5.0]], dtype=torch.float64), torch.tensor([1])
    others = torch.tensor([[-1.0], [-4.0]], dtype=torch.float64)
    for p in (2.0, INF):
        x_adv, found = fmn_init(nets, x, y, others, p=p)
        assert found.all()
        assert torch.equal(x_adv, fmn_init(nets, x, y, others[1:], p=p)[0])


@pytest.mark.parametrize(
    ("attack", "p"), [(MINIMAL[name], name[1]) for name in MINIMAL if "fgs" not in name[0]]
)
def test_a_wall_before_the_nearest_class_hides_no_other(attack, p):
    """The runner-up would gain where there is no room, the third class a third of the way elsewhere."""
    nets = layered([[[0.0, 0.0], [-5.0, 0.0], [3.0, 0.0]]], [[1.0, 0.9, 0.0]])
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    x_adv, found = attack(nets, x, y, box=BOX)
    if attack is not MINIMAL["fmn_init", p]:  # there is no other example
        assert found.all()
        assert float(norm(x_adv[0] - x, p=p)) == pytest.approx(1 / 3, rel=0.021)


def test_random_starts_leave_a_flat_spot():
    """Both units are off within 0.1 of x; where one of them exceeds 0.3 the class changes."""
    nets = layered([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]], [[-0.1, -0.1], [0.3, 0.0]])
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    for box in (None, (-1.0, 1.0)):
        x_adv, found = minimal_rfgs(nets, x, y, box=box)
        assert found.all()
        assert float((x_adv - x).abs().max()) == pytest.approx(0.4, rel=1e-3)
        for p in (2.0, INF):
            x_adv, found = minimal_pgd(nets, x, y, p=p, restarts=5, box=box)
            assert found.all()
            assert float(norm(x_adv[0] - x, p=p)) == pytest.approx(0.4, rel=0.02)
            assert not minimal_pgd(nets, x, y, p=p, box=box)[1].any()  # from x alone no gradient leads away


def test_inputs_that_no_unit_sees_stay_where_they_are():
    nets, x, y = random_ensemble(members=2)
    weight = nets.weights[0].clone()
    weight[0, :, 2:5] = 0.0
    nets = MLPEnsemble((weight, *nets.weights[1:]), nets.biases, nets.masks)
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = fmn_init(nets, x, y, x, p=2)
    moved = (x_adv != x)[:, found.all(0)]
    assert not moved[0, :, 2:5].any()
    assert moved[1, :, 2:5].any()


@pytest.mark.parametrize("box", [None, (-0.5, 1.5)])
@pytest.mark.parametrize(("name", "p"), [("ddn", 2.0), ("fmn", 2.0), ("fmn", INF)])
def test_iterative_attacks_end_at_the_first_boundary(name, p, box):
    few = {"ddn": lambda n, x, y, b: ddn(n, x, y, steps=15, box=b)}
    law_ends_at_the_first_boundary(
        few.get(name, lambda n, x, y, b: fmn(n, x, y, p=p, steps=15, box=b)), p, box
    )


def test_the_law_rejects_an_attack_that_stops_beyond_the_boundary(monkeypatch):
    module = importlib.import_module("empirical.attacks.ddn")  # the package's ddn is the function
    monkeypatch.setattr(module, "pulled_back", lambda batch, best, box: (best.points, best.found))
    with pytest.raises(AssertionError):
        law_ends_at_the_first_boundary(lambda n, x, y, b: ddn(n, x, y, steps=15, box=b), 2.0, None)


@pytest.mark.parametrize("p", [2.0, INF])
def test_the_oracle_in_the_box_agrees_with_a_solver(p):
    rng = np.random.default_rng(3)
    for _ in range(10):
        weight, x = rng.normal(size=6), rng.random(6)
        need = rng.uniform(0.05, 0.95) * np.where(weight > 0, weight * (1 - x), -weight * x).sum()
        ours = distance_in_box(weight, need, x, p=p, box=BOX)
        bounds = list(zip(-x, 1 - x, strict=True))
        if p == INF:
            eye, one = np.eye(6), np.ones((6, 1))
            table = np.block([[-weight[None], np.zeros((1, 1))], [eye, -one], [-eye, -one]])
            limits = np.concatenate([[-need], np.zeros(12)])
            theirs = linprog(np.eye(7)[6], table, limits, bounds=[*bounds, (0, None)]).fun
        else:
            found = minimize(
                lambda d: d @ d, np.zeros(6), jac=lambda d: 2 * d, bounds=bounds, method="SLSQP", tol=1e-14,
                constraints=LinearConstraint(weight, need, np.inf),
            )  # fmt: skip
            theirs = math.sqrt(found.fun)
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert distance_in_box(np.array([1.0, -1.0]), 2.0, np.array([0.5, 0.5]), p=p, box=BOX) == INF


@pytest.mark.parametrize(("attack", "p"), CASES)
def test_a_member_gets_what_it_gets_alone(attack, p):
    nets, x, y = random_ensemble(members=2)
    x_adv, found = attack(nets, x, y)
    again, _ = attack(nets, x, y)
    assert torch.equal(x_adv, again)
    assert found.any(1).all()
    alone, hit = attack(nets.select([1]), x, y)
    assert torch.equal(hit[0], found[1])
    # A success on the boundary may be decided by rounding, and the way after it differ a little.
    torch.testing.assert_close(norm(alone[0] - x, p=p), norm(x_adv[1] - x, p=p), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("attack", "p"), CASES)
def test_box_clean_rows_and_misclassified_examples(attack, p):
    nets, x, y = random_ensemble()
    x_adv, found = attack(nets, x, y, box=BOX)
    assert BOX[0] <= float(x_adv.min()) <= float(x_adv.max()) <= BOX[1]
    assert torch.equal(x_adv[~found], x.expand_as(x_adv)[~found])
    wrong = nets.logits(x).argmax(2) != y
    assert wrong.any()
    assert found[wrong].all()
    assert torch.equal(x_adv[wrong], x.expand_as(x_adv)[wrong])
    radii = verified_radius(nets, x, y, x_adv, found, p=p)
    assert torch.equal(radii.isfinite(), found)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("attack", [minimal_fgs, minimal_rfgs])
def test_a_success_does_not_hang_on_rounding(attack, box):
    """Products of other shapes round otherwise: what is found in a batch is found example by example."""
    for seed in range(12):
        nets, x, y = random_ensemble(widths=(8, 30, 20, 4), seed=seed)
        x_adv, found = attack(nets, x, y, box=box)
        for k in range(nets.members):
            for i in range(len(x)):
                here, one = slice(i, i + 1), nets.select([k])
                alone = x_adv[k : k + 1, here], found[k : k + 1, here]
                radii = verified_radius(one, x[here], y[here], *alone, p=INF)
                assert bool(radii.isfinite()) == bool(found[k, i])


@pytest.mark.parametrize(("attack", "p"), CASES)
def test_the_scale_of_the_logits_does_not_matter(attack, p):
    """In float32, where a softmax of logits of order 10^4 is one-hot and its gradient 0."""
    clf, x, y = linear_problem(examples=25)
    y = torch.tensor(y)
    radii = []
    for factor in (1.0, 1e3, 1e-6):
        nets = ensemble_of(LinearClassifier(factor * clf.weight, factor * clf.bias))
        here = nets.to(dtype=torch.float32, device=torch.device("cpu"))
        x_adv, found = attack(here, torch.tensor(x, dtype=torch.float32), y)
        assert found.all()
        radii.append((x_adv[0] - torch.tensor(x)).norm(p, dim=1).mean().item())
    if "fgs" not in str(attack.__code__.co_names):  # the sign of a mixture of classes depends on the scale
        assert radii[1:] == pytest.approx([radii[0]] * 2, rel=0.01)


@pytest.mark.parametrize(("attack", "p"), CASES)
@pytest.mark.parametrize("box", [None, BOX])
def test_a_dead_network_is_not_found(attack, p, box):
    dead = ReLUNetwork((-np.ones((3, 2)), np.ones((2, 3))), (-np.ones(3), np.array([1.0, 0.0])))
    nets, x = from_networks([dead, dead]), torch.tensor([[1.0, 0.0], [0.5, 0.25]], dtype=torch.float64)
    x_adv, found = attack(nets, x, torch.tensor([0, 1]), box=box)
    assert found.tolist() == [[False, True]] * 2
    assert torch.equal(x_adv, x.expand_as(x_adv))


@pytest.mark.parametrize(("attack", "p"), CASES)
def test_modules_give_what_the_mlp_ensemble_gives(attack, p):
    nets, x, y = random_ensemble(members=2)
    x, y = x[:10], y[:10]
    modules = from_modules([to_module(nets, k) for k in range(2)], shape=(8,))
    ours, theirs = (
        verified_radius(nets, x, y, *attack(some, x, y, box=BOX), p=p) for some in (nets, modules)
    )
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    known = ours.isfinite()
    torch.testing.assert_close(ours[known].mean(), theirs[known].mean(), rtol=0.01, atol=0)


@pytest.mark.parametrize(("attack", "p"), CASES)
def test_convolutions_are_attacked(attack, p):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    nets = from_modules([net], shape=(1, 6, 6))
    x = torch.rand(10, 36, dtype=torch.float64)
    y = nets.logits(x)[0].argmax(1)
    x_adv, found = attack(nets, x, y, box=BOX)
    assert found.double().mean() >= (0.3 if "fgs" in str(attack.__code__.co_names) else 1.0)
    assert torch.equal(verified_radius(nets, x, y, x_adv, found, p=p).isfinite(), found)


@pytest.mark.parametrize("p", [2.0, INF])
def test_pgd_decides_as_the_exact_radius_does(p):
    """Found where the radius is below the budget by 2 %, not found where it is above; the ball is kept."""
    clf, x, y = linear_problem(examples=60, classes=2)
    nets, tx, ty = ensemble_of(clf), torch.tensor(x), torch.tensor(y)
    exact = torch.tensor(radius(clf, x, y, p=p))
    eps = float(exact.median()) * 1.001
    for steps, restarts in ((40, 1), (40, 3)):
        x_adv, found = pgd(nets, tx, ty, p=p, eps=eps, steps=steps, restarts=restarts)
        assert (norm(x_adv - tx, p=p) <= eps * (1 + 1e-12)).all()
        assert not found[0][exact > eps].any()
        assert found[0][exact < 0.98 * eps].all()
        assert torch.equal(x_adv[~found], tx[None][~found])


def test_the_only_step_of_pgd_counts():
    nets = ensemble_of(LinearClassifier(np.array([[1.0, 0.0], [0.0, 0.5]]), np.zeros(2)))
    x = torch.tensor([[0.6, 0.5]], dtype=torch.float64)
    _, found = pgd(nets, x, torch.tensor([0]), p=INF, eps=0.5, steps=1)
    assert found.all()


def test_restarts_help_and_depend_on_the_seed():
    """The gradient at x leads to a wall of the ball; a random start does not."""
    nets, x, y = random_ensemble(members=1)
    few, many = (pgd(nets, x, y, p=INF, eps=0.05, steps=5, restarts=r)[1] for r in (1, 6))
    assert (many >= few).all()
    one, same, other = (pgd(nets, x, y, p=INF, eps=0.08, steps=5, restarts=4, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert other.shape == one.shape


@pytest.mark.parametrize(("p", "eps"), [(2.0, 0.4), (INF, 0.2)])
def test_a_random_start_depends_on_the_seed_and_the_place_alone(p, eps):
    """Not on the examples that follow, the members, or how many restarts come after it.

    Where x is, no unit is active and no gradient leads away: what is found is a start.
    """
    weight, bias = torch.eye(5).double()[:2, None], torch.tensor([[0.5, 0.0]] * 2).double()
    outer = torch.tensor([[[0.0], [100.0]]] * 2).double()
    inner = torch.full((2, 1), -0.6).double()
    nets = MLPEnsemble((weight, outer), (inner, bias), (weight != 0, outer != 0))
    x, y = torch.full((12, 5), 0.5).double(), torch.zeros(12, dtype=torch.long)

    def points(nets, n, restarts):
        return pgd(nets, x[:n], y[:n], p=p, eps=eps, steps=1, restarts=restarts, seed=3)

    whole, found = points(nets, 12, 5)
    assert not points(nets, 12, 1)[1].any()
    assert found.double().mean() > 0.3
    assert len(whole[0][found[0]].unique(dim=0)) == found[0].sum()
    some, hit = points(nets.select([1]), 7, 5)
    assert torch.equal(some[0], whole[1, :7])
    assert torch.equal(hit[0], found[1, :7])
    assert torch.equal(points(nets, 12, 8)[0][found], whole[found])


def test_the_random_signs_of_a_part_of_the_data_are_those_of_the_whole():
    nets, x, y = random_ensemble(members=2)
    whole, found = minimal_rfgs(nets, x, y)
    some, hit = minimal_rfgs(nets, x[7:], y[7:], first=7)
    torch.testing.assert_close(some, whole[:, 7:], rtol=1e-9, atol=1e-12)
    assert torch.equal(hit, found[:, 7:])


def test_rfgs_takes_a_random_and_a_gradient_step():
    nets = ensemble_of(LinearClassifier(np.array([[1.0, -2.0], [0.0, 0.0]]), np.zeros(2)))
    x, y = torch.tensor([[0.95, 0.05]], dtype=torch.float64), torch.tensor([0])
    moved = rfgs(nets, x, y, eps=0.1, share=0.25) - x
    assert sorted(moved.abs().flatten().tolist())[0] >= 0.05 - 1e-12
    assert float(moved.abs().max()) <= 0.1 + 1e-12
    assert rfgs(nets, x, y, eps=0.1, share=0.0)[0, 0].tolist() == pytest.approx([0.85, 0.15])
    assert rfgs(nets, x, y, eps=2.0, box=BOX)[0, 0].tolist() == [0.0, 1.0]
    seeds = [rfgs(nets, x.expand(30, 2), y.expand(30), eps=0.1, seed=s) for s in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


def test_the_scan_finds_what_the_exact_walk_finds(trained_digits):
    """Without walls in the way the scan of minimal_fgs, and of other networks, is the exact step."""
    nets, x, y = trained_digits
    x, y = x[:60], y[:60]
    exact = verified_radius(nets, x, y, *minimal_fgs(nets, x, y), p=INF)
    scanned = verified_radius(nets, x, y, *minimal_fgs(nets, x, y, box=(-1e6, 1e6)), p=INF)
    assert (scanned >= exact * (1 - 1e-6)).all()
    torch.testing.assert_close(scanned.mean(1), exact.mean(1), rtol=1e-3, atol=0)


def test_strongest_is_the_closest_and_effort_pays(trained_digits):
    nets, x, y = trained_digits
    x, y = x[:30], y[:30]
    for p in (2.0, INF):
        radii = [
            verified_radius(nets, x, y, *strongest(nets, x, y, p=p, effort=e, box=BOX), p=p) for e in (1, 2)
        ]
        assert (radii[1] <= radii[0] * (1 + 1e-9)).all()
        single = shorten(nets, x, y, *fmn(nets, x, y, p=p, steps=STEPS, box=BOX))
        assert (radii[1] <= verified_radius(nets, x, y, *single, p=p) * (1 + 1e-9)).all()


def test_closest_prefers_what_was_found():
    x = torch.zeros(2, 3)
    near, far = (x + 0.1)[None], (x + 0.2)[None]
    yes, no = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    points, found = closest(x, [(far, no), (near, yes)], p=2)
    assert found.all()
    assert torch.equal(points[0], torch.tensor([[0.1] * 3, [0.2] * 3]))


def test_projections_keep_what_is_inside_and_move_no_further_than_the_surface():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    for p in (2.0, INF):
        size = norm(delta, p=p)
        kept = project(delta, size * 1.01, p=p)
        assert torch.equal(kept, delta)
        torch.testing.assert_close(norm(project(delta, size / 3, p=p), p=p), size / 3)
    torch.testing.assert_close(project(delta, norm(delta, p=2) / 3, p=2), delta / 3)
    assert not project(delta, torch.zeros(50, dtype=torch.float64), p=2).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish_in_float32(scale):
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * scale
    assert norm(values, p=2).tolist() == pytest.approx([5 * scale, 0.0])
    torch.testing.assert_close(unit_step(values, p=2), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, x, y: pgd(n, x, y, p=1, eps=0.1), "p is 1"),
        (lambda n, x, y: pgd(n, x, y, p=2, eps=-0.1), "eps is -0.1"),
        (lambda n, x, y: pgd(n, x, y, p=2, eps=0.1, restarts=0), "restarts is 0"),
        (lambda n, x, y: minimal_pgd(n, x, y, p=2, halvings=0), "halvings is 0"),
        (lambda n, x, y: ddn(n, x, y, steps=0), "steps is 0"),
        (lambda n, x, y: ddn(n, x, y, gamma=1.0), "gamma is 1"),
        (lambda n, x, y: fmn(n, x, y, p=2, gamma=0.0), "gamma is 0"),
        (lambda n, x, y: fmn_init(n, x, y, x, p=2, gamma=1.0), "gamma is 1"),
        (lambda n, x, y: fmn_init(n, x, y, x, p=2, starts=0), "starts is 0"),
        (lambda n, x, y: fmn_init(n, x, y, x[:0], p=2), r"others has shape \(0, 2\)"),
        (lambda n, x, y: fmn_init(n, x, y, x[:, :1], p=2), r"others has shape \(1, 1\)"),
        (lambda n, x, y: fmn_init(n, x, y, x / 0, p=2), r"others\[0\] holds NaN or infinity"),
        (lambda n, x, y: fmn_init(n, x, y, x.float(), p=2), "others is torch.float32"),
        (lambda n, x, y: carlini_wagner(n, x, y, rate=0.0), "rate is 0"),
        (lambda n, x, y: carlini_wagner(n, x, y, searches=0), "searches is 0"),
        (lambda n, x, y: rfgs(n, x, y, eps=0.1, share=1.0), "share is 1"),
        (lambda n, x, y: rfgs(n, x, y, eps=math.nan), "eps is nan"),
        (lambda n, x, y: minimal_rfgs(n, x, y, max_step=-1), "max_step is -1"),
        (lambda n, x, y: minimal_rfgs(n, x, y, first=-1), "first is -1"),
        (lambda n, x, y: rfgs(n, x, y, eps=0.1, seed=-1), "seed is -1"),
        (lambda n, x, y: pgd(n, x, y, p=2, eps=0.1, seed=-1), "seed is -1"),
        (lambda n, x, y: strongest(n, x, y, p=2, effort=4), "effort is 4"),
        (lambda n, x, y: strongest(n, x, y, p=3), "p is 3"),
        (lambda n, x, y: deepfool(n, x, y, p=2, box=(1.0, 0.0)), r"box is \(1.0, 0.0\)"),
        (lambda n, x, y: fmn(n, x, y, p=2, box=(0.0, 0.5)), r"x spans \[1.0, 1.0\]"),
        (lambda n, x, y: ddn(n, x.float(), y), "x is torch.float32"),
    ],
)
def test_bad_arguments_are_named(call, message):
    nets = ensemble_of(LinearClassifier(np.array([[1.0, -2.0], [0.0, 0.0]]), np.zeros(2)))
    with pytest.raises(InvalidInput, match=message):
        call(nets, torch.ones(1, 2, dtype=torch.float64), torch.tensor([0]))
