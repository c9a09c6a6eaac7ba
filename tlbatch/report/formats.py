"""Formatting of numbers and images on a page."""

from base64 import b64encode

_PNG = b"\x89PNG"


def number(value: float | None) -> str:
    """Format with four decimals."""
    return "undefined" if value is None else f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None) -> str:
    """Format with four decimals and a sign."""
    return number(value) if value is None or value < 0 else f"+{value:.4f}"


def p_value(p_value: float, equals: str = "=\N{NO-BREAK SPACE}") -> str:
    """Format a p-value, which is never shown as zero."""
    return f"{equals}{p_value:.4f}" if p_value >= 0.0001 else "<\N{NO-BREAK SPACE}0.0001"


def percent(part: float, whole: float = 1) -> str:
    """Format as a percentage."""
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%" if whole else "none"


def count(value: int) -> str:
    """Format an integer with thousands separators."""
    return f"{value:,}"


def capitalised(text: str) -> str:
    """Capitalise the first letter and keep the rest."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Format seconds in readable units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(image: bytes) -> str:
    """Encode an image as a data URI."""
    kind = "png" if image.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{b64encode(image).decode()}"
