"""The file of tenants: what it declares, its faults with their positions, and how records become as it declares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.access.administration import Administration, ensure_root
from darkroom.access.credentials import Credential
from darkroom.access.declarations.reconciliation import FILE, apply, planned, release
from darkroom.access.declarations.tenants_file import (
    MAX_BYTES,
    Declaration,
    TenantsFile,
    TenantsFileRefused,
    parse,
)
from darkroom.access.directory import Directory
from darkroom.access.limits import Limits
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import Tenant
from darkroom.access.store import AccessStore
from darkroom.errors import ManagedByDeclaration
from darkroom.ledger.client import AsyncLedger

from tests.databases import Database, opened

BACKEND, CI = Credential.generate(), Credential.generate()

FULL = f"""\
tenants:
  - name: studio
    weight: 3
    limits: {{running_jobs: 4, images_per_day: 1000}}
    keys:
      - name: backend
        scopes: [submit, read]
        models: [flux]
        limits:
          submissions_per_minute: 60
        expires: 2027-01-31T00:00:00Z
        secret_file: keys/backend
      - name: ci
        scopes: [submit]
        id: "{CI.key_id}"
        digests: ["{CI.digest}"]
  - name: agency
    disabled: true
"""


def declared(text: str, **secrets: str) -> Declaration:
    return parse(text, name="tenants.yaml", read_secret=lambda file: secrets[Path(file).name])


def faults(text: str, **secrets: str) -> list[str]:
    """The faults of a file, without its name."""

    def read_secret(file: str) -> str:
        if Path(file).name not in secrets:
            raise FileNotFoundError(2, "No such file or directory")
        return secrets[Path(file).name]

    with pytest.raises(TenantsFileRefused) as refused:
        parse(text, name="tenants.yaml", read_secret=read_secret)
    return [str(fault) for fault in refused.value.faults]


def test_a_file_declares_tenants_and_keys() -> None:
    found = declared(FULL, backend=f"{BACKEND.text}\n")

    assert [(tenant.name, tenant.weight, tenant.disabled) for tenant in found.tenants] == [
        ("studio", 3, False),
        ("agency", 1, True),
    ]
    backend, ci = found.keys
    assert (backend.tenant, backend.id, backend.digests) == ("studio", BACKEND.key_id, (BACKEND.digest,))
    assert backend.scopes == {Scope.SUBMIT, Scope.READ}
    assert backend.limits == Limits(submissions_per_minute=60)
    assert backend.expires == 1_801_353_600_000
    assert (ci.id, ci.digests, ci.limits) == (CI.key_id, (CI.digest,), Limits())


def key(**fields: object) -> str:
    """A file with one key, whose first field is in line 4."""
    lines = "".join(f"        {name}: {value}\n" for name, value in fields.items())
    return "tenants:\n  - name: a\n    keys:\n      -\n" + lines


IDENTITY = {"id": f'"{CI.key_id}"', "digests": f'["{CI.digest}"]'}
WHOLE: dict[str, object] = {"name": "ci", "scopes": "[submit]", **IDENTITY}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", ["line 1, column 1: the document is empty"], id="empty"),
        pytest.param("# nothing\n", ["line 1, column 1: the document is empty"], id="a comment alone"),
        pytest.param("[]", ["line 1, column 1: Input should be a valid dictionary"], id="a list"),
        pytest.param("tenants:", ["line 1, column 1: tenants: Input should be a valid list"], id="no list"),
        pytest.param("a: 1\n---\nb: 2\n", ["line 2, column 1: is not YAML: but found another document"], id="two"),
        pytest.param(
            "tenants: [\n", ["line 2, column 1: is not YAML: expected the node content, but found '<stream end>'"]
        ),
        pytest.param("tenants:\n\t- name: a\n", ["line 2, column 1: is not YAML: found character '\\t'"], id="a tab"),
        pytest.param("tenants: *all\n", ["line 1, column 10: is not YAML: found undefined alias 'all'"], id="alias"),
        pytest.param(
            "tenants: !!python/object:os.system x\n", ["line 1, column 10: is not YAML: could not"], id="an object"
        ),
        pytest.param("a: \x01\n", ["line 1, column 1: is not YAML: special characters are not allowed"], id="control"),
        pytest.param("[" * 5000, ["line 1, column 1: is nested too deeply"], id="deep"),
        pytest.param("tenants: &a [*a]\n", ["line 1, column 10: tenants[0]: Input should be"], id="recursive"),
        pytest.param(
            "tenants: []\ntenants: []\n", ["line 2, column 1: tenants: was given in line 1 already"], id="twice"
        ),
        pytest.param(
            "tenants:\n  - name: a\n    weight: 1\n    name: b\n",
            ["line 4, column 5: tenants[0].name: was given in line 2 already"],
            id="a field twice",
        ),
        pytest.param(
            "tenants:\n  - name: a\n    wait: 1\n", ["line 3, column 5: tenants[0].wait: is not known here"], id="field"
        ),
        pytest.param("tenants: []\nversion: 2\n", ["line 2, column 1: version: is not known here"], id="version"),
        pytest.param("tenants:\n  - weight: 1\n", ["line 2, column 5: tenants[0].name: is missing"], id="missing"),
        pytest.param(
            "tenants:\n  - name: Studio\n",
            ["line 2, column 5: tenants[0].name: 'Studio' is not a name of 1 to 63 lower-case"],
            id="name",
        ),
        pytest.param(
            "tenants:\n  - name: 123\n", ["line 2, column 5: tenants[0].name: Input should be a valid string"]
        ),
        pytest.param(
            "tenants:\n  - {name: a, weight: 0}\n",
            ["line 2, column 15: tenants[0].weight: Input should be greater than 0"],
            id="weight",
        ),
        pytest.param(
            "tenants:\n  - {name: a, weight: .nan}\n",
            ["line 2, column 15: tenants[0].weight: Input should be a finite number"],
            id="nan",
        ),
        pytest.param(
            "tenants:\n  - name: a\n    limits:\n      running_jobs: 0\n      jobs: 3\n",
            [
                "line 4, column 7: tenants[0].limits.running_jobs: Input should be greater than or equal to 1",
                "line 5, column 7: tenants[0].limits.jobs: is not known here",
            ],
            id="limits",
        ),
        pytest.param(
            "tenants:\n  - name: a\n  - name: a\n",
            ["line 3, column 5: tenants[1].name: the tenant a was given already"],
            id="a tenant twice",
        ),
        pytest.param(
            "tenants:\n  - name: default\n    disabled: true\n",
            ["line 3, column 5: tenants[0].disabled: the root key belongs to this tenant"],
            id="the root key's tenant",
        ),
        pytest.param(
            key(**{**WHOLE, "scopes": "[submit, write]"}),
            ["line 6, column 26: tenants[0].keys[0].scopes[1]: is not a scope: use submit, read, cancel"],
            id="scope",
        ),
        pytest.param(
            key(**{**WHOLE, "scopes": "[]"}),
            ["line 6, column 9: tenants[0].keys[0].scopes: List should have at least 1 item"],
            id="no scope",
        ),
        pytest.param(
            key(**WHOLE, expires="2027-01-31"),
            ["line 9, column 9: tenants[0].keys[0].expires: must be an RFC 3339 date and time"],
            id="a day",
        ),
        pytest.param(
            key(**{**WHOLE, "id": "short"}),
            ["line 7, column 9: tenants[0].keys[0].id: String should match pattern"],
            id="id",
        ),
        pytest.param(
            key(**{**WHOLE, "digests": f"[{'A' * 64}]"}),
            ["line 8, column 19: tenants[0].keys[0].digests[0]: String should match pattern"],
            id="digest",
        ),
        pytest.param(
            key(name="ci", scopes="[submit]"),
            ["line 5, column 9: tenants[0].keys[0]: must have secret_file, or id and digests"],
            id="no secret",
        ),
        pytest.param(
            key(**WHOLE, secret_file="x"),
            ["line 5, column 9: tenants[0].keys[0]: has secret_file, and therefore must not have id or digests"],
            id="both",
        ),
        pytest.param(
            key(name="ci", scopes="[submit]", secret_file="gone"),
            ["line 7, column 9: tenants[0].keys[0].secret_file: gone: No such file or directory"],
            id="no file",
        ),
        pytest.param(
            key(**WHOLE) + key(**WHOLE).partition("\n")[2].replace("name: a", "name: b"),
            [f"line 14, column 9: tenants[1].keys[0].id: the key {CI.key_id} was given already"],
            id="a key twice",
        ),
    ],
)
def test_a_fault_has_its_line_its_column_and_its_field(text: str, said: list[str]) -> None:
    found = faults(text)

    assert len(found) == len(said), found
    for fault, beginning in zip(found, said, strict=True):
        assert fault.startswith(beginning)


OTHER = Credential.generate()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must have one key, or two"),
        ("nothing", "must have one key, or two"),
        (BACKEND.text[:-1], "must have one key, or two"),
        (f"{BACKEND.text}\nnothing\n", "must have one key, or two"),
        (f"{BACKEND.text}\n{OTHER.text}\n", "the two keys must have the same id"),
        ("\n".join(Credential.generate(BACKEND.key_id).text for _ in range(3)), "must have one key, or two"),
    ],
    ids=["empty", "no key", "cut", "one of two", "two ids", "three"],
)
def test_the_content_of_a_secret_file_is_checked_and_not_repeated(content: str, said: str) -> None:
    text = key(name="backend", scopes="[submit]", secret_file="backend")

    (found,) = faults(text, backend=content)

    assert found.startswith("line 7, column 9: tenants[0].keys[0].secret_file: backend: ")
    assert said in found
    for line in content.split():
        assert line not in found


@pytest.mark.parametrize("field", ["secret_file", "secret", "key"])
def test_a_key_in_the_file_itself_is_refused_and_not_repeated(field: str) -> None:
    (*found,) = faults(key(name="backend", scopes="[submit]", **{field: BACKEND.text}))

    assert found
    assert all(BACKEND.text not in fault for fault in found)


def test_a_rotated_key_has_two_secrets(tmp_path: Path) -> None:
    newer = Credential.generate(BACKEND.key_id)

    (found,) = declared(
        key(name="backend", scopes="[submit]", secret_file="backend"), backend=f"{newer.text}\n{BACKEND.text}\n"
    ).keys

    assert (found.id, found.digests) == (BACKEND.key_id, (newer.digest, BACKEND.digest))


def test_a_file_is_read_again_when_it_or_a_secret_has_changed(tmp_path: Path) -> None:
    path, secret = tmp_path / "tenants.yaml", tmp_path / "backend"
    file = TenantsFile(path)
    with pytest.raises(TenantsFileRefused, match=r"tenants.yaml: No such file"):
        file.read()
    assert not file.has_changed()
    path.write_text(key(name="backend", scopes="[submit]", secret_file="backend"))
    assert file.has_changed()
    with pytest.raises(TenantsFileRefused, match="backend: No such file"):
        file.read()
    assert not file.has_changed()
    secret.write_text(BACKEND.text)
    assert file.has_changed()
    assert file.read().keys[0].id == BACKEND.key_id
    assert not file.has_changed()
    secret.write_text(OTHER.text)
    assert file.has_changed()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not UTF-8"), (b"#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes")],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_bytes(content)

    with pytest.raises(TenantsFileRefused, match=said):
        TenantsFile(path).read()


# -- reconciliation ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def administration(database: Database, ledger: AsyncLedger) -> AsyncIterator[Administration]:
    async with opened(database.url) as history:
        yield Administration(AccessStore(history), Directory(ledger))


async def records(administration: Administration) -> dict[str, tuple[bool, str | None]]:
    """By name: whether each tenant and key is disabled, and what manages it."""
    snapshot = await administration.store.snapshot()
    found = {each.record.name: (each.record.disabled, each.record.managed_by) for each in snapshot.tenants}
    return found | {each.record.name: (each.record.disabled, each.record.managed_by) for each in snapshot.keys}


async def test_a_file_is_applied_once(administration: Administration) -> None:
    file = declared(FULL, backend=BACKEND.text)

    assert await apply(file, administration) == 4
    before = await administration.store.snapshot()
    assert await apply(file, administration) == 0

    assert await administration.store.snapshot() == before
    assert await records(administration) == {
        "studio": (False, FILE),
        "agency": (True, FILE),
        "backend": (False, FILE),
        "ci": (False, FILE),
    }
    backend = await administration.store.key(BACKEND.key_id)
    assert backend is not None
    assert backend.accepts(BACKEND.digest, now=0)
    assert (backend.tenant, backend.models, backend.limits) == ("studio", ("flux",), Limits(submissions_per_minute=60))


async def test_what_left_the_file_is_disabled_and_no_longer_managed(administration: Administration) -> None:
    await apply(declared(FULL, backend=BACKEND.text), administration)
    less = FULL.partition("      - name: ci")[0]

    assert await apply(declared(less, backend=BACKEND.text), administration) == 2

    assert await records(administration) == {
        "studio": (False, FILE),
        "agency": (True, None),
        "backend": (False, FILE),
        "ci": (True, None),
    }
    await administration.delete_key(CI.key_id, actor="tests")
    await apply(declared("tenants: []"), administration)
    assert await records(administration) == {"studio": (True, None), "agency": (True, None), "backend": (True, None)}
    await apply(declared(FULL, backend=BACKEND.text), administration)
    assert (await records(administration))["studio"] == (False, FILE)


async def test_the_file_takes_over_what_an_operation_created(administration: Administration) -> None:
    created = await administration.create_tenant(Tenant(name="studio", weight=7), actor="anna")
    await apply(declared(FULL, backend=BACKEND.text), administration)

    studio = await administration.store.tenant("studio")

    assert studio is not None
    assert (studio.weight, studio.managed_by) == (3, FILE)
    assert (studio.created, studio.created_by) == (created.created, "anna")


async def test_operations_do_not_change_what_the_file_declares(administration: Administration) -> None:
    await apply(declared(FULL, backend=BACKEND.text), administration)
    before = await administration.store.snapshot()

    for change in (
        administration.change_tenant("studio", lambda tenant: tenant, actor=FILE),
        administration.delete_tenant("agency", actor=FILE),
        administration.change_key(CI.key_id, lambda key: key, actor=FILE),
        administration.rotate_key(CI.key_id, overlap_s=0, actor=FILE),
        administration.delete_key(CI.key_id, actor=FILE),
    ):
        with pytest.raises(ManagedByDeclaration, match=FILE):
            await change

    assert await administration.store.snapshot() == before
    _, own = await administration.create_key(tenant="studio", name="own", scopes=frozenset(), actor="anna")
    await apply(declared(FULL, backend=BACKEND.text), administration)
    await administration.delete_key(own.key_id, actor="anna")


async def test_a_rotation_keeps_what_is_known_of_the_key(administration: Administration) -> None:
    await apply(declared(FULL, backend=BACKEND.text), administration)
    await administration.store.note_use({BACKEND.key_id: 60_000})
    newer = Credential.generate(BACKEND.key_id)

    await apply(declared(FULL, backend=f"{newer.text}\n{BACKEND.text}"), administration)

    rotated = await administration.store.key(BACKEND.key_id)
    assert rotated is not None
    assert rotated.last_used == 60_000
    assert rotated.accepts(newer.digest, now=0)
    assert rotated.accepts(BACKEND.digest, now=0)


async def test_the_root_key_belongs_to_its_secret_alone(administration: Administration) -> None:
    root = Credential.generate()
    await ensure_root(administration, root)
    text = key(name="root", scopes="[submit]", id=f'"{root.key_id}"', digests=f'["{root.digest}"]')

    with pytest.raises(TenantsFileRefused, match=r"line 5, column 9: tenants\[0\].keys\[0\]: is the root key"):
        await apply(declared(text), administration)
    assert await administration.store.tenant("a") is None
    with pytest.raises(ManagedByDeclaration, match="root-key"):
        await administration.change_key(root.key_id, lambda key: key, actor=root.key_id)


async def test_the_tenant_of_the_root_key_stays_enabled(administration: Administration) -> None:
    await ensure_root(administration, Credential.generate())
    await apply(declared("tenants:\n  - name: default\n    weight: 2\n"), administration)
    await apply(declared("tenants: []"), administration)

    assert (await records(administration))[DEFAULT_TENANT] == (False, None)


async def test_without_a_file_operations_change_everything(administration: Administration) -> None:
    await apply(declared(FULL, backend=BACKEND.text), administration)

    assert await release(administration) == 4
    assert await release(administration) == 0

    assert await records(administration) == {
        "studio": (False, None),
        "agency": (True, None),
        "backend": (False, None),
        "ci": (False, None),
    }


def test_a_plan_changes_nothing_of_others() -> None:
    others = [Tenant(name="other", weight=5), Tenant(name="managed", managed_by="another")]
    plan: Any = planned(declared("tenants: [{name: studio}]"), others, [], now=0)

    assert len(plan) == 1
    assert [tenant.name for tenant in plan.created_tenants] == ["studio"]
