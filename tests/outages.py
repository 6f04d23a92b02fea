"""An ASGI application that refuses, cuts and loses some of another one's answers."""

import random
from collections import Counter

from starlette.responses import JSONResponse

_STREAK = 4


class Outages:
    """Passes requests on to an application, but for some of them.

    - "refused": a few requests in a row get 500, 503 or 429 at once.
    - "cut": the connection ends in the middle of the answer.
    - "lost": the application took the request, and the answer is 503.
    - "silent": the application took the request, and no answer comes until the client gives up.

    Args:
        app: The application.
        seed: Of the random choice.
        path: Only requests whose path begins so.

    Attributes:
        counts: How many requests had each fate.
    """

    def __init__(self, app, seed, path="/"):
        self.counts = Counter()
        self._app = app
        self._random = random.Random(seed)
        self._path = path
        self._streak = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not scope["path"].startswith(self._path):
            await self._app(scope, receive, send)
            return
        fate = self._fate()
        self.counts[fate] += 1
        match fate:
            case "refused":
                status = self._random.choice([500, 503, 429])
                headers = {"retry-after": "0"} if status == 429 else {}
                await JSONResponse({}, status, headers)(scope, receive, send)
            case "passed":
                await self._app(scope, receive, send)
            case _:
                answer = []

                async def keep(message):
                    answer.append(message)

                await self._app(scope, receive, keep)
                if fate == "cut":
                    await _half(answer, send)
                elif fate == "lost":
                    await JSONResponse({}, 503)(scope, receive, send)
                else:
                    while (await receive())["type"] != "http.disconnect":
                        pass

    def _fate(self):
        if self._streak:
            self._streak -= 1
            return "refused"
        chance = self._random.random()
        if chance < 0.03:
            self._streak = _STREAK
            return "refused"
        for fate, below in (("cut", 0.09), ("lost", 0.15), ("silent", 0.17)):
            if chance < below:
                return fate
        return "passed"


async def _half(answer, send):
    """Send the half of an answer. The server then ends the connection, because no more comes."""
    start, *parts = answer
    body = b"".join(part.get("body", b"") for part in parts)
    await send(start)
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
