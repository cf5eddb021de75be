"""fat_ray: distributed hyperparameter studies for Fisher-guided progressive freezing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fat_ray.api import Study

__all__ = ["Study"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Study`, loaded when it is asked for (PEP 562): importing the package loads nothing heavy."""
    if name == "Study":
        from fat_ray.api import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
