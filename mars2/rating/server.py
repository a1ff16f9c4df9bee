"""Shows a rating study in the browser, and takes the answers.

Everything lies below a secret: /SECRET/ is the common link, where a rater gets a place, or one
rater's own. Without a right one there is nothing. What the browser gets names no method, case,
seed or truth; images are known by random keys and are drawn anew, without what their files say.
"""

import contextlib
import functools
import io
import json
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mars2.files import read_image
from mars2.job import RunError
from mars2.rating.database import AnswerError, RatingDatabase, Seat
from mars2.rating.questions import Task

PAGE = Path(__file__).parent / "page"
FILES = {
    "rate.css": "text/css",
    "rate.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",  # addresses are secrets
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex, nofollow",
}
LONGEST_BODY = 16 * 1024
LONGEST_WAIT = 3600.0  # seconds on one question; a longer time is a break
IMAGES_KEPT = 128
COOKIE = "place"


def make_app(database: RatingDatabase) -> Starlette:
    """Return the page of a study as an ASGI application."""
    pages = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = {name: (PAGE / name).read_bytes() for name in FILES}

    @functools.lru_cache(IMAGES_KEPT)
    def drawn(key: str) -> bytes | None:
        path = database.image(key)
        if path is None:
            return None
        buffer = io.BytesIO()
        read_image(path).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def common(token: str) -> bool:
        return secrets.compare_digest(token.encode(), database.join_token.encode())

    def seat_of(request: Request) -> Seat:
        seat = database.seat(request.path_params["token"])
        if seat is None:
            raise HTTPException(404)
        return seat

    def known(request: Request) -> None:
        token = request.path_params["token"]
        if not common(token) and database.seat(token) is None:
            raise HTTPException(404)

    def bare(request: Request) -> Response:
        known(request)
        return RedirectResponse(f"{request.path_params['token']}/", 307)

    def page(request: Request) -> Response:
        if common(request.path_params["token"]):
            before = database.seat(request.cookies.get(COOKIE, ""))
            return _page(
                pages,
                "join.html.j2",
                before=before,
                full=not any(_free(database, seat) for seat in database.seats()),
                visit=secrets.token_urlsafe(12),
            )
        seat = seat_of(request)
        tasks = database.tasks(seat.rater)
        return _page(
            pages,
            "rate.html.j2",
            seat=seat,
            count=len(tasks),
            minutes=max(1, round(sum(task.seconds for task in tasks) / 60)),
            modes=list(dict.fromkeys(task.mode for task in tasks)),
            checked=any(task.truth for task in tasks),
            aspects=database.design.aspects,
            examples=[
                {
                    "aspect": one.aspect,
                    "answer": one.answer,
                    "phrase": one.phrase,
                    "image": database.image_key(one.image),
                    "references": [database.image_key(file) for file in one.references],
                }
                for one in database.examples
            ],
        )

    async def join(request: Request) -> Response:
        if not common(request.path_params["token"]):
            raise HTTPException(404)
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        name, visit = (form.get(field, [""])[0] for field in ("name", "visit"))
        if not visit:
            raise HTTPException(400)
        seat = await run_in_threadpool(database.join, name, visit[:64])
        if seat is None:
            return RedirectResponse("./", 303)
        response = RedirectResponse(f"../{seat.token}/", 303)
        response.set_cookie(
            COOKIE,
            seat.token,
            max_age=90 * 24 * 3600,
            path=f"/{request.path_params['token']}/",
            httponly=True,
            samesite="strict",
        )
        return response

    def state(request: Request) -> Response:
        seat = seat_of(request)
        answers: dict[int, dict[str, str]] = {}
        for one in database.answers(seat.rater):
            answers.setdefault(one.position, {})[one.aspect] = one.answer
        return JSONResponse(
            {
                "tasks": [_told(task, database) for task in database.tasks(seat.rater)],
                "answers": answers,
                "notes": database.notes(seat.rater),
            }
        )

    async def answer(request: Request) -> Response:
        seat = await run_in_threadpool(seat_of, request)
        sent = await _sent(
            request, {"position": int, "aspect": str, "answer": str, "seconds": float}
        )
        seconds = min(max(sent.pop("seconds"), 0.0), LONGEST_WAIT)
        await run_in_threadpool(database.record, seat.rater, seconds=seconds, **sent)
        return JSONResponse({"saved": True})

    async def note(request: Request) -> Response:
        seat = await run_in_threadpool(seat_of, request)
        sent = await _sent(request, {"position": int, "note": str})
        await run_in_threadpool(database.note, seat.rater, **sent)
        return JSONResponse({"saved": True})

    def image(request: Request) -> Response:
        known(request)
        content = drawn(request.path_params["key"])
        if content is None:
            raise HTTPException(404)
        return Response(
            content, 200, {"cache-control": "private, max-age=86400, immutable"}, "image/png"
        )

    def file(request: Request) -> Response:
        known(request)
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=FILES[name])

    app = Starlette(
        routes=[
            Route("/{token}", bare),
            Route("/{token}/", page),
            Route("/{token}/join", join, methods=["POST"]),
            Route("/{token}/state", state),
            Route("/{token}/answers", answer, methods=["POST"]),
            Route("/{token}/notes", note, methods=["POST"]),
            Route("/{token}/images/{key}", image),
            Route("/{token}/files/{name}", file),
        ],
        exception_handlers={
            HTTPException: _nothing,
            AnswerError: _refused,
        },
    )
    app.router.redirect_slashes = False
    app.add_middleware(_Guard)
    return app


def make_server(database: RatingDatabase, **address: Any) -> uvicorn.Server:
    """Return a server of a study's page, which keeps no log of who asks for what."""
    config = uvicorn.Config(
        make_app(database),
        log_level="warning",
        access_log=False,  # addresses are secrets
        server_header=False,
        lifespan="off",
        **address,
    )
    return uvicorn.Server(config)


def serve(database: RatingDatabase, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Show a study until interrupted.

    Args:
        database: The study.
        host: Address to listen on.
        port: Likewise; 0: a free one.
        ready: Called with the port once the page can be reached.

    Raises:
        RunError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise RunError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port or "
                "--host"
            ) from error
        listening.listen(256)
        ready(listening.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has ended
            make_server(database).run(sockets=[listening])


class _Guard:
    """Adds headers to every answer; unless it says otherwise, none is kept by the browser."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "cache-control": "no-store"}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, guarded)


def _page(pages: Environment, name: str, **values: Any) -> Response:
    return Response(pages.get_template(name).render(values), media_type="text/html")


def _free(database: RatingDatabase, seat: Seat) -> bool:
    return not seat.joined and not database.answers(seat.rater)


def _told(task: Task, database: RatingDatabase) -> dict[str, Any]:
    """Return what the browser is told of a task."""
    return {
        "mode": task.mode,
        "aspects": task.aspects,
        "phrase": task.phrase,
        "seconds": task.seconds,
        **{
            name: [database.image_key(path) for path in paths]
            for name, paths in (
                ("images", task.images),
                ("subject", task.subject),
                ("style", task.style),
            )
        },
    }


async def _body(request: Request) -> bytes:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > LONGEST_BODY:
            raise HTTPException(413)
    return content


async def _sent(request: Request, fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the object that was sent, which has these fields and no others."""
    try:
        sent = json.loads(await _body(request))
    except ValueError as error:
        raise AnswerError("no JSON") from error
    if not isinstance(sent, dict) or sent.keys() != fields.keys():
        raise AnswerError(f"needs {', '.join(fields)}")
    for name, kind in fields.items():
        value = sent[name]
        right = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not right or isinstance(value, bool) or value != value:
            raise AnswerError(f"{name} is no {kind.__name__}")
    return sent


async def _nothing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: "Nothing here.", 405: "Nothing here.", 413: "Too much."}.get(status, "Refused.")
    return PlainTextResponse(f"{text}\n", 404 if status == 405 else status)


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
