"""fat_ray: distributed hyperparameter studies for Fisher-guided progressive freezing."""

__version__ = "0.1.0"
