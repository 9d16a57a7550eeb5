"""What the operator says to the API server, and the only place that does, kopf's own watches aside.

Objects are plain mappings, as kopf hands them out; `pools.py` and `world.py` make types of them. Every failure is one
of three: `Conflict` (look again), `RequestRejected` (as it is, never), `ClusterUnavailable` (later).
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
"""Who owns the fields that we apply (server-side apply)."""

CREATION_FIELD_MANAGER = "darkroom-operator-create"
"""Who owns a Deployment's fields for the moment between its creation and the first apply."""

REQUEST_TIMEOUT_S = 5.0
"""How long an answer may take: the Lease must be renewed several times in 15 s."""

Object = Mapping[str, Any]
"""An object of Kubernetes, as JSON has it."""

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
    """The API server does not answer, or cannot now."""


class Conflict(TemporaryError):
    """The object is another than was thought."""


class RequestRejected(PermanentError):
    """The API server does not take the request. `code` is its HTTP status."""

    def __init__(self, detail: str, *, code: int) -> None:
        super().__init__(detail)
        self.code = code


@contextmanager
def translated() -> Iterator[None]:
    """lightkube's failures as ours."""
    try:
        yield
    except ApiError as error:
        code = error.status.code or SERVER_ERROR
        message = error.status.message or str(error)
        # An apply that names an unknown field is answered with 500 by servers before 1.26.
        if code == SERVER_ERROR and "not declared in schema" in message:
            raise RequestRejected(message, code=422) from error
        if code == CONFLICT:
            raise Conflict(message) from error
        if code == TOO_MANY or code >= SERVER_ERROR:
            raise ClusterUnavailable(message) from error
        raise RequestRejected(message, code=code) from error
    except httpx2.HTTPStatusError as error:  # an answer that is no Status: of something between us and the API server
        code = error.response.status_code
        if code == TOO_MANY or code >= SERVER_ERROR:
            raise ClusterUnavailable(f"the API server answers {code}") from error
        raise RequestRejected(f"the API server answers {code}", code=code) from error
    except (httpx2.HTTPError, OSError) as error:
        raise ClusterUnavailable(f"the API server does not answer: {type(error).__name__} {error}") from error


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self._client: Any = client  # lightkube has an overload for each kind of kind; ours is any
        self.namespace = namespace

    async def get(self, kind: Kind, name: str) -> Object | None:
        with translated():
            try:
                return cast(Object, await self._client.get(kind, name, namespace=self.namespace))
            except ApiError as error:
                if error.status.code == NOT_FOUND:
                    return None
                raise

    async def listing(self, kind: Kind, *, label: str | None = None) -> tuple[list[Object], str]:
        """All of a kind, or those that have this label, and the version of the list."""
        with translated():
            labels = None if label is None else {label: None}
            listed = self._client.list(kind, namespace=self.namespace, labels=labels)
            found: list[Object] = [item async for item in listed]
            return found, listed.resourceVersion

    async def create(self, body: Object, *, field_manager: str = FIELD_MANAGER) -> Object:
        """Raises Conflict where it is there already."""
        kind = KINDS[body["kind"]]
        with translated():
            answer: Object = await self._client.create(
                kind.from_dict(dict(body)), namespace=self.namespace, field_manager=field_manager
            )
            return answer

    async def replace(self, body: Object) -> Object:
        """Raises Conflict where it is not the version that `body` names."""
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
        """Server-side apply: the object has these fields now, whoever had them before."""
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
        """JSON merge patch."""
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
        """Raises RequestRejected where it is gone already."""
        with translated():
            await self._client.delete(kind, name, namespace=self.namespace)

    async def merge_status(self, name: str, status: Object) -> None:
        """Write these fields of a pool's status."""
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

    async def forget_creator(self, deployment: Object) -> Object:
        """Nobody owns what the creation wrote: an apply that leaves a field out removes it then. Owned by nobody, the
        number of replicas stays what it is.
        """
        metadata = deployment["metadata"]
        managers = [
            entry for entry in metadata.get("managedFields", []) if entry.get("manager") != CREATION_FIELD_MANAGER
        ]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "managedFields": managers}}
        return await self.merge(DEPLOYMENT, metadata["name"], patch)

    async def replicas(self, deployment: str) -> tuple[int, str]:
        """What its scale says now, and the version of that."""
        with translated():
            scale = await self._client.get(DEPLOYMENT.Scale, deployment, namespace=self.namespace)
        assert scale.spec is not None  # noqa: S101 - never without
        assert scale.metadata is not None  # noqa: S101
        return scale.spec.replicas or 0, scale.metadata.resourceVersion or ""

    async def scale(self, deployment: str, *, replicas: int, version: str) -> str:
        """Set the Deployment's replicas, if it is still of this version; answers the new version. Raises Conflict."""
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
    """The cluster, by the service account of this pod or by `KUBECONFIG`."""
    client = AsyncClient(namespace=namespace, timeout=httpx2.Timeout(REQUEST_TIMEOUT_S), field_manager=FIELD_MANAGER)
    try:
        yield Cluster(client, namespace)
    finally:
        await client.close()
