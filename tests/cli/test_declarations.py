"""`darkroom tenants check` and `darkroom keys generate`, which need no server."""

from __future__ import annotations

import json
from pathlib import Path

from darkroom.access.credentials import Credential
from darkroom.access.declarations.tenants_file import TenantsFile

from tests.darkroom_command import darkroom

FILE = """\
tenants:
  - name: studio
    keys:
      - {name: backend, scopes: [submit], secret_file: backend}
      - {name: ci, scopes: [read], id: "%s", digests: ["%s"]}
"""


def test_a_valid_file_is_counted_without_its_secrets(tmp_path: Path) -> None:
    other = Credential.generate()
    (tmp_path / "tenants.yaml").write_text(FILE % (other.key_id, other.digest))

    done = darkroom(["tenants", "check", "tenants.yaml"], folder=tmp_path)

    assert (done.returncode, done.stdout) == (0, "tenants.yaml is valid: tenants: 1, keys: 2.\n")


def test_each_fault_is_a_line_with_its_position(tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text("tenants:\n  - name: Studio\n    wait: 1\n")

    done = darkroom(["tenants", "check", "tenants.yaml"], folder=tmp_path)
    as_json = darkroom(["tenants", "check", "tenants.yaml", "--json"], folder=tmp_path)

    first, second = done.stdout.splitlines()
    assert done.returncode == as_json.returncode == 1
    assert first.startswith("tenants.yaml:2:5: tenants[0].name: 'Studio' is not a name")
    assert second == "tenants.yaml:3:5: tenants[0].wait: is not known here"
    found = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [(fault["line"], fault["column"], fault["field"]) for fault in found] == [
        (2, 5, "tenants[0].name"),
        (3, 5, "tenants[0].wait"),
    ]


def test_secret_files_are_read_on_request(tmp_path: Path) -> None:
    other = Credential.generate()
    (tmp_path / "tenants.yaml").write_text(FILE % (other.key_id, other.digest))

    done = darkroom(["tenants", "check", "tenants.yaml", "--secrets"], folder=tmp_path)
    assert (done.returncode, done.stdout) == (
        1,
        "tenants.yaml:4:43: tenants[0].keys[0].secret_file: backend: No such file or directory\n",
    )
    (tmp_path / "backend").write_text(Credential.generate().text)
    assert darkroom(["tenants", "check", "tenants.yaml", "--secrets"], folder=tmp_path).returncode == 0


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    done = darkroom(["tenants", "check", "tenants.yaml"], folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr == "darkroom: tenants.yaml: No such file or directory\n"


def test_a_generated_key_is_what_a_file_declares(tmp_path: Path) -> None:
    done = darkroom(["keys", "generate", "--json"], folder=tmp_path)
    made = json.loads(done.stdout)
    rotated = darkroom(["keys", "generate", "--id", made["id"]], folder=tmp_path)

    (tmp_path / "backend").write_text(f"{rotated.stdout}{made['key']}\n")
    (tmp_path / "tenants.yaml").write_text(FILE % ("0" * 12, "0" * 64))
    backend, _ = TenantsFile(tmp_path / "tenants.yaml").read().keys
    assert backend.id == made["id"]
    assert backend.digests[1] == made["digest"]
    assert made["digest"] not in rotated.stderr
    assert f'digests: ["{backend.digests[0]}"]' in rotated.stderr


def test_a_wrong_id_is_bad_input(tmp_path: Path) -> None:
    done = darkroom(["keys", "generate", "--id", "studio"], folder=tmp_path)

    assert done.returncode == 2
    assert "'studio' is not the id of a key" in done.stderr
