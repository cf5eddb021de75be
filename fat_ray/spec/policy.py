"""Names of freezing policies: those of this package, and a user's own. Nobody's code is imported here."""

import re
from importlib.metadata import entry_points
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from fat_ray.spec.base import nearest

POLICIES = (
    "fisher_drift",
    "none",
    "head_only",
    "bitfit",
    "norm_only",
    "linear_schedule",
    "freezeout",
    "gradual_unfreeze",
    "gradient_norm",
    "fish_mask",
    "lora",
    "random_matched",
)
"""The policies of this package (docs/method.md, section 7)."""

ENTRY_POINTS = "fat_ray.policies"
"""The entry point group in which a package announces policies."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _check(name: str) -> str:
    if name in POLICIES or _REFERENCE.fullmatch(name):
        return name
    announced = sorted(entry_points(group=ENTRY_POINTS).names)
    if name in announced:
        return name
    known = [*POLICIES, *announced]
    near = nearest(name, known)
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"must be {', '.join(known)}, or module:function of your own{hint}")


PolicyName = Annotated[
    str, AfterValidator(_check), WithJsonSchema({"anyOf": [{"enum": list(POLICIES)}, {"type": "string"}], "type": "string"})
]
"""A policy of this package, one that an installed package announces, or `module:function`."""
