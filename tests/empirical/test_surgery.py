"""Network surgery cuts at its start the share that it was told to, to the weight."""

import pytest
import torch

from empirical.training.surgery import CUT, SPLICE, Surgery, operate, thresholds
from theory.types import InvalidInput

# Of so many layers a float32 threshold is off by a weight in some ten.
LAYERS = 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_the_share_that_is_cut_is_exact(dtype, share):
    weight = torch.randn(LAYERS, 20, 15, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(weight)
    operate(
        [weight], [mask], thresholds([weight], Surgery(share=share)), torch.ones(LAYERS, dtype=torch.bool)
    )
    assert set((mask == 0).flatten(1).sum(1).tolist()) == {round(share * 300)}


def test_neighbouring_weights_are_told_apart():
    """Half of 4 weights that differ by one rounding each, whatever their last digits."""
    for start in torch.linspace(0.5, 1.0, 50):
        weight = start.repeat(1, 4)
        for i in range(1, 4):
            weight[0, i] = weight[0, i - 1].nextafter(torch.tensor(2.0))
        mask = torch.ones_like(weight)
        operate([weight], [mask], thresholds([weight], Surgery(share=0.5)), torch.ones(1, dtype=torch.bool))
        assert mask.tolist() == [[0, 0, 1, 1]]


def test_what_grows_beyond_the_upper_threshold_is_spliced_in_again():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    limits = thresholds([weight], Surgery(share=0.5))
    mask, members = torch.zeros_like(weight), torch.ones(1, dtype=torch.bool)
    operate([weight], [mask], limits, members)
    assert (3.0 / CUT * SPLICE < 4.0, mask.tolist()) == (True, [[0, 0, 0, 1]])


def test_a_share_that_is_removed_already_is_refused():
    """A threshold of 0 would splice in every weight that moves; one more than that share is cut as told."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 3.0, 4.0]])
    for share in (0.0, 0.25):
        with pytest.raises(
            InvalidInput, match=rf"share is {share}, but 0.5 of a layer's weights are 0 already"
        ):
            thresholds([weight], Surgery(share=share))
    masks = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    operate([weight], [masks], thresholds([weight], Surgery(share=0.5)), torch.ones(2, dtype=torch.bool))
    assert masks.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
