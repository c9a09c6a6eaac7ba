"""What looks like a secret: job.json is kept and its settings go into reports, so none may stand in a job."""

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
    """Whether an environment variable of this name will hold a secret, and not just the place of one."""
    return bool(_NAME.search(name)) and not _PLACE.search(name)


def holds_secret(text: str) -> bool:
    """Whether an address, or a command with one, holds a password, key or token; one in a $VARIABLE is none."""
    return hidden(text) != text


def gives_secret(line: str) -> bool:
    """Whether a shell line holds a secret, or gives one to a variable in plain words."""
    return holds_secret(line) or any(is_secret_name(found["name"]) for found in _GIVEN.finditer(line))


def hidden(text: str) -> str:
    """The text with stars for what looks like a password, key or token in an address."""
    text = _USER.sub(_HIDDEN, text)
    text = _PARAMETER.sub(lambda found: f"{found['name']}={_HIDDEN}", text)
    return _HEADER.sub(lambda found: f"{found['kind']} {_HIDDEN}", text)
