"""A user's own code: found by its name when it is needed, and called so that whatever it raises becomes one line that says where."""

import importlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fat_ray.errors import InputError

roots: set[str] = set()
"""Packages and modules of the user's own code that was resolved in this process, by the first part of their names."""


def resolve(field: str, reference: str, returns: str, error: type[InputError]) -> Callable[..., Any]:
    """The function that a `module:function` names.

    Args:
        field: The field that names it, such as ``task.name``.
        reference: What it says.
        returns: What the function must return, such as ``a task``.
        error: What is raised.

    Raises:
        InputError: As `error`: it cannot be imported, is not there, or cannot be called.
    """
    module_name, function_name = reference.split(":")
    roots.add(module_name.partition(".")[0])
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:
        remedy = "it must be importable on every worker: install it, or put its directory on PYTHONPATH"
        raise error(f"{field} = {reference}: cannot import {module_name} ({_describe(cause)}); {remedy}") from cause
    if not hasattr(module, function_name):
        raise error(f"{field} = {reference}: module {module_name} has no {function_name}")
    function: Callable[..., Any] = getattr(module, function_name)
    if not callable(function):
        raise error(f"{field} = {reference}: {function_name} is not callable; it must be a function that returns {returns}")
    return function


def call(what: str, error: type[InputError], function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Calls a user's function.

    Args:
        what: What is called, for the message, such as ``task spirals:spirals: build_model``.
        error: What is raised instead of whatever the function raises; itself it passes.
        function: The user's function.
        *arguments: Its arguments by position.
        **settings: Its arguments by name.

    Raises:
        InputError: As `error`.
    """
    try:
        return function(*arguments, **settings)
    except error:
        raise
    except Exception as cause:
        raise error(f"{what} failed: {_describe(cause)}") from cause


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, at {Path(frame.filename).name}:{frame.lineno}"
