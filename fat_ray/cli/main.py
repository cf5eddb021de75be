"""`fat-ray`: the application with all its commands, in the order in which `--help` lists them."""

import fat_ray.cli.launching
import fat_ray.cli.reading
import fat_ray.cli.submitting  # noqa: F401 - all register their commands
from fat_ray.cli.app import app

__all__ = ["app"]
