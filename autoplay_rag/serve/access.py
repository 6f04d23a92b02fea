"""Which requests a route accepts, and whose data they select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

from fastapi import Request
from fastapi.dependencies.models import Dependant

from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.audit import AuditRecord
from autoplay_rag.serve.auth import Need, Principal
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.pulling import AskedPulls
from autoplay_rag.serve.serving import serving_of

__all__ = ["Access", "Admits", "Caller", "Ids", "Needs", "needs_of", "opened_access"]


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids that select data. None selects any.

    Attributes:
        user_id: The person.
        session_id: The session.
        product_id: The product.
        conversation_id: The chat thread.
    """

    user_id: str | None = None
    session_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The ids that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request that was let through.

    Attributes:
        principal: Who makes it; None only on an open route.
        audit: Its line in the audit log.
    """

    principal: Principal | None
    audit: AuditRecord


@dataclass(frozen=True, slots=True)
class Access(Caller):
    """One request to a pipeline that was let through.

    Attributes:
        pipeline: Answers it.
        pulls: Pulls the user whom it asks about; None pulls nobody.
    """

    pipeline: IngestPipeline
    pulls: AskedPulls | None = None

    @property
    def is_bound(self) -> bool:
        """Whether only one person's or one session's data may be seen."""
        return self.principal is not None and self.principal.bound is not None

    @property
    def bound_user(self) -> str | None:
        """The person that the token is bound to; None if it is not bound to a person."""
        bound = self.principal.bound if self.principal else None
        return bound.user_id if bound else None

    async def select(self, ids: Ids) -> Ids:
        """Return the ids that select what this request may see.

        Raises:
            ProblemError: 403 if the ids are not those of the token; 409 if they occur in several
                products and no product is given.
        """
        self.audit.about(ids.given)
        selected = self._within(ids)
        self.audit.about(selected.given)
        await self._check_products(selected)
        return selected

    async def select_fresh(self, ids: Ids) -> Ids:
        """Like `select`, and then pull the person, if a source of the pipeline can be asked for them.

        Raises:
            ProblemError: As `select`: nobody is pulled for someone who may not see them.
        """
        selected = await self.select(ids)
        if self.pulls is not None:
            await self.pulls.refresh(selected.user_id, selected.product_id)
        return selected

    def _within(self, ids: Ids) -> Ids:
        bound = self.principal.bound if self.principal else None
        if bound is None:
            return ids
        if ids.product_id not in (None, bound.product_id):
            _refuse("product")
        ids = replace(ids, product_id=bound.product_id)
        if bound.session_id is not None:
            if ids.session_id not in (None, bound.session_id):
                _refuse("session")
            if ids.user_id is not None:
                _refuse("person")
            return replace(ids, session_id=bound.session_id)
        if ids.user_id not in (None, bound.user_id):
            _refuse("person")
        return replace(ids, user_id=bound.user_id)

    async def _check_products(self, ids: Ids) -> None:
        given: Mapping[str, str] = {n: v for n, v in ids.given.items() if n != "product_id"}
        if ids.product_id is not None or not given:
            return
        # A person is checked alone: some answers are about all that the person did.
        checked = {"user_id": ids.user_id} if ids.user_id is not None else given
        found = await self.pipeline.products(**checked)
        if len(found) > 1:
            raise ProblemError(
                409, f"The ids given occur in {len(found)} products: give product_id as well."
            )


class Admits:
    """A dependency of a route that takes payloads, or says how the process is: what the route needs.

    Args:
        need: What the route needs.
        audited: Whether requests are in the audit log.
    """

    def __init__(self, need: Need, *, audited: bool = False) -> None:
        self.need = need
        self.audited = audited

    async def __call__(self, request: Request) -> Caller:
        """Let a request through.

        Raises:
            ProblemError: 401 without a key or token; 403 with one that does not allow it.
        """
        principal: Principal | None = request.scope["state"]["principal"]
        route = f"{request.method} {getattr(request.scope.get('route'), 'path_format', '')}"
        caller = Caller(principal, _record_of(principal, route))
        if self.audited:
            request.scope["state"]["audit"] = caller.audit
        if self.need != "open":
            if principal is None:
                raise ProblemError(
                    401,
                    "Give a key or a token: Authorization: Bearer ...",
                    {"www-authenticate": "Bearer"},
                )
            if not principal.allows(self.need):
                raise ProblemError(403, f"This needs {_SAID[self.need]}.")
        return caller


class Needs(Admits):
    """A dependency of a route to a pipeline; see `Admits`."""

    async def __call__(self, request: Request) -> Access:
        """Let a request through; as `Admits`."""
        caller = await Admits.__call__(self, request)
        serving = serving_of(request)
        return Access(caller.principal, caller.audit, serving.pipeline, serving.pulls)


def opened_access(
    principal: Principal | None,
    route: str,
    pipeline: IngestPipeline,
    pulls: AskedPulls | None = None,
) -> Access:
    """Make the access of one request, with the beginning of its line in the audit log.

    Args:
        principal: Who makes it.
        route: What it asks, without ids.
        pipeline: Answers it.
        pulls: Pulls the user whom it asks about; None pulls nobody.
    """
    return Access(principal, _record_of(principal, route), pipeline, pulls)


def _record_of(principal: Principal | None, route: str) -> AuditRecord:
    record = AuditRecord(principal.name if principal else "nobody", route)
    if principal is not None and principal.bound is not None:
        bound = principal.bound
        record.about({"user_id": bound.user_id, "session_id": bound.session_id})
    return record


_SAID: dict[Need, str] = {
    "own": "a read key or a token",
    "read": "a read key",
    "ingest": "an ingest key",
    "admin": "an admin key",
}


def needs_of(dependant: Dependant) -> list[Admits]:
    """Return the needs among the dependencies of a route, at any depth."""
    found: list[Admits] = []
    for one in dependant.dependencies:
        if isinstance(one.call, Admits):
            found.append(one.call)
        found += needs_of(one)
    return found


def _refuse(what: str) -> NoReturn:
    raise ProblemError(403, f"The token is bound to another {what}.")
