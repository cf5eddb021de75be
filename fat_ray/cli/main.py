"""`fat-ray`: the application with all its commands, in the order in which `--help` lists them."""

import fat_ray.cli.launching
import fat_ray.cli.reading  # noqa: F401 - both register their commands
from fat_ray.cli.app import app

__all__ = ["app"]
