"""The client of the API server. kopf's watches aside, all requests to it are made here.

Objects are plain mappings, as kopf passes them; `pools.py` and `objects.py` read them into types. Every failure is one
of three: `Conflict` (read again), `RequestRejected` (permanent), `ClusterUnavailable` (temporary).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import httpx2
from darkroom.errors import PermanentError, TemporaryError
from lightkube import ApiError, AsyncClient
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.types import PatchType

FIELD_MANAGER = "darkroom-operator"
"""The owner of the fields that the operator applies (server-side apply)."""

CREATION_FIELD_MANAGER = "darkroom-operator-create"
"""The owner of a Deployment's fields between its creation and the first apply."""

REQUEST_TIMEOUT_S = 5.0
"""The timeout of a request: the Lease must be renewed several times in 15 s."""

Object = Mapping[str, Any]
"""An object of Kubernetes, as decoded from JSON."""

Kind = type[GenericNamespacedResource]

WORKER_POOL = create_namespaced_resource("darkroom.dev", "v1alpha1", "WorkerPool", "workerpools")
DEPLOYMENT = create_namespaced_resource("apps", "v1", "Deployment", "deployments")
DISRUPTION_BUDGET = create_namespaced_resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE = create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases")
SERVICE_ACCOUNT = create_namespaced_resource("", "v1", "ServiceAccount", "serviceaccounts")
POD = create_namespaced_resource("", "v1", "Pod", "pods")
EVENT = create_namespaced_resource("", "v1", "Event", "events")

KINDS: Mapping[str, Kind] = {
    kind.__name__: kind for kind in (WORKER_POOL, DEPLOYMENT, DISRUPTION_BUDGET, LEASE, SERVICE_ACCOUNT, POD, EVENT)
}

NOT_FOUND, CONFLICT, TOO_MANY, SERVER_ERROR = 404, 409, 429, 500


class ClusterUnavailable(TemporaryError):
    """The API server does not answer, or is overloaded."""


class Conflict(TemporaryError):
    """The object already exists, or has another version than expected."""


class RequestRejected(PermanentError):
    """The API server rejects the request. `code` is its HTTP status."""

    def __init__(self, detail: str, *, code: int) -> None:
        super().__init__(detail)
        self.code = code


@contextmanager
def translated() -> Iterator[None]:
    """Translate lightkube's exceptions."""
    try:
        yield
    except ApiError as error:
        code = error.status.code or SERVER_ERROR
        message = error.status.message or str(error)
        # Servers before 1.26 answer an apply with an unknown field with 500.
        if code == SERVER_ERROR and "not declared in schema" in message:
            raise RequestRejected(message, code=422) from error
        if code == CONFLICT:
            raise Conflict(message) from error
        if code == TOO_MANY or code >= SERVER_ERROR:
            raise ClusterUnavailable(message) from error
        raise RequestRejected(message, code=code) from error
    except httpx2.HTTPStatusError as error:  # an answer without a Status, such as a proxy's
        code = error.response.status_code
        if code == TOO_MANY or code >= SERVER_ERROR:
            raise ClusterUnavailable(f"the API server answers {code}") from error
        raise RequestRejected(f"the API server answers {code}", code=code) from error
    except (httpx2.HTTPError, OSError) as error:
        raise ClusterUnavailable(f"the API server does not answer: {type(error).__name__} {error}") from error


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self._client: Any = client  # lightkube has an overload for each type of resource
        self.namespace = namespace

    async def get(self, kind: Kind, name: str) -> Object | None:
        """The object, or None if it does not exist."""
        with translated():
            try:
                return cast(Object, await self._client.get(kind, name, namespace=self.namespace))
            except ApiError as error:
                if error.status.code == NOT_FOUND:
                    return None
                raise

    async def listing(self, kind: Kind, *, label: str | None = None) -> tuple[list[Object], str]:
        """All objects of a kind, or those with this label, and the version of the list."""
        with translated():
            labels = None if label is None else {label: None}
            listed = self._client.list(kind, namespace=self.namespace, labels=labels)
            found: list[Object] = [item async for item in listed]
            return found, listed.resourceVersion

    async def create(self, body: Object, *, field_manager: str = FIELD_MANAGER) -> Object:
        """Create an object. Raises Conflict if it already exists."""
        kind = KINDS[body["kind"]]
        with translated():
            answer: Object = await self._client.create(
                kind.from_dict(dict(body)), namespace=self.namespace, field_manager=field_manager
            )
            return answer

    async def replace(self, body: Object) -> Object:
        """Replace an object. Raises Conflict if its version is not that of `body`."""
        kind = KINDS[body["kind"]]
        with translated():
            answer: Object = await self._client.replace(
                kind.from_dict(dict(body)),
                body["metadata"]["name"],
                namespace=self.namespace,
                field_manager=FIELD_MANAGER,
            )
            return answer

    async def apply(self, body: Object, *, dry_run: bool = False) -> Object:
        """Server-side apply: set these fields, and take over their ownership."""
        kind = KINDS[body["kind"]]
        with translated():
            answer: Object = await self._client.patch(
                kind,
                body["metadata"]["name"],
                dict(body),
                namespace=self.namespace,
                patch_type=PatchType.APPLY,
                field_manager=FIELD_MANAGER,
                force=True,
                dry_run=dry_run,
            )
            return answer

    async def merge(self, kind: Kind, name: str, patch: Object) -> Object:
        """Apply a JSON merge patch."""
        with translated():
            answer: Object = await self._client.patch(
                kind,
                name,
                dict(patch),
                namespace=self.namespace,
                patch_type=PatchType.MERGE,
                field_manager=FIELD_MANAGER,
            )
            return answer

    async def delete(self, kind: Kind, name: str) -> None:
        """Delete an object. Raises RequestRejected if it does not exist."""
        with translated():
            await self._client.delete(kind, name, namespace=self.namespace)

    async def merge_status(self, name: str, status: Object) -> None:
        """Set these fields of a pool's status."""
        with translated():
            await self._client.patch(
                WORKER_POOL.Status,
                name,
                {"status": dict(status)},
                namespace=self.namespace,
                patch_type=PatchType.MERGE,
                field_manager=FIELD_MANAGER,
            )

    async def set_conditions(self, pod: str, conditions: list[Object]) -> None:
        """Set these conditions of a pod; others stay."""
        with translated():
            await self._client.patch(
                POD.Status,
                pod,
                {"status": {"conditions": conditions}},
                namespace=self.namespace,
                patch_type=PatchType.STRATEGIC,
                field_manager=FIELD_MANAGER,
            )

    async def drop_creation_manager(self, deployment: Object) -> Object:
        """Release the ownership of the fields that the creation wrote, so that an apply that omits a field removes it.
        `replicas` has no owner then, and stays unchanged.
        """
        metadata = deployment["metadata"]
        managers = [
            entry for entry in metadata.get("managedFields", []) if entry.get("manager") != CREATION_FIELD_MANAGER
        ]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "managedFields": managers}}
        return await self.merge(DEPLOYMENT, metadata["name"], patch)

    async def replicas(self, deployment: str) -> tuple[int, str]:
        """The replicas of a Deployment's scale, and its version."""
        with translated():
            scale = await self._client.get(DEPLOYMENT.Scale, deployment, namespace=self.namespace)
        assert scale.spec is not None  # noqa: S101 - never without
        assert scale.metadata is not None  # noqa: S101
        return scale.spec.replicas or 0, scale.metadata.resourceVersion or ""

    async def scale(self, deployment: str, *, replicas: int, version: str) -> str:
        """Set a Deployment's replicas and return its new version. Raises Conflict if its version has changed."""
        body = DEPLOYMENT.Scale(
            metadata=ObjectMeta(name=deployment, namespace=self.namespace, resourceVersion=version),
            spec=ScaleSpec(replicas=replicas),
        )
        with translated():
            after = await self._client.replace(body, deployment, namespace=self.namespace, field_manager=FIELD_MANAGER)
        assert after.metadata is not None  # noqa: S101 - never without
        return after.metadata.resourceVersion or ""


@asynccontextmanager
async def connected(namespace: str) -> AsyncIterator[Cluster]:
    """Connect to the cluster by the service account of this pod or by `KUBECONFIG`."""
    client = AsyncClient(namespace=namespace, timeout=httpx2.Timeout(REQUEST_TIMEOUT_S), field_manager=FIELD_MANAGER)
    try:
        yield Cluster(client, namespace)
    finally:
        await client.close()
