"""fat_ray: distributed hyperparameter studies for Fisher-guided progressive freezing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fat_ray.api import Study, compare

__all__ = ["Study", "compare"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Study` and `compare`, loaded when they are asked for (PEP 562): importing the package loads nothing heavy."""
    if name in __all__:
        from fat_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
