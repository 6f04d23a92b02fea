"""An HTTP client that behaves as a browser without scripts: cookies, HTML, forms with an `Origin`."""

import re

import httpx

HTML = {"accept": "text/html"}


def browser(running):
    """A client with a cookie jar, which asks for HTML as a browser does."""
    return httpx.AsyncClient(base_url=running.server.url, headers=HTML, timeout=30)


async def signed_in(running, client, credential, **fields):
    answer = await submit(running, client, "/sign-in", {"key": credential, **fields})
    assert answer.status_code == 303
    return answer


async def submit(running, client, path, data):
    return await client.post(path, data=data, headers={"origin": running.server.url})


def tags(html):
    return sorted(set(re.findall(r"<([a-z][a-z0-9]*)", html)))


def links(html):
    return re.findall(r'(?:href|src|action|sse-connect)="([^"]*)"', html)


def main_of(html):
    """The content of a page, without the frame."""
    return html.partition('<main id="main"')[2].partition("</main>")[0]
