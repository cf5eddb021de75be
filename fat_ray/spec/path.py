"""How fields and values are written for people."""

Path = tuple[str | int, ...]
"""Keys and list positions from the root."""


def dotted(path: Path) -> str:
    """The path as people write it, such as ``objectives[0].metric``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def shorten(value: object, limit: int = 60) -> str:
    """The value on one short line, as YAML writes it, safe to print on a terminal."""
    match value:
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case str():
            text = value if value.isprintable() and value else repr(value)
        case _:
            text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
