"""The run-time type checker of the suite: jaxtyping with beartype, int accepted where float is asked for."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_all_calls(packages: Iterable[str]) -> None:
    """Check the types and array shapes in annotations whenever a function of the packages is called.

    But of functions within functions: those would be decorated anew in each call of the outer one, at a
    hundred times the cost of the call.
    """
    jaxtyped = jaxtyping.jaxtyped

    @functools.wraps(jaxtyped)
    def jaxtyped_outside(*, typechecker: Any) -> Callable:
        decorate = jaxtyped(typechecker=typechecker)
        return lambda function: function if "<locals>" in function.__qualname__ else decorate(function)

    jaxtyping.jaxtyped = jaxtyped_outside
    jaxtyping.install_import_hook([*packages], f"{__name__}.check")
