"""`/people`: one person's sessions, and forgetting this person."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import RedirectResponse, Response

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.inspector.live import live_of
from autoplay_rag.serve.inspector.pages import IdField, PageRoute, base_of, form_of, page, query_of
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_LISTED: Final = 50
_LONGEST_ID: Final = 512
_MOST_PEOPLE: Final = 30


@router.get("/people")
async def people(
    request: Request,
    access: Annotated[Access, Depends(Needs("own", audited=True))],
    *,
    user_id: IdField = "",
    product_id: IdField = "",
    cursor: Annotated[str, Query(max_length=200)] = "",
    receipt: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    """Show a person, or the receipt of a request to forget one."""
    if receipt is not None:
        return await _receipt(request, access, receipt)
    bound = access.principal.bound if access.principal else None
    if bound is not None and bound.user_id is None:
        raise ProblemError(403, "The token is bound to a session, not to a person: see Sessions.")
    user_id = user_id or (access.bound_user or "")
    return await _person(request, access, user_id, product_id, cursor)


@router.post("/people")
async def forget(
    request: Request, access: Annotated[Access, Depends(Needs("admin", audited=True))]
) -> Response:
    """Count what would be forgotten, or forget it: `confirm` decides."""
    form = await form_of(request)
    user_id, product_id = (form.get(name, [""])[0] for name in ("user_id", "product_id"))
    if not 0 < len(user_id) <= _LONGEST_ID or len(product_id) > _LONGEST_ID:
        raise ProblemError(422, "Give the id of the person.")
    block = form.get("block", [""])[0] == "yes"
    ids = await access.select(Ids(user_id=user_id, product_id=product_id or None))
    confirmed = form.get("confirm", [""])[0] == "yes"
    receipt = await access.pipeline.forget(**ids.given, dry_run=not confirmed, block=block)
    access.audit.counts |= {
        "payloads": receipt.payloads,
        "chunks": receipt.chunks,
        "sessions": receipt.sessions,
        "dry_run": int(receipt.dry_run),
    }
    if confirmed:
        return RedirectResponse(f"{base_of(request)}people?receipt={receipt.number}", 303)
    return await _person(request, access, user_id, product_id, "", would=receipt, block=block)


async def _person(
    request: Request,
    access: Access,
    user_id: str,
    product_id: str,
    cursor: str,
    *,
    would: Receipt | None = None,
    block: bool = False,
) -> Response:
    found, products = None, []
    names: list[tuple[str, str]] = []
    if user_id:
        products = await access.pipeline.products(user_id=user_id) if not access.is_bound else []
        if not product_id and len(products) == 1:
            product_id = products[0]
        if product_id or len(products) < 2 or access.is_bound:  # noqa: PLR2004 - one to choose from
            ids = await access.select(Ids(user_id=user_id, product_id=product_id or None))
            product_id = ids.product_id or ""
            found = await access.pipeline.sessions(
                ids.user_id,
                ids.product_id,
                shared=not access.is_bound,
                limit=_LISTED,
                cursor=cursor or None,
            )
            access.audit.counts["sessions"] = len(found)
    else:
        live = live_of(access, await access.select(Ids()), 200)
        pairs = ((one.user_id, one.product_id) for one in live if one.user_id)
        names = list(dict.fromkeys(pairs))[:_MOST_PEOPLE]
    more = None
    if found is not None and found.next:
        more = query_of(user_id=user_id, product_id=product_id, cursor=found.next)
    return page(
        request,
        "people.html",
        "People",
        stream="?page=people",
        user_id=user_id,
        product_id=product_id,
        products=products,
        found=found,
        more=more,
        first=not cursor,
        names=names,
        would=would,
        block=block,
        may_choose=not access.is_bound,
    )


async def _receipt(request: Request, access: Access, number: int) -> Response:
    if access.principal is None or not access.principal.allows("admin"):
        raise ProblemError(403, "This needs an admin key.")
    try:
        found = await access.pipeline.receipt(number)
    except ConfigurationError:
        raise ProblemError(404, "There is no request to forget of this number.") from None
    return page(request, "receipt.html", "Forgotten", stream="?page=people", receipt=found)
