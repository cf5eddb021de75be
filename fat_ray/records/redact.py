"""Keeps secrets out of what is written: study files that hold one are refused, and free text such as error messages is scrubbed."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fat_ray.errors import Problem

REDACTED = "[redacted]"

_SHORTEST = 8  # characters; shorter values, such as "true", would be found everywhere
_VARIABLE = re.compile(r"API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# Not every "token": pad_token or max_tokens are settings of language models.
_FIELD = re.compile(
    r"(^|_)((api|access|private|secret)_?key|secret|password|passwd|credentials?)$"
    r"|^((auth|access|api|hf|hub|wandb|bearer|refresh|session|github)_)?token$",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(\w+://)[^/\s@]+@")
_ASSIGNMENT = re.compile(r"((?:token|key|secret|password|signature)=)[^&\s'\"]+", re.IGNORECASE)


def scrub(text: str) -> str:
    """The text without values of secret environment variables, credentials in URLs, and values of parameters such as ``token=``."""
    for value in sorted(_secret_variables().values(), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return _ASSIGNMENT.sub(rf"\1{REDACTED}", _URL_USER.sub(rf"\1{REDACTED}@", text))


def secrets_in(spec: Mapping[str, Any], text: str) -> list[Problem]:
    """What looks like a secret in a study: fields with a telling name, and values of secret environment variables in its text."""
    named = [
        Problem(path, None, "looks like a secret, and records keep the whole study; let the task read it from an environment variable")
        for path in _secret_fields(spec, "")
    ]
    held = [
        Problem("", None, f"holds the value of the environment variable {variable}, and records keep the whole study; remove it")
        for variable, value in _secret_variables().items()
        if value in text
    ]
    return named + held


def _secret_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _SHORTEST}


def _secret_fields(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            inner_path = f"{path}.{key}" if path else str(key)
            if isinstance(inner, str) and inner and _FIELD.search(str(key)):
                yield inner_path
            else:
                yield from _secret_fields(inner, inner_path)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for position, inner in enumerate(value):
            yield from _secret_fields(inner, f"{path}.{position}")
