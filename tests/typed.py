"""What the tests check each call of the package by: its types, and its shapes against each other.

jaxtyping's own decorator checks the arguments of a call twice, once for the sake of its message.
This one does so once, which takes an eighth off the numeric tests.
"""

import inspect
from functools import wraps

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def check_once():
    """Have jaxtyping's import hook put this decorator on functions, from here on."""
    jaxtyping.jaxtyped = checked


def checked(decorated=None, **options):
    """Check the arguments and the result of a function in each call."""
    if decorated is None:
        return lambda each: checked(each, **options)
    if not inspect.isfunction(decorated):  # a data class
        return _jaxtyped(decorated, **options)
    sure = beartype(decorated)

    @wraps(decorated)
    def call(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return decorated(*args, **kwargs)
        with _jaxtyped("context"):  # a letter is one number within one call
            return sure(*args, **kwargs)

    return call
