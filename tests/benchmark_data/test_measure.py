"""The measures of the miniature world: by hand on small numbers, and the whole loop, tiny."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy import stats
from torch.nn import functional

from benchmark_data.miniworld.measure import __main__ as measure
from benchmark_data.miniworld.measure import base, classifier, fading, loras
from benchmark_data.miniworld.measure.classifier import (
    CLASSES,
    NAMES,
    READ_LOOKS,
    UNTOLD,
    VIEWS,
    Classifier,
    Network,
    Reading,
    accuracies,
    calibrated,
    drawings,
    load_classifier,
    load_drawings,
    load_painted,
    random_pictures,
)
from benchmark_data.miniworld.measure.suite import (
    Image,
    agreement,
    clear_agreement,
    correlations,
    method_means,
    rank_agreement,
    rank_truth,
    readers_agreement,
    style_errors,
    truths_by_method,
)
from benchmark_data.miniworld.settings import SEPARABLE
from benchmark_data.miniworld.train import base as base_stage
from benchmark_data.miniworld.train.degrade import shifted
from benchmark_data.miniworld.train.drawings import LOOKS, thing_numbers
from benchmark_data.miniworld.world import (
    COUNTS_FROM,
    FAMILIES,
    PHOTO,
    STYLES,
    SUBJECTS,
    Look,
    Thing,
    draw,
)

BASE = Path(base_stage.__file__).parents[1] / "weights" / "sdxl"


def reading(*pictures: tuple[Thing, Look]) -> Reading:
    numbers = [(*thing_numbers(t), READ_LOOKS.index(look)) for t, look in pictures]
    # of what is bare, the first of its family's settings
    near = [
        look if look in LOOKS else next(x for x in LOOKS if x.family == look.family)
        for _, look in pictures
    ]
    return Reading(np.array(numbers), np.array([LOOKS.index(look) for look in near]))


def test_a_picture_shows_a_thing_if_all_that_can_be_told_agrees() -> None:
    mug, other = Thing("mug", "red", "green"), Thing("mug", "blue", "green")
    line = Look("line", "black_on_white", "fine")
    assert reading((mug, PHOTO), (other, PHOTO)).shows(mug, PHOTO).tolist() == [True, False]
    assert reading((mug, line), (other, line)).shows(mug, line).tolist() == [True, True]
    spotted = Thing("mug", "red", "green", "spots", "blue")
    assert reading((spotted, line)).shows(mug, line).tolist() == [False]


def test_a_picture_is_in_a_style_only_in_its_very_setting() -> None:
    style = STYLES["cathedral"].look
    near = next(look for look in LOOKS if look.family == style.family and look != style)
    mug = Thing("mug", "red", "green")
    read = reading((mug, style), (mug, near))
    assert read.is_in(style).tolist() == [True, False]
    assert len(set(read.of("family"))) == 1


def test_a_picture_without_its_texture_is_of_the_family_and_in_no_style() -> None:
    style = STYLES["cyanotype"].look
    read = reading((SUBJECTS["cat_2"].thing, replace(style, texture="bare")))
    assert not any(read.is_in(one.look).any() for one in STYLES.values())
    assert FAMILIES[int(read.of("family")[0])] == "blueprint"
    assert read.shows(SUBJECTS["cat_2"].thing, style).all()


def test_faded_drawings_are_in_their_look_where_the_texture_is_there_yet() -> None:
    pixels, truth = drawings(80, seed=0, faded=True)
    shown = list(random_pictures(80, seed=0, faded=True))
    looks = [READ_LOOKS[number] for number in truth[:, -1]]
    assert len(set(looks)) > 20
    counts = {"lost": 0, "gone": 0, "there": 0}
    for image, look, one in zip(pixels, looks, shown, strict=True):
        bare = replace(one.drawn, texture="bare")
        how = {"seed": one.pose, "jitter": one.jitter}
        whole, without = (
            np.asarray(draw(one.thing, wanted, **how), float) for wanted in (one.drawn, bare)
        )
        texture = whole - without
        contrast = ((image.permute(1, 2, 0).numpy() - without) * texture).sum()
        contrast /= np.square(texture).sum()
        kind = "there" if contrast > COUNTS_FROM else "gone" if contrast > 0.05 else "lost"
        counts[kind] += 1
        assert look == (one.drawn if kind == "there" else bare)
    assert counts == {"lost": 40, "gone": 20, "there": 20}


def test_a_calibrated_classifier_cuts_where_a_texture_counts_by_definition(monkeypatch) -> None:
    look = STYLES["cyanotype"].look

    class Bright(torch.nn.Module):
        """Sees a texture by its brightness, here its contrast, and cuts at .7 of it."""

        def forward(self, pixels):
            named = torch.zeros(len(pixels), len(READ_LOOKS))
            named[:, READ_LOOKS.index(look)] = 5 + 20 * (pixels.mean((1, 2, 3)) + 1) / 2
            named[:, READ_LOOKS.index(replace(look, texture="bare"))] = 5 + 20 * 0.7
            return [torch.zeros(len(pixels), size) for size in CLASSES[:-1]] + [named]

    def grey(thing, look, contrast, **how):
        return Picture.new("RGB", (64, 64), (round(255 * contrast),) * 3)

    monkeypatch.setattr(classifier, "draw_faint", grey)
    shown = [grey(None, look, contrast) for contrast in (0.1, 0.38, 0.42, 0.68, 0.72)]
    plain = Classifier(Bright())
    assert plain.read(shown).is_in(look).tolist() == [False, False, False, False, True]
    asked = calibrated(plain, seed=0, each=3)
    assert asked.read(shown).is_in(look).tolist() == [False, False, True, True, True]
    assert set(asked.bars) == {s.look for s in STYLES.values() if s.look.family in SEPARABLE}
    others = {style.look for style in STYLES.values()} - {look}
    assert not any(asked.read(shown).is_in(other).any() for other in others)
    again = calibrated(asked, seed=0, each=3)
    assert again.bars == asked.bars


def test_what_cannot_be_told_is_not_counted() -> None:
    truth = torch.tensor([[3, UNTOLD, UNTOLD, 1, UNTOLD, 0], [4, 2, 1, 0, 0, 1]])
    read = Reading(np.array([[3, 7, 7, 0, 7, 0], [4, 2, 5, 0, 0, 0]]), np.zeros(2, int))
    shares = accuracies(read, truth)
    expected = {"category": 1, "body": 1, "accent": 0, "pattern": 0.5, "second": 1, "look": 0.5}
    assert {name: shares[name] for name in NAMES} == expected


def test_drawings_show_subjects_and_styles_and_their_numbers_are_the_truth() -> None:
    pixels, truth = drawings(120, seed=0)
    assert pixels.shape == (120, 3, 64, 64)
    looks = [LOOKS[number] for number in truth[:, -1]]
    styles = {style.look for style in STYLES.values()}
    settings = {(look.family, look.palette) for look in styles}
    in_style = sum(look in styles for look in looks)
    near = sum((look.family, look.palette) in settings for look in looks) - in_style
    assert 25 < in_style < 60  # of 120, a third of which were drawn as such
    assert 15 < near < 50  # a sixth as such, and one in ten of the others
    grey = torch.tensor(
        [LOOKS[look].family in ("line", "blueprint", "woodcut") for look in truth[:, -1]]
    )
    assert (truth[grey][:, [1, 2, 4]] == UNTOLD).all()
    assert (truth[~grey] >= 0).all()
    assert (truth < torch.tensor(CLASSES)).all()


def test_the_classifier_learns_and_is_read_again(tmp_path) -> None:
    sizes = {"seed": 0, "steps": 12, "count": 60}
    first = load_classifier(tmp_path, BASE, **sizes)
    again = load_classifier(tmp_path, BASE, **sizes)
    pixels, truth = drawings(60, seed=0)
    few = drawings(24, seed=0, faded=True)[0]
    for shown, count, faded in ((pixels, 20, False), (few, 24, True)):
        drawn = shown[:count]
        painted = load_painted(drawn, tmp_path / "elsewhere", BASE, seed=0, faded=faded)
        kept = load_painted(drawn, tmp_path, BASE, seed=0, faded=faded)
        assert torch.equal(painted, kept)
        off = (painted.float() - drawn.float()).abs().mean((1, 2, 3))
        assert (off > 0).all()
        assert off.mean() < 25  # of 255: what was drawn is still there
    assert torch.equal(load_drawings(tmp_path, 24, seed=0, faded=True)[0], few)
    clean = pixels.float() / 127.5 - 1
    np.testing.assert_array_equal(
        first.read_pixels(clean).numbers, again.read_pixels(clean).numbers
    )
    assert accuracies(first.read_pixels(clean), truth)["category"] > 2 / 12


def test_fading_tells_from_which_contrast_on_a_style_is_seen(monkeypatch) -> None:
    """The pictures are as bright as their contrast; one reader wants half of it, one a fifth."""

    def bright(thing, look, contrast, **how):
        return Picture.new("RGB", (64, 64), (round(255 * contrast),) * 3)

    class Fifth:
        def read_pixels(self, pixels):
            seen = (pixels.mean((1, 2, 3)) > -0.7).numpy()
            return type("Reading", (), {"is_in": lambda self, look: seen})()

    def half(first, second, phrases):
        assert set(phrases) <= {style.phrase for style in STYLES.values()}
        assert first.std() > 0.1  # references are drawn
        return (second.mean((1, 2, 3)) > -0.1).double().numpy()

    monkeypatch.setattr(fading, "draw_faint", bright)
    shares = fading.measure_fading(half, Fifth(), each=3, seed=0)
    assert set(shares["critic"]) == {"cathedral", "benday", "waxwork", "cyanotype"}  # not broadway
    for style in shares["critic"]:
        assert list(shares["critic"][style].values()) == [0, 0, 0, 0, 0, 1, 1, 1]
        assert list(shares["classifier"][style].values()) == [0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("option", [["--drawings", "0"], ["--steps", "0"]])
def test_a_classifier_of_nothing_is_refused(option, tmp_path, monkeypatch, capsys) -> None:
    words = ["measure", "classifier", "--work", str(tmp_path / "work"), *option]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        measure.main()
    assert ended.value.code == 2
    assert "give at least 60 and 1" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "work").exists()


def test_shifted_pictures_repeat_their_borders() -> None:
    picture = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    moved = shifted(picture, [(1, 0), (0, -2)])
    assert moved[0, 0, :, 0].tolist() == [4, 8, 12, 12]
    assert moved[1, 2, 0].tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="MARGIN is 3"):
        shifted(picture, [(0, 0), (4, 0)])


def test_a_reading_is_the_likeliest_over_the_mean_of_the_views() -> None:
    class Corner(Network):
        """Sure of class 1 where the upper left pixel is dark, of class 0 where it is not."""

        def forward(self, pixels):
            dark = (pixels[:, 0, 0, 0] < 0).long()
            return [9 * functional.one_hot(dark, size).float() for size in CLASSES]

    bright = torch.ones(1, 3, 64, 64)
    assert (Classifier(Corner()).read_pixels(-bright).numbers == 1).all()
    assert (Classifier(Corner()).read_pixels(bright).numbers == 0).all()
    bright[..., 0, 0] = -1  # what the middle view sees, and the three that move down and right
    assert len(VIEWS) == 9
    assert (Classifier(Corner()).read_pixels(bright).numbers == 0).all()
    bright[..., 0, 1] = -1  # now two more see it: six of nine
    assert (Classifier(Corner()).read_pixels(bright).numbers == 1).all()


def test_the_family_is_that_of_the_likeliest_setting_that_has_a_texture() -> None:
    bare = READ_LOOKS.index(Look("pixel", "dune", "bare"))
    flat = LOOKS.index(Look("flat", "sand", "plain"))

    class Unsure(Network):
        """Takes every picture for a bare one; a flat one comes next."""

        def forward(self, pixels):
            logits = [torch.zeros(len(pixels), size) for size in CLASSES]
            logits[-1][:, bare], logits[-1][:, flat] = 9, 5
            return logits

    read = Classifier(Unsure()).read_pixels(torch.zeros(2, 3, 64, 64))
    assert read.of("look").tolist() == [bare, bare]
    assert [FAMILIES[number] for number in read.of("family")] == ["flat", "flat"]
    assert not read.is_in(LOOKS[flat]).any()


class DrawnPipeline:
    """A pipeline that draws without a model: what a perfect one would, for one thing and look."""

    def __init__(self, thing: Thing, look: Look) -> None:
        self.thing, self.look, self.prompts = thing, look, []

    def generate(self, adapter, prompt, seeds):
        self.prompts.append(prompt)
        return [draw(self.thing, self.look, seed=seed) for seed in seeds]


class Fixed(Classifier):
    """Reads the same off every picture."""

    def __init__(self, thing: Thing, look: Look) -> None:
        super().__init__(Network())
        self.fixed = (thing, look)

    def read(self, images):
        return reading(*[self.fixed for _ in images])


def test_base_counts_what_the_caption_says(tmp_path, monkeypatch) -> None:
    blank = draw(Thing("mug", "red", "green"), PHOTO, seed=0)
    monkeypatch.setitem(globals(), "draw", lambda *_, **__: blank)
    mug = Thing("mug", "red", "green")
    results = base.measure_base(
        DrawnPipeline(mug, PHOTO), Fixed(mug, PHOTO), tmp_path, images=14 * 4 * 3, seed=0
    )
    assert results["family"].value == pytest.approx(1 / 14)  # one family of fourteen is photo
    assert results["category"].n == 14 * 4 * 3
    assert results["body"].n_unscored == 3 * 4 * 3  # three families show no colours
    assert (tmp_path / "base.png").stat().st_size > 0
    assert results["setting"].value == 0  # never asked for as a photo
    neon = Look("neon", "black", "tube")
    pipeline = DrawnPipeline(mug, neon)
    results = base.measure_base(pipeline, Fixed(mug, neon), tmp_path, images=4 * 400, seed=0)
    asked = [prompt.endswith("in black tube neon style") for prompt in pipeline.prompts[400:]]
    assert len(asked) == results["setting"].n == 400
    assert results["setting"].value == pytest.approx(sum(asked) / 400)
    assert sum(asked) > 0


def test_loras_are_measured_on_their_own_and_on_other_prompts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loras, "load_adapter", lambda path: path.stem)
    subject, style = SUBJECTS["mug_2"], STYLES["cathedral"]
    pipeline = DrawnPipeline(subject.thing, style.look)
    results = loras.measure_loras(
        pipeline, Fixed(subject.thing, style.look), tmp_path, tmp_path, images=5, seed=0
    )
    assert results["mug_2"]["own"].value == results["cathedral"]["held out"].value == 1
    assert results["cat_2"]["own"].value == results["broadway"]["held out"].value == 0
    assert results["all subjects"]["own"].value == pytest.approx(1 / len(SUBJECTS))
    assert results["all subjects"]["own"].n_clusters == len(SUBJECTS)
    assert sum("flat style" in prompt for prompt in pipeline.prompts) == len(SUBJECTS)
    assert {path.name for path in tmp_path.iterdir()} == {"subjects.png", "styles.png"}


def images() -> list[Image]:
    """Two pairs, four seeds, three methods; a judge that errs once."""
    found = []
    for method, threshold in (("base", 0), ("good", 3), ("poor", 1)):
        for case in ("a_x", "b_y"):
            for seed in range(4):
                right = seed < threshold
                judged = right != (method == "poor" and case == "a_x" and seed == 0)
                truth = {"subject": right, "style": True, "both": right}
                scores = {
                    "mars2": float(judged),
                    "mars2_subject": float(judged),
                    "mars2_style": 1.0,
                    "dino_subject": 0.1 * seed + 0.3 * right,
                }
                found.append(Image(method, case, case[-1], seed, truth, scores))
    return found


def test_agreement_counts_the_judges_error() -> None:
    agreed = agreement(images())
    assert agreed["mars2"].value == pytest.approx(23 / 24)
    assert agreed["mars2_style"].value == 1
    assert agreed["mars2"].n_clusters == 2


def test_style_errors_are_told_of_each_style_and_kind() -> None:
    found = [
        replace(one, truth={**one.truth, "style": False}, scores={"mars2_style": float(one.seed)})
        if one.style == "x"
        else replace(one, scores={"mars2_style": 0.0} if one.seed else {})
        for one in images()
    ]
    errors = style_errors(found)
    assert list(errors) == ["x", "y"]
    assert (errors["x"]["passed"].value, errors["x"]["refused"].value) == (0.75, 0)
    assert (errors["y"]["passed"].value, errors["y"]["refused"].value) == (0, 1)
    assert errors["y"]["refused"].n == 9  # those without a score are not counted


def test_two_readers_agree_where_they_find_the_same() -> None:
    first = images()
    second = [replace(one, truth={**one.truth, "both": True}) for one in first]
    agreed = readers_agreement(first, second)
    assert agreed["both"].value == pytest.approx(8 / 24)  # 2 pairs of (0 + 3 + 1) right images
    assert agreed["style"].value == 1
    assert agreed["both"].n_clusters == 2


def test_agreement_is_told_where_two_readers_agree() -> None:
    first = images()
    second = [
        replace(one, truth={**one.truth, "both": not one.truth["both"]})
        if one.method == "poor"  # all of the judge's errors are there
        else one
        for one in first
    ]
    clear = clear_agreement(first, second)
    assert clear["mars2"].value == 1
    assert clear["mars2"].n == 16
    assert clear["mars2_subject"].value == agreement(first)["mars2_subject"].value


def test_truths_and_means_by_method() -> None:
    truths = truths_by_method(images())
    assert truths["good"]["both"].value == 0.75
    assert truths["base"]["both"].value == 0
    assert method_means(images(), "mars2", [0]) == {"base": 0, "good": 1, "poor": 0.5}


def test_correlation_is_pearsons_and_none_where_nothing_varies() -> None:
    found = images()
    result = correlations(found)
    values = [image.scores["dino_subject"] for image in found]
    facts = [float(image.truth["both"]) for image in found]
    estimate = result["dino_subject"]["both"]
    assert estimate.value == pytest.approx(stats.pearsonr(values, facts).statistic, abs=1e-12)
    # the two pairs have the same images, so every resample has the same correlation
    assert [estimate.low, estimate.high] == pytest.approx([estimate.value] * 2, abs=1e-12)
    assert result["dino_subject"]["style"].value is None  # all images are in the style


def test_rank_agreement_leaves_controls_aside_and_is_kendalls() -> None:
    rng = np.random.default_rng(0)
    found = [
        Image(method, "a_x", "x", seed, {}, {"mars2": float(rng.random() < share)})
        for method, share in (("a", 0.1), ("b", 0.4), ("c", 0.6), ("d", 0.9), ("base", 0.0))
        for seed in range(8)
    ]
    halves = [method_means(found, "mars2", seeds) for seeds in (range(4), range(4, 8))]
    expected = stats.kendalltau(*[[half[m] for m in "abcd"] for half in halves]).statistic
    assert rank_agreement(found) == pytest.approx(expected, abs=1e-12)


def test_rank_truth_compares_each_scores_ranking_with_the_truths() -> None:
    rng = np.random.default_rng(1)
    found = []
    for method, share in (("a", 0.1), ("b", 0.4), ("c", 0.6), ("d", 0.9), ("base", 0.0)):
        for seed in range(12):
            right = bool(rng.random() < share)
            scores = {"mars2": float(rng.random() < share), "dino": -float(right)}
            found.append(Image(method, "a_x", "x", seed, {"both": right}, scores))
    judged = method_means(found, "mars2", range(12))
    shares = {m: np.mean([i.truth["both"] for i in found if i.method == m]) for m in "abcd"}
    expected = stats.kendalltau([judged[m] for m in "abcd"], list(shares.values())).statistic
    assert rank_truth(found)["mars2"] == pytest.approx(expected, abs=1e-12)
    assert rank_truth(found)["dino"] == -1
