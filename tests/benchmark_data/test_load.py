"""Reading suites: what a file becomes, and what is refused."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import benchmark_data
from benchmark_data.load import load_references, load_suite, open_references, suite_names
from benchmark_data.suite import Concept, Reference, SuiteError

SmallSuite = Callable[..., Path]


def concept(*paths: Path) -> Concept:
    return Concept(
        "mug", "subject", "test", "mug", "a mug", "", tuple(Reference(p, p.name) for p in paths)
    )


def test_reads_concepts_and_pairs_of_each_split(small_suite: SmallSuite) -> None:
    suite = load_suite(small_suite())
    assert list(suite.subjects) == ["mug", "red_hat"]
    assert list(suite.concepts) == ["mug", "red_hat", "oil_painting2", "crayon"]
    assert {split: [case.id for case in cases] for split, cases in suite.cases.items()} == {
        "train": ["red_hat_crayon"],
        "test": ["mug_oil_painting2"],
    }
    (case,) = suite.cases["test"]
    assert case.prompt == "a sks mug in oil style"
    assert case.seeds == (0, 1, 2)
    assert (case.subject, case.style) == (suite.subjects["mug"], suite.styles["oil_painting2"])
    assert suite.generation.guidance_scale == 5.0
    assert suite.adapters is None


def test_references_have_source_licence_and_url(small_suite: SmallSuite) -> None:
    suite = load_suite(small_suite())
    first = suite.subjects["mug"].references[0]
    assert (first.file, first.licence) == ("00.png", "CC0")
    assert (first.url, first.path) == ("http://127.0.0.1:1/mug/00.png", None)
    assert suite.styles["oil_painting2"].references[0].licence == "PD"
    assert suite.styles["crayon"].references[0].manual == "ask the artist"
    assert not suite.styles["crayon"].references[0].local


def test_relative_paths_are_beside_the_file(
    small_suite: SmallSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_suite(("case_prompt", 'adapters = "loras"\ncase_prompt'))
    monkeypatch.chdir(tmp_path.parent)
    suite = load_suite(path.relative_to(tmp_path.parent))
    assert suite.subjects["red_hat"].references[0].path == tmp_path / "images/hat.png"
    assert suite.adapters == tmp_path / "loras"
    assert suite.models.base == str(tmp_path / "models/sdxl")
    assert suite.models.judge == f"scripted:{tmp_path}/answers.json"
    assert suite.models.clip == "ViT-B-32-quickgelu:openai"
    assert suite.models.dino == "facebook/dino-vits16"


def test_package_paths_are_inside_the_package(small_suite: SmallSuite) -> None:
    package = Path(benchmark_data.__file__).parent
    table = '[method_options.lorarar]\ncheckpoint = "package:x/h.safetensors"\nkv_weight = 0.5\n'
    suite = load_suite(
        small_suite(
            ("scripted:./answers.json", "llava_onevision:package:miniworld/critic"),
            ("[models]", f"{table}[models]"),
        )
    )
    assert suite.models.judge == f"llava_onevision:{package}/miniworld/critic"
    assert suite.method_options == {
        "lorarar": {"checkpoint": f"{package}/x/h.safetensors", "kv_weight": 0.5}
    }


@pytest.mark.parametrize(
    ("style", "question"),
    [
        ("oil_painting2", "oil painting"),
        ("oil_painting", "oil painting"),
        ("3d_rendering", "3d rendering"),
        ("melting_golden_rendering", "melting golden rendering"),
        ("pop_12", "pop 1"),  # one digit goes, as in the protocol
        ("7", "7"),
    ],
)
def test_question_names_a_style_by_its_id(
    small_suite: SmallSuite, style: str, question: str
) -> None:
    suite = load_suite(small_suite(("oil_painting2", style)))
    assert suite.styles[style].question_style == question
    assert suite.subjects["mug"].question_style == ""


def test_a_suite_may_say_the_questions_style(small_suite: SmallSuite) -> None:
    suite = load_suite(small_suite(('phrase = "oil"', 'phrase = "oil"\nquestion_style = "Van"')))
    assert suite.styles["oil_painting2"].question_style == "Van"


def test_a_reference_may_have_its_own_prompt(small_suite: SmallSuite) -> None:
    own = '[{file = "00.png", prompt = "a mug on a table"}, "01.png"]'
    mug = load_suite(small_suite(('["00.png", "01.png"]', own))).subjects["mug"]
    assert mug.prompts == ("a mug on a table", mug.prompt)


def test_seeds_may_be_listed(small_suite: SmallSuite) -> None:
    suite = load_suite(small_suite(("num_seeds = 3", "seeds = [7, 3]")))
    assert suite.cases["test"][0].seeds == (7, 3)


def test_pairs_may_be_listed(small_suite: SmallSuite) -> None:
    extra = '[subjects.cup]\nsplit = "test"\nphrase = "cup"\nprompt = "x"\nreferences = ["c.png"]\n'
    cases = '[cases]\ntest = [["cup", "oil_painting2"]]\n'
    product = load_suite(small_suite(("[models]", extra + "[models]")))
    assert [case.id for case in product.cases["test"]] == [
        "cup_oil_painting2",
        "mug_oil_painting2",
    ]
    suite = load_suite(small_suite(("[models]", extra + cases + "[models]")))
    assert [case.id for case in suite.cases["test"]] == ["cup_oil_painting2"]
    assert [case.id for case in suite.cases["train"]] == ["red_hat_crayon"]
    assert suite.revision != product.revision


def test_only_shipped_leaves_out_pairs_without_loras(
    small_suite: SmallSuite, tmp_path: Path
) -> None:
    path = small_suite(
        ("case_prompt", 'adapters = "loras"\ncase_prompt'),
        ("[models]", "[cases]\nonly_shipped = true\n[models]"),
    )
    before = load_suite(path)
    assert set(before.cases) == {"train", "test"}  # none ships yet: all that is stated
    (tmp_path / "loras").mkdir()
    for name in ("mug", "oil_painting2", "crayon"):
        (tmp_path / "loras" / f"{name}.safetensors").touch()
    after = load_suite(path)
    assert set(after.cases) == {"test"}
    assert list(after.concepts) == list(before.concepts)
    assert after.revision != before.revision


# --- revision ---


def test_revision_is_of_the_content_not_of_its_formatting(small_suite: SmallSuite) -> None:
    revision = load_suite(small_suite()).revision
    assert re.fullmatch("[0-9a-f]{12}", revision)
    same = small_suite(
        ('prompt = "a sks mug"', 'prompt    = """a sks mug"""  # a comment'),
        ("Two subjects and two styles", "Another title"),
        name="elsewhere.toml",
    )
    assert load_suite(same).revision == revision


@pytest.mark.parametrize(
    "change",
    [
        ('prompt = "a sks mug"', 'prompt = "a sks cup"'),
        ("steps = 2", "steps = 3"),
        ('file = "oil.jpg"', f'sha256 = "{"a" * 64}", file = "oil.jpg"'),
        ("ViT-B-32-quickgelu:openai", "ViT-L-14:openai"),
    ],
)
def test_revision_changes_with_the_content(
    small_suite: SmallSuite, change: tuple[str, str]
) -> None:
    assert load_suite(small_suite()).revision != load_suite(small_suite(change)).revision


def test_revision_changes_with_the_suites_own_images(
    small_suite: SmallSuite, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    path = small_suite()
    before = load_suite(path).revision
    (tmp_path / "images/hat.png").write_bytes(png((0, 9, 255)))
    assert load_suite(path).revision != before


def test_revision_does_not_depend_on_what_was_fetched(
    small_suite: SmallSuite, own_cache: Path, png: Callable[..., bytes]
) -> None:
    path = small_suite()
    before = load_suite(path)
    fetched = own_cache / "references/small/mug/00.png"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(png())
    after = load_suite(path)
    assert before.revision == after.revision
    assert before.subjects["mug"].references[0].path is None
    assert after.subjects["mug"].references[0].path == fetched
    assert after.cases["test"][0].subject.references[0].path == fetched


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("guidance_scale", "guidance_scal"), "guidance_scale, a number, is missing; is 'guida"),
        (("steps = 2", "steps = 2\nsteps_ = 3"), "unknown key 'steps_'; did you mean 'steps'?"),
        (('phrase = "mug"', 'phrase = "mug"\ncolour = "red"'), "unknown key 'colour'; known: "),
        (("[models]", "[trainings.x]\na = 1\n[models]"), "did you mean 'training'?"),
        (("[models]", "[training.style]\na = 1\n[models]"), "did you mean 'style_lora'?"),
        (
            ("[models]", "[method_options.x]\na = 2020-01-01\n[models]"),
            "a is datetime.date(2020, 1, 1); give text or numbers",
        ),
        (
            ("[models]", "[method_options.x]\na = [2020-01-01]\n[models]"),
            "Object of type date is not JSON serializable; write dates as texts",
        ),
        (("[models]", "[cases]\ntests = []\n[models]"), "unknown key 'tests'; did you mean 'te"),
        (('name = "small"', 'name = "Small Suite"'), "'Small Suite' must be made of"),
        (("[subjects.mug]", "[subjects.Mug]"), "id 'Mug' must be made of a-z, 0-9 and _"),
        (("[subjects.mug]", '[subjects."m/g"]'), "id 'm/g'"),
        (("[styles.crayon]", "[styles.mug]"), "'mug' is a subject and a style"),
        (('prompt = "a sks mug"', 'prompt = " "'), "prompt is empty"),
        (('prompt = "a sks mug"', "prompt = 3"), "prompt is 3; it must be a text"),
        (('["00.png", "01.png"]', "[]"), "references is empty"),
        (('["00.png", "01.png"]', '["00.png", "00.png"]'), "names a file twice"),
        (('["00.png", "01.png"]', '["../00.png"]'), "must be a plain name"),
        (('["00.png", "01.png"]', '[{ file = "a", sha256 = "12" }]'), "64 hexadecimal digits"),
        (('["00.png", "01.png"]', '[{ file = "a", url = "ftp://x/a" }]'), "must begin with http"),
        (("/{concept}/{file}", "/{concept}/{id}"), "may have {concept} and {file} only"),
        (('source = "web"', 'source = "wep"'), "'wep' is not in [sources]; did you mean 'web'?"),
        (("images/hat.png", "package:../hat.png"), "leaves the package"),
        (('split = "test"', 'split = "tests"'), "split is 'tests'; did you mean 'test'?"),
        (("num_seeds = 3", "num_seeds = 0"), "at least one seed"),
        (("num_seeds = 3", "seeds = [1, 1]"), "seeds [1, 1] must be different"),
        (("num_seeds = 3", "seeds = [-1]"), "must not be negative"),
        (("num_seeds = 3", "seeds = [true]"), "a seed is True; it must be a whole number"),
        (("num_seeds = 3", "num_seeds = 3\nseeds = [1]"), "either num_seeds or a list seeds"),
        (("resolution = 64", "resolution = 65"), "resolution 65 must be a positive multiple of 8"),
        (("steps = 2", "steps = 0"), "steps 0 must be positive"),
        (("steps = 2", "steps = 2.5"), "steps is 2.5; it must be a whole number"),
        (("5.0", "nan"), "guidance_scale nan must be 0 or more"),
        (("in {style}", "in {look}"), "must have {subject} and {style}"),
        (("in {style}", "in {style"), "case_prompt"),
        (("[models]", "[cases]\nonly_shipped = true\n[models]"), "needs the suite's adapters"),
        (("[generation]", "[generation"), "is not valid TOML"),
    ],
)
def test_refuses(small_suite: SmallSuite, change: tuple[str, str], message: str) -> None:
    path = small_suite(change)
    with pytest.raises(SuiteError, match=re.escape(message)) as caught:
        load_suite(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([('split = "test"\nphrase = "mug"', 'split = ["val", "test"]\nphrase = "mug"')], "mug"),
        ([("[models]", "[subjects.mug]\nsplit = 'val'\n[models]")], "mug"),
        (
            [("[models]", '[cases]\ntest = [["red_hat", "oil_painting2"]]\n[models]')],
            "red_hat",
        ),
        ([("[models]", '[cases]\ntest = [["mug", "crayon"]]\n[models]')], "crayon"),
        (
            [
                (
                    '{ file = "bear.png", manual',
                    '{ url = "http://127.0.0.1:1/oil.jpg", file = "b", manual',
                )
            ],
            "crayon",
        ),
    ],
)
def test_refuses_overlapping_splits(
    small_suite: SmallSuite, changes: list[tuple[str, str]], named: str
) -> None:
    with pytest.raises(SuiteError, match=named):
        load_suite(small_suite(*changes))


def test_refuses_folder_names_of_two_pairs(small_suite: SmallSuite) -> None:
    extra = "".join(
        f'[{role}.{id_}]\nsplit = "val"\nphrase = "x"\nprompt = "x"\nreferences = ["{id_}.png"]\n'
        for role, id_ in (("subjects", "red"), ("styles", "hat_crayon"))
    )
    path = small_suite(("[models]", extra + "[models]"))
    with pytest.raises(SuiteError, match="folder name red_hat_crayon is ambiguous"):
        load_suite(path)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ('[["mug"]]', 'a pair is ["SUBJECT", "STYLE"]'),
        ('[["mugs", "oil_painting2"]]', "there is no subject 'mugs'; did you mean 'mug'?"),
        ('[["mug", "oil_painting2"], ["mug", "oil_painting2"]]', "has a pair twice"),
    ],
)
def test_refuses_bad_pairs(small_suite: SmallSuite, pairs: str, message: str) -> None:
    path = small_suite(("[models]", f"[cases]\ntest = {pairs}\n[models]"))
    with pytest.raises(SuiteError, match=re.escape(message)):
        load_suite(path)


def test_refuses_a_suite_without_pairs(small_suite: SmallSuite) -> None:
    path = small_suite(
        ('split = "test"\nphrase = "oil"', 'split = "val"\nphrase = "oil"'),
        ('split = "train"\nphrase = "hat"', 'split = "test"\nphrase = "hat"'),
    )
    with pytest.raises(SuiteError, match="no split has both"):
        load_suite(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("miniword", "did you mean 'miniworld'?"),
        (
            "somewhere/else",
            "no suite 'somewhere/else'; known: lorarar, miniworld; a file must end in .toml",
        ),
        ("nothing.toml", "cannot be read: No such file or directory"),
    ],
)
def test_refuses_unknown_suites(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuiteError, match=re.escape(message)):
        load_suite(name)


def test_names_are_those_of_the_files() -> None:
    assert suite_names() == ("lorarar", "miniworld")
    assert [load_suite(name).name for name in suite_names()] == list(suite_names())


# --- images ---


def test_opens_references_upright_and_rgb(tmp_path: Path) -> None:
    image = Image.new("L", (8, 4), 90)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    (opened,) = open_references(concept(tmp_path / "a.jpg"))
    assert (opened.mode, opened.size) == ("RGB", (4, 8))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_errors_naming_the_file(tmp_path: Path, form: str) -> None:
    noise = Image.effect_noise((64, 64), 90)
    buffer = io.BytesIO()
    noise.save(buffer, form)
    path = tmp_path / "cut.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(SuiteError, match=re.escape(str(path))):
        open_references(concept(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SuiteError, match="is no image"):
        open_references(concept(tmp_path / "a.png"))


def test_missing_references_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"1 of 1 reference images are missing \(mug: a\.png\)"):
        open_references(concept(tmp_path / "a.png"))


def test_a_pinned_image_must_be_the_one(small_suite: SmallSuite, tmp_path: Path) -> None:
    suite = load_suite(
        small_suite(('["images/hat.png"]', f'[{{file = "images/hat.png", sha256 = "{"0" * 64}"}}]'))
    )
    with pytest.raises(SuiteError, match=r"hat\.png is not the file that the suite demands"):
        open_references(suite.subjects["red_hat"])


def fill(cache: Path, png: Callable[..., bytes]) -> None:
    for number, name in enumerate(
        ["mug/00.png", "mug/01.png", "oil_painting2/oil.jpg", "crayon/bear.png"]
    ):
        path = cache / "references/small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((number, 0, 0)))


def test_references_are_a_dataset(
    small_suite: SmallSuite, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    suite = load_suite(small_suite())
    fill(tmp_path / "another", png)
    data = load_references(suite, tmp_path / "another")
    assert data.column_names == ["image", "concept", "role", "split", "phrase", "file"]
    assert data["concept"][:] == ["mug", "mug", "red_hat", "oil_painting2", "crayon"]
    assert data["file"][:] == ["00.png", "01.png", "images/hat.png", "oil.jpg", "bear.png"]
    assert data[1]["image"].getpixel((0, 0)) == (1, 0, 0)
    assert {key: data[3][key] for key in ("role", "split", "phrase")} == {
        "role": "style",
        "split": "test",
        "phrase": "oil",
    }


def test_missing_references_say_how_to_fetch_them(small_suite: SmallSuite) -> None:
    suite = load_suite(small_suite())
    with pytest.raises(
        SuiteError, match=r"4 of 5 .*00\.png, .* and 1 more.*`mars2 data fetch small"
    ):
        load_references(suite)


def test_a_truncated_reference_is_no_dataset(
    small_suite: SmallSuite, own_cache: Path, png: Callable[..., bytes]
) -> None:
    suite = load_suite(small_suite())
    fill(own_cache, png)
    broken = own_cache / "references/small/mug/01.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(SuiteError, match=r"mug/01\.png is no image"):
        load_references(suite)
