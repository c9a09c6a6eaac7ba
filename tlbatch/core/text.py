"""Words of messages and pages."""


def counted(number: int, name: str) -> str:
    """Format a count with its noun, in the plural unless it is one."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"
