"""Attacks on whole ensembles as measuring instruments: ``attack(ensemble, x, y, ...) -> (x_adv, found)``.

==================  =========  =======  ==============  ========================================
attack              knowledge  finds    distance        source
==================  =========  =======  ==============  ========================================
``minimal_fgs``     gradient   minimal  l_inf           arXiv:1412.6572, exact step
``minimal_rfgs``    gradient   minimal  l_inf           arXiv:1705.07204
``minimal_pgd``     gradient   minimal  l_2, l_inf      arXiv:1706.06083, radius by bisection
``deepfool``        gradient   minimal  l_2, l_inf      arXiv:1511.04599
``ddn``             gradient   minimal  l_2             arXiv:1811.09600
``fmn``             gradient   minimal  l_2, l_inf      arXiv:2102.12827
``fmn_init``        gradient   minimal  l_2, l_inf      the same, from points of other classes
``carlini_wagner``  gradient   minimal  l_2             arXiv:1608.04644
``strongest``       weights    minimal  l_2, l_inf      the closest of all of these
``shorten``         weights    minimal  any, on a ray   this project
``pgd``             gradient   budget   l_2, l_inf      arXiv:1706.06083
``fgs``             gradient   budget   l_inf           arXiv:1412.6572
``rfgs``            gradient   budget   l_inf           arXiv:1705.07204
==================  =========  =======  ==============  ========================================

``x`` is (n, d), shared by all members, ``y`` the true labels (n,); ``x_adv`` is (K, n, d). Where
``found`` is False the row of ``x_adv`` is the clean example; a misclassified example is found where it is.
``fgs`` and ``rfgs`` return all their examples, without ``found``: accuracy on them is what they are for.
Nothing is clipped unless ``box=(low, high)`` says so; x must lie in it, and no x_adv leaves it.

Losses are differences of logits, in units that each example sets: neither the scale of the logits nor that of
the data matters, and no softmax saturates. Of ``fgs`` and ``rfgs`` alone, the smallest too, the direction is
the cross-entropy's, which depends on the scale of the logits where there are three classes or more. Where
logits overflow, nothing is found. Member k of an ensemble gets what it gets alone, rounding aside.

What ends on a boundary, where rounding decides, is moved on by so much that products of any shape call it
misclassified; but where sums inside a network cancel by many digits, their rounding may still decide.
"""

from empirical.attacks.carlini_wagner import carlini_wagner
from empirical.attacks.ddn import ddn
from empirical.attacks.deepfool import deepfool
from empirical.attacks.fgsm import fgs, minimal_fgs, minimal_rfgs, rfgs
from empirical.attacks.fmn import fmn
from empirical.attacks.fmn_init import fmn_init
from empirical.attacks.pgd import minimal_pgd, pgd
from empirical.attacks.ray import crossings, first_crossing, shorten
from empirical.attacks.strongest import closest, strongest

__all__ = [
    "carlini_wagner",
    "closest",
    "crossings",
    "ddn",
    "deepfool",
    "fgs",
    "first_crossing",
    "fmn",
    "fmn_init",
    "minimal_fgs",
    "minimal_pgd",
    "minimal_rfgs",
    "pgd",
    "rfgs",
    "shorten",
    "strongest",
]
