"""`darkroom tenants check` and `darkroom keys generate`: what a file of tenants needs, without a server."""

from __future__ import annotations

from pathlib import Path

from darkroom.access.credentials import Credential
from darkroom.access.declarations.tenants_file import TenantsFile, TenantsFileRefused, parse, read_text

from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.terminal.output import Output


def check_file(path: Path, output: Output, *, with_secrets: bool) -> int:
    """Print each fault of a file of tenants in a line of its own. Raises TenantsFileRefused if it cannot be read."""
    text = read_text(path)
    try:
        found = TenantsFile(path).read() if with_secrets else parse(text, name=path.name, read_secret=None)
    except TenantsFileRefused as error:
        for fault in error.faults:
            members = {"line": fault.line, "column": fault.column, "field": fault.field, "reason": fault.reason}
            output.record({"file": str(path), **members})
            where = f"{fault.field}: " if fault.field else ""
            output.result(f"{path}:{fault.line}:{fault.column}: {where}{fault.reason}")
        output.info(f"{path} is not valid.")
        return FAILED
    tenants, keys = len(found.tenants), sum(len(tenant.keys) for tenant in found.tenants)
    output.record({"file": str(path), "tenants": tenants, "keys": keys})
    output.result(f"{path} is valid: tenants: {tenants}, keys: {keys}.")
    return DONE


def generate_key(output: Output, *, key_id: str | None) -> int:
    """Print a new key, which no server knows, and what a file of tenants says of it."""
    credential = Credential.generate(key_id)
    output.info("The key is shown once. A file of tenants names it by a file with this text, or by:")
    output.info(f'  id: "{credential.key_id}"')
    output.info(f'  digests: ["{credential.digest}"]')
    output.record({"key": credential.text, "id": credential.key_id, "digest": credential.digest})
    output.result(credential.text)
    return DONE
