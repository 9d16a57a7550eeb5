"""The file of declared tenants and their keys (`DARKROOM_TENANTS_FILE`), in YAML.

```yaml
tenants:
  - name: studio
    weight: 3
    limits: {running_jobs: 4, images_per_day: 1000}
    keys:
      - name: backend
        scopes: [submit, read, cancel]
        secret_file: /etc/darkroom/tenant-keys/studio-backend
      - name: ci
        scopes: [submit]
        id: "0123456789ab"
        digests: ["4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"]
```

It contains no secret. A key is named by a file with its text, such as one of a mounted Secret, or by its id and the
SHA-256 of its text (`darkroom keys generate` prints both). While a secret is rotated there are two, the newest first:
two lines in the file, or two digests. `limits` are those of the API.

A file with a fault is refused as a whole, with the line, the column and the field of each fault (`parse`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from darkroom.access.credentials import ID_PATTERN, TEXT_PATTERN, Credential
from darkroom.access.declarations.documents import Document, Fault, Place, Unreadable
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import MAX_NAME, MAX_SECRETS, TenantName
from darkroom.errors import PermanentError
from darkroom.times import to_ms

MAX_BYTES = 1024 * 1024
"""The largest file, the size of a ConfigMap."""

MAX_SHOWN = 20
"""The most faults in one message."""

ReadSecret = Callable[[str], str]
"""Returns the text of a secret file. Raises OSError and ValueError."""

_SECRET = re.compile(TEXT_PATTERN)

_CLOSED = ConfigDict(frozen=True, extra="forbid", strict=True)


class TenantsFileRefused(PermanentError):
    """The file has faults, or cannot be read. What it declared before stays."""

    slug, title = "tenants-file-refused", "The file of tenants is not valid"

    def __init__(self, name: str, faults: Sequence[Fault], *, detail: str | None = None) -> None:
        shown = [f"{name}: {fault}" for fault in faults[:MAX_SHOWN]]
        more = [f"and {len(faults) - MAX_SHOWN} more faults"] if len(faults) > MAX_SHOWN else []
        super().__init__(detail or "; ".join((*shown, *more)))
        self.faults = tuple(faults)


def _time(value: str) -> str:
    to_ms(value)  # raises ValueError
    return value


def _scope(value: str) -> str:
    if value not in set(Scope):
        raise ValueError(f"is not a scope: use {', '.join(Scope)}")
    return value


class DeclaredLimits(Limits):
    """Limits in the file."""

    model_config = _CLOSED


class DeclaredKey(BaseModel):
    """A key of a tenant in the file."""

    model_config = _CLOSED

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    scopes: Annotated[list[Annotated[str, AfterValidator(_scope)]], Field(min_length=1)]
    models: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    limits: DeclaredLimits = DeclaredLimits()
    expires: Annotated[str, AfterValidator(_time)] | None = None
    disabled: bool = False
    secret_file: Annotated[str, Field(min_length=1)] | None = None
    id: Annotated[str, Field(pattern=rf"^{ID_PATTERN}$")] | None = None
    digests: (
        Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], Field(min_length=1, max_length=MAX_SECRETS)]
        | None
    ) = None


class DeclaredTenant(BaseModel):
    """A tenant in the file."""

    model_config = _CLOSED

    name: TenantName
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    disabled: bool = False
    limits: DeclaredLimits = DeclaredLimits()
    keys: list[DeclaredKey] = Field(default_factory=list)


class _File(BaseModel):
    model_config = _CLOSED

    tenants: list[DeclaredTenant]


@dataclass(frozen=True)
class KeyOfTenant:
    """A declared key with its id and the digests of its secrets, the newest first."""

    tenant: str
    id: str
    digests: tuple[str, ...]
    declared: DeclaredKey
    place: Place

    @property
    def scopes(self) -> frozenset[Scope]:
        return frozenset(Scope(scope) for scope in self.declared.scopes)

    @property
    def limits(self) -> Limits:
        return limits_of(self.declared.limits)

    @property
    def expires(self) -> int | None:
        """Milliseconds since the epoch."""
        return None if self.declared.expires is None else to_ms(self.declared.expires)


@dataclass(frozen=True)
class Declaration:
    """What a file declares. `document` has the positions, for faults that are found later."""

    name: str
    tenants: tuple[DeclaredTenant, ...]
    keys: tuple[KeyOfTenant, ...]
    document: Document

    def refused(self, *faults: Fault) -> TenantsFileRefused:
        return TenantsFileRefused(self.name, sorted(faults))


def limits_of(declared: DeclaredLimits) -> Limits:
    """The same limits as records have them."""
    return Limits.model_validate(declared.model_dump()) if declared != DeclaredLimits() else UNLIMITED


def parse(text: str, *, name: str, read_secret: ReadSecret | None) -> Declaration:
    """The declaration of a file. Without `read_secret` secret files are not read, and their keys are left out.

    Raises TenantsFileRefused with all faults. No message contains a secret.
    """
    try:
        document = Document(text)
    except Unreadable as error:
        raise TenantsFileRefused(name, error.faults) from None
    try:
        file = _File.model_validate(document.content)
    except ValidationError as error:
        faults = sorted({document.fault(each["loc"], _reason(each)) for each in error.errors(include_url=False)})
        raise TenantsFileRefused(name, faults) from None
    keys: list[KeyOfTenant] = []
    faults = [*_repeated_tenants(document, file)]
    for index, tenant in enumerate(file.tenants):
        if tenant.name == DEFAULT_TENANT and tenant.disabled:
            reason = "the root key belongs to this tenant, which cannot be disabled here"
            faults.append(document.fault(("tenants", index, "disabled"), reason))
        for position, declared in enumerate(tenant.keys):
            place: Place = ("tenants", index, "keys", position)
            found = _identity(document, declared, place, read_secret)
            if isinstance(found, Fault):
                faults.append(found)
            elif found is not None:
                keys.append(KeyOfTenant(tenant.name, *found, declared, place))
    faults += _repeated_keys(document, keys)
    if faults:
        raise TenantsFileRefused(name, sorted(faults))
    return Declaration(name, tuple(file.tenants), tuple(keys), document)


class TenantsFile:
    """The file at `path`, and the secret files that it names: those with relative paths are beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[Path, str | None] = {}

    def has_changed(self) -> bool:
        """Whether a file has changed since `read`, or appeared, or disappeared."""
        return not self._seen or any(_digest(path) != digest for path, digest in self._seen.items())

    def read(self) -> Declaration:
        """What the file declares now. Raises TenantsFileRefused."""
        self._seen = {self._path: _digest(self._path)}
        return parse(
            read_text(self._path), name=self._path.name, read_secret=lambda file: self._read(self._path.parent / file)
        )

    def _read(self, path: Path) -> str:
        self._seen[path] = _digest(path)  # before the text: a change in between is then noticed
        return _text(path)


def read_text(path: Path) -> str:
    """The text of a file. Raises TenantsFileRefused."""
    try:
        return _text(path)
    except (OSError, ValueError) as error:
        raise TenantsFileRefused(path.name, (), detail=f"{path}: {_cause(error)}") from None


def _text(path: Path) -> str:
    content = _content(path)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    return content.decode()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(_content(path)).hexdigest()
    except OSError:
        return None


def _identity(
    document: Document, key: DeclaredKey, place: Place, read_secret: ReadSecret | None
) -> tuple[str, tuple[str, ...]] | Fault | None:
    """The id and the digests of a key; None where its secret file is not to be read."""
    if key.secret_file is not None:
        if key.id is not None or key.digests is not None:
            return document.fault(place, "has secret_file, and therefore must not have id or digests")
        place = (*place, "secret_file")
        if _SECRET.search(key.secret_file):
            return document.fault(place, "must be the path of a file with the key, and not the key")
        if read_secret is None:
            return None
        try:
            lines = read_secret(key.secret_file).split()
        except (OSError, ValueError) as error:
            return document.fault(place, f"{key.secret_file}: {_cause(error)}")
        credentials = [Credential.parse(line) for line in lines]
        known = [credential for credential in credentials if credential is not None]
        if not 1 <= len(known) == len(credentials) <= MAX_SECRETS:
            return document.fault(place, f"{key.secret_file}: must have one key, or two, each in a line of its own")
        if len({credential.key_id for credential in known}) > 1:
            return document.fault(place, f"{key.secret_file}: the two keys must have the same id")
        return known[0].key_id, tuple(dict.fromkeys(credential.digest for credential in known))
    if key.id is None or key.digests is None:
        return document.fault(place, "must have secret_file, or id and digests")
    return key.id, tuple(dict.fromkeys(key.digests))


def _repeated_tenants(document: Document, file: _File) -> Iterator[Fault]:
    names: set[str] = set()
    for index, tenant in enumerate(file.tenants):
        if tenant.name in names:
            yield document.fault(("tenants", index, "name"), f"the tenant {tenant.name} was given already")
        names.add(tenant.name)


def _repeated_keys(document: Document, keys: Sequence[KeyOfTenant]) -> Iterator[Fault]:
    ids: set[str] = set()
    for key in keys:
        if key.id in ids:
            named_by = "id" if key.declared.secret_file is None else "secret_file"
            yield document.fault((*key.place, named_by), f"the key {key.id} was given already")
        ids.add(key.id)


def _reason(error: Any) -> str:
    """Why a value is not valid, without the value."""
    match error["type"]:
        case "extra_forbidden":
            return "is not known here"
        case "missing":
            return "is missing"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")


def _cause(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
