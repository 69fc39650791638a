"""Random masks: what the theorems and the moment propagation say of the very networks that were masked.

The random-mask theorem bounds the expected Lipschitz constant; moment propagation estimates the expected
margin, accuracy and radius. Both need the dense network's weights only.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from empirical.comparison import check, check_equal, graph_of
from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, ModuleEnsemble, relu_network
from empirical.measurement import mask_gradient_norms
from empirical.own_network.mask_bounds import graph_rungs, layer_rungs
from empirical.results import NORMS, Members, Rows
from theory import relu

# The method's name in the results.
MOMENTS = "moment propagation"
# A Monte Carlo mean contradicts a bound when it exceeds it by more standard errors than chance does with this
# probability, by Student's t.
CHANCE = 3e-7
# Examples whose gradients the Monte Carlo over masks looks at; the largest one counts.
MASK_EXAMPLES = 32


def compare_masks(
    members: Members,
    dense: MLPEnsemble | ModuleEnsemble,
    data: Dataset,
    alphas: tuple[float, ...],
    *,
    pair: tuple[int, int],
    copies: int,
) -> list[Rows]:
    """Rows of the random-mask theorem: every rung at every sparsity, beside Monte Carlo over masks.

    The hidden layers of every dense member are masked, the last layer is not, as in the theorem. The Monte
    Carlo value is a lower estimate: the largest gradient norm over some test examples. Networks that are not
    fully connected have the rungs F and P1 of their graphs.

    Raises: InvalidInput for a module with an operation that the theory does not cover.
    """
    found: list[Rows] = []
    device = dense.weights[0].device
    dense = dense.to(dtype=torch.float64, device=device)  # a tight rung lies within float32's rounding
    x = torch.tensor(data.x_test[:MASK_EXAMPLES], dtype=torch.float64, device=device)
    reach = stats.t.isf(CHANCE, copies - 1)
    settings = np.array([[alpha] * (len(dense.weights) - 1) + [0.0] for alpha in alphas])
    layered = isinstance(dense, MLPEnsemble)
    for k, seed in enumerate(members.seed):
        rungs_of = (
            layer_rungs(relu_network(dense, k), alphas, pair)
            if layered
            else graph_rungs(graph_of(dense, k), alphas, pair)
        )
        described = Members(
            members.dataset, members.family, ["random"] * len(alphas), alphas, alphas, [seed] * len(alphas)
        )
        generator = torch.Generator().manual_seed(seed)
        samples = [
            mask_gradient_norms(
                dense.select([k]), x, pair, sparsity=alpha, copies=copies, generator=generator
            )
            for alpha in alphas
        ]
        for p, norm in NORMS.items():
            drawn = np.stack([sample[p] for sample in samples]).astype(np.float64)
            mean, error = drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(copies)
            for quantity, values in (("expected_lipschitz", mean), ("standard_error", error)):
                found.append(
                    Rows(
                        described, values, quantity=quantity, method="Monte Carlo", kind="estimate", norm=norm
                    )
                )
            rungs = dict(rungs_of(p))
            rungs["best"] = np.min(list(rungs.values()), axis=0)
            for name, bound in rungs.items():
                found.append(
                    Rows(
                        described,
                        bound,
                        quantity="expected_lipschitz",
                        method=name,
                        kind="upper bound",
                        norm=norm,
                    )
                )
                surely = np.maximum(mean - reach * error, 0.0)
                found += check(described, surely, bound, name=f"random masks, {name}", norm=norm)
            if not layered:
                continue
            name, eta = ("F", relu.eta_frobenius) if p == 2 else ("P1", relu.eta_path)
            shrinking = eta(settings)
            found.append(Rows(described, shrinking, quantity="eta", method=name, kind="identity", norm=norm))
            product = rungs[name][0] * (1 - shrinking)  # the first sparsity is 0, so rung 0 is the constant c
            found += check_equal(described, rungs[name], product, name=f"{name} = c (1 - eta)", norm=norm)
            dominated, dominating = ("P2", "F") if p == 2 else ("P1", "M")
            found += check(
                described,
                rungs[dominated],
                rungs[dominating],
                name=f"{dominated} <= {dominating}",
                norm=norm,
            )
    return found


def predict_masks(
    members: Members, dense: MLPEnsemble, data: Dataset, alphas: tuple[float, ...]
) -> list[Rows]:
    """Rows of the moment propagation: expected accuracy and mean radius of randomly masked networks.

    An *estimate*: first-order radii, Gaussian pre-activations; every layer of every dense member is masked,
    and nothing is retrained. Radii are capped as measured ones are.
    """
    found: list[Rows] = []
    for k, seed in enumerate(members.seed):
        net = relu_network(dense, k)
        count, gone = len(alphas), float(dense.sparsity()[k])
        achieved = [gone + (1 - gone) * alpha for alpha in alphas]
        described = Members(
            members.dataset, members.family, ["random"] * count, alphas, achieved, [seed] * count
        )
        rivals = relu.runner_up(net, data.x_test, data.y_test)
        sparsities = np.repeat(np.array(alphas)[:, None], len(net.weights), axis=1)
        prediction = relu.predict(net, data.x_test, data.y_test, rivals, sparsities)

        def rows(
            values: np.ndarray, quantity: str, norm: str = "", *, described: Members = described
        ) -> Rows:
            mean = values.mean(axis=1)
            return Rows(described, mean, quantity=quantity, method=MOMENTS, kind="estimate", norm=norm)

        found.append(rows(prediction.accuracy, "accuracy"))
        for p, norm in NORMS.items():
            found.append(rows(prediction.radius(p=p, cap=data.diameter(p)), "mean_radius", norm))
    return found
