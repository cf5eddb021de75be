"""`python -m fat_ray` is `fat-ray`."""

from fat_ray.cli.main import app


def main() -> None:
    """Entry point of the console script; ends the process with the command's exit code."""
    app(prog_name="fat-ray")


if __name__ == "__main__":
    main()
