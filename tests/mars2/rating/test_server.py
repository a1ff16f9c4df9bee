"""What the browser gets, and what it cannot get."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image, PngImagePlugin

from mars2.rating.database import RatingDatabase
from mars2.rating.plan import plan_rating
from mars2.rating.questions import Design, Task
from mars2.references import References
from mars2.store import RunStore

Begin = Callable[..., RatingDatabase]
Show = Callable[..., AbstractContextManager[str]]
SCRIPT = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def study(begin: Begin) -> RatingDatabase:
    return begin(mode="both", raters=2, per_item=2, sample=2, check_every=4)


@pytest.fixture
def client(study: RatingDatabase, show: Show) -> Iterator[httpx.Client]:
    with show(study) as base, httpx.Client(base_url=base) as client:
        yield client


def test_without_a_right_secret_there_is_nothing(study: RatingDatabase, client: httpx.Client):
    seat = study.seats()[0].token
    image = study.image_key(study.tasks(0)[0].images[0])
    nothing = client.get("/none")
    assert (nothing.status_code, nothing.text) == (404, "Nothing here.\n")
    places = ("", "join", "state", "answers", "notes", f"images/{image}", "files/rate.js")
    wrong = ("x", seat[:-1], seat.lower() + "a", study.join_token[:-1], "..", "%00", "é")
    for token in wrong:
        for place in places:
            for method in ("GET", "POST", "HEAD", "PUT"):
                reply = client.request(method, f"/{token}/{place}")
                assert reply.status_code == 404, (token, place, method)
                assert reply.text in ("Nothing here.\n", "")
                assert "set-cookie" not in reply.headers
    for place in ("/", "/favicon.ico", "/static/rate.js", "/docs", "/openapi.json"):
        assert client.get(place).status_code == 404
    # one secret opens neither the other's answers nor the list of places
    assert client.get(f"/{study.join_token}/state").status_code == 404
    assert client.post(f"/{seat}/join", data={"visit": "1"}).status_code == 404
    assert [answer for rater in (0, 1) for answer in study.answers(rater)] == []


def test_nothing_tells_methods_cases_truth_or_places(
    study: RatingDatabase, client: httpx.Client, run: RunStore, references: References
):
    texts = []
    for token in (study.join_token, *(seat.token for seat in study.seats())):
        for place in ("", "state", "files/rate.js", "files/rate.css"):
            reply = client.get(f"/{token}/{place}")
            texts.append(reply.text + repr(reply.headers.raw))
    telling = [*study.design.methods, *(case.id for case in run.spec.cases), str(run.folder)]
    telling += [name for name in references.files if "_" in name] + ["truth", ".png", "seed"]
    for word in telling:
        assert not [text for text in texts if word in text], word
    state = client.get(f"/{study.seats()[0].token}/state").json()
    assert {frozenset(task) for task in state["tasks"]} == {
        frozenset(("mode", "aspects", "phrase", "seconds", "images", "subject", "style"))
    }
    checks = [task for task in study.tasks(0) if task.truth]
    assert len(state["tasks"]) == len(study.tasks(0)) > len(checks) > 0


def test_images_say_nothing_of_where_they_come_from(
    run: RunStore, references: References, show: Show, tmp_path: Path
):
    secret = PngImagePlugin.PngInfo()
    secret.add_text("parameters", "made by lorarar")
    marked = RunStore(tmp_path, run.spec)
    for sample in run.samples():
        path = marked.image_path(sample.method, sample.case, sample.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(sample.path) as image:
            image.save(path, pnginfo=secret)
    plan = plan_rating(marked, references, Design("yes_no", ("lorarar",), raters=1, per_item=1))
    database = RatingDatabase.create(tmp_path / "study.sqlite", tmp_path, plan)
    task: Task = next(task for task in database.tasks(0) if task.methods)
    with show(database) as base:
        reply = httpx.get(
            f"{base}/{database.seats()[0].token}/images/{database.image_key(task.images[0])}"
        )
    assert reply.headers["content-type"] == "image/png"
    assert not {"last-modified", "etag", "content-disposition"} & set(reply.headers)
    assert b"lorarar" in task.images[0].read_bytes()
    assert b"lorarar" not in reply.content
    with Image.open(BytesIO(reply.content)) as shown, Image.open(task.images[0]) as drawn:
        assert shown.info == {}
        assert shown.tobytes() == drawn.tobytes()
    database.close()


def test_every_answer_forbids_what_is_not_ours(study: RatingDatabase, client: httpx.Client):
    seat = study.seats()[0].token
    for place in (f"/{seat}/", f"/{seat}/state", f"/{study.join_token}/", "/none"):
        headers = client.get(place).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    page = client.get(f"/{seat}/").text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert not re.search(r"\son\w+=|<style|style=|<script>", page)  # none of it would run


def test_joining_gives_a_place_that_the_browser_remembers(
    study: RatingDatabase, client: httpx.Client
):
    join = f"/{study.join_token}/"
    visit = re.search(r'name="visit" value="([^"]+)"', client.get(join).text)
    assert visit is not None
    form = {"name": SCRIPT, "visit": visit[1]}
    reply = client.post(join + "join", data=form)
    assert (reply.status_code, reply.headers["location"]) == (303, f"../{study.seats()[0].token}/")
    assert {"HttpOnly", "SameSite=strict"} <= set(reply.headers["set-cookie"].split("; "))
    page = client.get(f"/{study.seats()[0].token}/").text
    assert "Welcome, &lt;script&gt;" in page
    assert SCRIPT not in page
    back = client.get(join).text
    assert "Go on" in back
    assert SCRIPT not in back
    assert "name=" not in re.sub("<meta[^>]*>", "", back)  # no second place
    client.cookies.clear()
    assert client.post(join + "join", data={"visit": "other"}).status_code == 303
    client.cookies.clear()
    assert "All places of this study are taken" in client.get(join).text
    assert client.post(join + "join", data={"visit": "third"}).headers["location"] == "./"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"position": 0}',
        b'{"position": true, "aspect": "style", "answer": "yes", "seconds": 1}',
        b'{"position": 0, "aspect": "style", "answer": "maybe", "seconds": 1}',
        b'{"position": 0, "aspect": "style", "answer": "yes", "seconds": NaN}',
        b'{"position": 0, "aspect": ["style"], "answer": "yes", "seconds": 1}',
        b'{"position": 12345678901234567890, "aspect": "style", "answer": "yes", "seconds": 1}',
        b'{"position": 0, "aspect": "style", "answer": "yes", "seconds": 1, "rater": 1}',
    ],
)
def test_what_is_no_answer_is_refused(study: RatingDatabase, client: httpx.Client, sent: bytes):
    reply = client.post(f"/{study.seats()[0].token}/answers", content=sent)
    assert reply.status_code == 400
    assert "error" in reply.json()
    assert study.answers(0) == []


def test_endless_bodies_are_refused(study: RatingDatabase, client: httpx.Client):
    for place in (f"{study.seats()[0].token}/notes", f"{study.join_token}/join"):
        assert client.post(f"/{place}", content=b"x" * 100_000).status_code == 413


def test_what_was_answered_comes_back_and_only_to_who_said_it(
    study: RatingDatabase, client: httpx.Client
):
    first, second = (seat.token for seat in study.seats())
    answer = {"position": 0, "aspect": "style", "answer": "no", "seconds": 1e9}
    assert client.post(f"/{first}/answers", json=answer).json() == {"saved": True}
    assert client.post(f"/{first}/notes", json={"position": 0, "note": SCRIPT}).status_code == 200
    state = client.get(f"/{first}/state").json()
    assert state["answers"] == {"0": {"style": "no"}}
    assert state["notes"] == {"0": SCRIPT}
    assert client.get(f"/{second}/state").json()["answers"] == {}
    assert study.answers(0)[0].seconds == 3600  # a longer time is a break


def test_a_link_without_its_last_slash_leads_there(study: RatingDatabase, client: httpx.Client):
    seat = study.seats()[0].token
    reply = client.get(f"/{seat}")
    assert (reply.status_code, reply.headers["location"]) == (307, f"{seat}/")
