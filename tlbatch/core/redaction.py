"""Detect secrets, which a job must not contain: job.json is stored and its settings go into reports."""

import re

_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(?:_|$)|(?:API|ACCESS|PRIVATE|SECRET)_?KEY", re.IGNORECASE
)
_PLACE = re.compile(r"_(?:FILE|PATH|DIR)$", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s:@'\"]*:(?!\$)[^/\s'\"]+(?=@)|(?:(?<=https://)|(?<=http://))(?!\$)[^/\s:@'\"]+(?=@)")
_PARAMETER = re.compile(
    r"(?<=[?&;])(?P<name>[^=&;?\s]*(?:token|secret|signature|password|passwd|credential|api-?_?key|access-?_?key)"
    r"[^=&;?\s]*|sig|key|auth|pwd)=(?!\$)[^&;\s'\"]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?P<kind>Bearer|Basic) (?!\$)[^\s'\"]+", re.IGNORECASE)
_GIVEN = re.compile(r"\b(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?![\"']?[$`])[^\s;&|]")
_HIDDEN = "***"


def is_secret_name(name: str) -> bool:
    """Return whether an environment variable of this name likely holds a secret, not just the path of one."""
    return bool(_NAME.search(name)) and not _PLACE.search(name)


def holds_secret(text: str) -> bool:
    """Return whether a URL, or a command with one, contains a password, key or token; a $VARIABLE is none."""
    return hidden(text) != text


def gives_secret(line: str) -> bool:
    """Return whether a shell line contains a secret, or assigns one to a variable in plain text."""
    return holds_secret(line) or any(is_secret_name(found["name"]) for found in _GIVEN.finditer(line))


def hidden(text: str) -> str:
    """Replace what looks like a password, key or token in a URL with asterisks."""
    text = _USER.sub(_HIDDEN, text)
    text = _PARAMETER.sub(lambda found: f"{found['name']}={_HIDDEN}", text)
    return _HEADER.sub(lambda found: f"{found['kind']} {_HIDDEN}", text)
