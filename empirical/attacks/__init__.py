"""Minimal-norm attacks on whole ensembles: ``attack(ensemble, x, y, ...) -> (x_adv, found)``.

=============  =========  =======  ==============  =============================
attack         knowledge  finds    distance        source
=============  =========  =======  ==============  =============================
``minimal_fgs``  gradient   minimal  l_inf           arXiv:1412.6572, exact step
``deepfool``     gradient   minimal  l_2, l_inf      arXiv:1511.04599
``shorten``      weights    minimal  any, on a ray   this project
``fgs``          gradient   budget   l_inf           arXiv:1412.6572
=============  =========  =======  ==============  =============================

``x`` is (n, d), shared by all members, ``y`` the true labels (n,); ``x_adv`` is (K, n, d). Where
``found`` is False the row of ``x_adv`` is the clean example. Nothing is clipped unless ``box`` says so.
"""

from empirical.attacks.deepfool import deepfool
from empirical.attacks.fgsm import fgs, minimal_fgs
from empirical.attacks.ray import crossings, first_crossing, shorten

__all__ = ["crossings", "deepfool", "fgs", "first_crossing", "minimal_fgs", "shorten"]
