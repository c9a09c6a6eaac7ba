"""How a page writes numbers and images."""

from base64 import b64encode

_PNG = b"\x89PNG"


def number(value: float | None) -> str:
    """Four decimals."""
    return "undefined" if value is None else f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None) -> str:
    """Four decimals with a sign."""
    return number(value) if value is None or value < 0 else f"+{value:.4f}"


def p_value(p_value: float, equals: str = "=\N{NO-BREAK SPACE}") -> str:
    """A p-value, which is never zero."""
    return f"{equals}{p_value:.4f}" if p_value >= 0.0001 else "<\N{NO-BREAK SPACE}0.0001"


def percent(part: float, whole: float = 1) -> str:
    """A percentage."""
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%" if whole else "none"


def count(value: int) -> str:
    """A whole number."""
    return f"{value:,}"


def counted(number: int, name: str) -> str:
    """How many there are of what."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def capitalised(text: str) -> str:
    """Text with a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Seconds in the units that one would say."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(image: bytes) -> str:
    """An image within the page."""
    kind = "png" if image.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{b64encode(image).decode()}"
