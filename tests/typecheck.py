"""The run-time type checker of the suite: jaxtyping with beartype, int accepted where float is asked for."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

CALLS = 50
"""How many calls of a function are checked in each test: all, they would take two fifths of a small run."""

calls: Counter[Callable] = Counter()
"""The checked calls of every function in the test that runs; whoever starts a test clears it."""


def check_calls(packages: Iterable[str]) -> None:
    """Check the types and array shapes in annotations in a function's first calls, in each test anew.

    But of functions within functions: those would be decorated anew in each call of the outer one, at a
    hundred times the cost of the call.
    """
    jaxtyped = jaxtyping.jaxtyped

    @functools.wraps(jaxtyped)
    def jaxtyped_outside(*, typechecker: Any) -> Callable:
        decorate = jaxtyped(typechecker=typechecker)

        def checked(function: Callable) -> Callable:
            if "<locals>" in function.__qualname__:
                return function
            decorated = decorate(function)
            return decorated if isinstance(function, type) else first_calls(decorated, function)

        return checked

    jaxtyping.jaxtyped = jaxtyped_outside
    jaxtyping.install_import_hook([*packages], f"{__name__}.check")


def first_calls(checked: Callable, plain: Callable) -> Callable:
    """The checked function in its first calls, the plain one from then on."""

    @functools.wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        if calls[plain] >= CALLS:
            return plain(*arguments, **named)
        calls[plain] += 1
        return checked(*arguments, **named)

    return call
