"""The credential of the commands that call a server: from DARKROOM_KEY, or from the file that DARKROOM_KEY_FILE names.

No option takes a key: other users of a machine see the arguments of processes, and a shell stores them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from darkroom.access.credentials import PREFIX, Credential
from darkroom.errors import SettingError
from darkroom.settings import Settings, WebUrl
from pydantic import BeforeValidator, SecretStr

from darkroom_cli.address import DEFAULT_URL

KEY, KEY_FILE = "DARKROOM_KEY", "DARKROOM_KEY_FILE"

MAX_BYTES = 16 * 1024
"""The longest credential that is read from a file. A token of an identity provider has some kilobytes."""

_SENDABLE = re.compile(r"[\x21-\x7e]+\Z")


class ClientSettings(Settings):
    """Settings of the commands that call a server."""

    url: WebUrl = DEFAULT_URL
    """The server's address."""

    key: SecretStr | None = None
    """The key or token for the server. Secret."""

    key_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = None
    """A file with the key or token for the server, instead of DARKROOM_KEY."""


@dataclass(frozen=True)
class ClientCredential:
    """A credential and the variable that it comes from; `text` is None where none is set."""

    text: str | None = field(default=None, repr=False)
    variable: str = KEY

    @property
    def headers(self) -> dict[str, str]:
        """The header of a request to the server."""
        return {} if self.text is None else {"Authorization": f"Bearer {self.text}"}

    def advice(self, problem: Mapping[str, Any]) -> str:
        """What to do about a refusal of the credential; empty for any other problem."""
        status, kind = problem.get("status"), str(problem.get("type", "")).rpartition("/")[2]
        if status == HTTPStatus.UNAUTHORIZED and self.text is None:
            return f"set {KEY} to a key, or {KEY_FILE} to a file with one"
        if status == HTTPStatus.UNAUTHORIZED:
            return f"check {self.variable}, or ask an administrator for a new key"
        if status == HTTPStatus.FORBIDDEN and kind == "scope-missing":
            return "use a key with that scope; `darkroom keys create TENANT --name NAME --scope SCOPE` creates one"
        if status == HTTPStatus.FORBIDDEN and kind == "model-not-permitted":
            return "use a key for that model, or another --model"
        return ""


def credential_of(settings: ClientSettings) -> ClientCredential:
    """The credential that the environment names. Raises SettingError."""
    if settings.key is not None and settings.key.get_secret_value():
        if settings.key_file is not None:
            raise SettingError(f"{KEY} and {KEY_FILE} are both set: unset one of them")
        return _checked(settings.key.get_secret_value(), KEY, shown=f"{KEY}=(hidden)")
    if settings.key_file is None:
        return ClientCredential()
    shown = f"{KEY_FILE}={settings.key_file}"
    try:
        with settings.key_file.open("rb") as file:
            content = file.read(MAX_BYTES)
    except OSError as error:
        raise SettingError(f"{shown}: cannot be read: {error.strerror}") from None
    return _checked(content.decode("latin-1"), KEY_FILE, shown=shown)


def _checked(text: str, variable: str, *, shown: str) -> ClientCredential:
    text = text.strip()
    if _SENDABLE.match(text) is None:
        raise SettingError(f"{shown}: is not a key, which has one line without spaces")
    if text.startswith(PREFIX) and Credential.parse(text) is None:
        raise SettingError(f"{shown}: is not a complete key: its checksum does not match")
    return ClientCredential(text, variable)
