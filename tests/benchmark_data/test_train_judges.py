"""The training stages of the miniature world's critic, CLIP and DINO, at their smallest."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmark_data.miniworld.train import (
    clip,
    critic,
    critic_heads,
    critic_measure,
    critic_model,
    critic_phases,
    critic_pictures,
    dino,
    loop,
    painted,
)
from benchmark_data.miniworld.train.common import TrainingError
from benchmark_data.miniworld.train.critic_measure import Reader
from benchmark_data.miniworld.train.critic_pictures import Pictures, recolour
from benchmark_data.miniworld.train.critic_questions import question
from benchmark_data.miniworld.train.degrade import degrade
from benchmark_data.miniworld.train.drawings import (
    GROUP,
    INVENTED_LOOKS,
    LOOKS,
    Pairs,
    described,
    draw_groups,
    load_bank,
    make_bank,
    same_subject,
    style_pairs,
    subject_pairs,
)
from benchmark_data.miniworld.world import FAMILIES, STYLES, SUBJECTS, Look, draw, same_in
from mars2.judges import TEMPLATES, Question
from mars2.judges.llava_onevision import LlavaOnevisionJudge
from mars2.judges.prompts import choose
from mars2.metrics.clip import ClipMetric
from mars2.metrics.dino import DinoMetric

WORLD = Path(__file__).parents[2] / "benchmark_data" / "miniworld"
WEIGHTS = WORLD / "weights"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def bank():
    return make_bank(draw_groups(0, 12, seed=3)[0])


def losses(caplog, name):
    """First and last loss that a phase logged."""
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"{name}, step")]
    return [float(line.rpartition(" ")[2]) for line in (lines[0], lines[-1])]


def run_smoke(stage, places, caplog):
    with caplog.at_level(logging.INFO):
        stage.run(*places, smoke=True, seed=0, steps=None)


def pictures(count):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(block).resize((64, 64), Image.Resampling.BILINEAR) for block in blocks]


def unit_pixels(images):
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_training_never_shows_what_is_held_out(bank):
    held_things = {s.thing for s in SUBJECTS.values() if s.split != "train"}
    held_looks = {s.look for s in STYLES.values() if s.split != "train"}
    shown = [described(bank, row) for row in range(len(bank.kinds))]
    assert not held_things & {thing for thing, _ in shown}
    assert not held_looks & {look for _, look in shown}


def test_invented_settings_are_pairs_of_their_own(tmp_path):
    bank = load_bank(tmp_path, groups=2, invented=12, seed=3, chunk=8)
    assert bank.groups == 14
    shown = [described(bank, row)[1] for row in range(len(bank.kinds))]
    styled = [look for look in shown if look.family != "photo"]
    where = [look in INVENTED_LOOKS for look in shown]
    assert not any(where[: 2 * GROUP])
    assert sum(where[2 * GROUP :]) == sum(look.family != "photo" for look in shown[2 * GROUP :])
    assert len({look.palette for look in styled}) > 10
    again = load_bank(tmp_path, groups=2, invented=12, seed=3, chunk=8)  # from its files
    assert torch.equal(again.pixels, bank.pixels)
    pairs = style_pairs(bank, 200, np.random.default_rng(0))
    for a, b, answer in zip(pairs.references, pairs.tests, pairs.answers, strict=True):
        assert answer == (shown[a] == shown[b])
    rows = np.flatnonzero(where)[:3]
    named = critic_heads.name_targets(bank, rows, torch.zeros(3, dtype=torch.bool))
    assert (named[:, 6] == -100).all()  # their palettes have no name
    assert (named[:, 7] >= 0).all()


def test_a_variant_differs_from_its_picture_in_what_its_look_shows(bank):
    for row in range(3, len(bank.kinds), 2):
        if row % GROUP == 1:
            continue
        (thing, look), (variant, other_look) = described(bank, row - 1), described(bank, row)
        assert look == other_look
        assert not same_in(look, thing, variant)


def test_pairs_are_labelled_by_the_truth_about_the_pictures(bank):
    rng = np.random.default_rng(0)
    subject, style = subject_pairs(bank, 300, rng), style_pairs(bank, 300, rng, each=3)
    for a, b, answer in zip(subject.references, subject.tests, subject.answers, strict=True):
        (thing, reference_look), (other, look) = described(bank, a), described(bank, b)
        assert reference_look.family == "photo"
        assert answer == same_in(look, thing, other)
    for a, b, answer in zip(style.references, style.tests, style.answers, strict=True):
        look, other_look = LOOKS[bank.looks[a]], LOOKS[bank.looks[b]]
        assert look.family != "photo"
        assert answer == (look == other_look)
    assert not (subject.hard & subject.answers).any()
    assert (style.references.reshape(-1, 3) == style.references[::3, None]).all()
    assert same_subject(bank, subject.references, subject.references).all()


def test_the_nearest_misses_of_a_style_differ_in_the_texture_alone(bank):
    rng = np.random.default_rng(0)
    pairs = style_pairs(bank, 600, rng)
    kinds = []
    for a, b, hard in zip(pairs.references, pairs.tests, pairs.hard, strict=True):
        look, other = LOOKS[bank.looks[a]], LOOKS[bank.looks[b]]
        kinds.append(hard and (look.family, look.palette) == (other.family, other.palette))
        assert not kinds[-1] or look.texture != other.texture
    assert 0.05 < np.mean(kinds) < 0.25  # a fifth, where the small bank has such a picture


def test_pictures_that_differ_in_the_texture_alone_are_asked_about():
    class Brightness:
        """Says yes to what is as bright as its reference."""

        def p_yes(self, first, second, names):
            self.asked = len(names)
            return ((first.mean((1, 2, 3)) - second.mean((1, 2, 3))).abs() < 0.02).double().numpy()

    looks = [STYLES["cyanotype"].look, STYLES["broadway"].look]
    reader = Brightness()
    shares = critic_measure.texture_misses(reader, looks, each=3, seed=0)
    assert reader.asked == 3 * (2 + 1 + 2)  # neon has no bare setting
    assert set(shares) == {"other texture", "no texture"}
    assert set(shares["other texture"]) == {"blueprint", "neon", "all"}
    assert set(shares["no texture"]) == {"blueprint", "all"}
    both = [shares["other texture"][family] for family in ("blueprint", "neon")]
    assert shares["other texture"]["all"] == pytest.approx(np.mean(both), abs=1e-4)
    assert 0 < shares["other texture"]["all"] < 1


def test_damage_is_repeatable_and_touches_the_share_asked_for():
    images = unit_pixels(pictures(200))
    damaged = degrade(images, torch.Generator().manual_seed(1), share=0.3)
    again = degrade(images, torch.Generator().manual_seed(1), share=0.3)
    torch.testing.assert_close(damaged, again, rtol=0, atol=0)
    share = (damaged != images).flatten(1).any(1).float().mean()
    assert 0.2 < share < 0.4  # 200 coins: a standard deviation of .03
    assert damaged.abs().max() <= 1


def test_painting_over_is_repeatable_and_half_is_further_off(bank, tmp_path):
    base = Path(painted.__file__).parents[1] / "weights" / "sdxl"
    amounts = {"first": 2, "true": 4, "half": 4, "bare": 3, "faint": 4, "seed": 0}
    made = painted.load_painted(base, bank, tmp_path, **amounts)
    again = painted.load_painted(base, bank, tmp_path / "elsewhere", **amounts)
    assert torch.equal(made.true, again.true)
    assert torch.equal(made.half, again.half)
    read = painted.load_painted(tmp_path / "no base", bank, tmp_path, **amounts)
    assert torch.equal(made.true, read.true)
    assert torch.equal(made.half, read.half)
    assert torch.equal(made.bare, read.bare)
    assert torch.equal(made.faint, read.faint)
    assert (made.faint_looks == read.faint_looks).all()
    assert made.first == 2
    assert len(made.true) == 4
    assert min(made.half_rows) >= 6
    photo = FAMILIES.index("photo")
    assert not (bank.families[made.half_rows] == photo).any()

    def distance(pixels, rows):
        return (pixels.float() - bank.pixels[rows].float()).abs().mean()

    near, far = distance(made.true, range(2, 6)), distance(made.half, made.half_rows)
    assert 0 < near < 0.7 * far
    assert made.bare_looks.tolist() == [0, 1, 2, 0, 1, 2]
    drawn, over = made.bare.float().split(3)
    assert 0 < (drawn - over).abs().mean() < 0.7 * far
    assert made.faint_there.tolist() == [True, False] * 4
    drawn, over = made.faint.float().split(4)
    assert 0 < (drawn - over).abs().mean() < 0.7 * far


def test_a_fading_texture_is_gone_or_there(monkeypatch):
    contrasts = []

    def faint(thing, look, contrast, **how):
        contrasts.append(contrast)
        return draw(thing, look, **how)

    monkeypatch.setattr(painted, "draw_faint", faint)
    monkeypatch.setattr(painted, "_and_painted", lambda base, pixels, *rest: pixels)
    _, looks, there = painted.draw_fading(Path(), 8, 0)
    assert {LOOKS[look].family for look in looks} <= set(painted.SEPARABLE)
    for contrast, counts in zip(contrasts, there, strict=False):
        low, high = painted.THERE if counts else painted.GONE
        assert low <= contrast <= high


def test_what_fades_is_named_by_what_is_left_of_it(bank):
    """A tower learns the bare look where a texture does not count, and the look where it does."""
    grey = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 64, 64)
    looks = [Look("oil", "dusk", texture) for texture in ("long", "dabs", "swirl")]
    nothing = np.empty(0, np.int64)
    made = painted.Painted(
        grey[:0], 0, grey[:0], nothing,
        grey[:1], np.array([painted.BARE_LOOKS.index(replace(looks[0], texture="bare"))]),
        grey[1:3], np.array([LOOKS.index(look) for look in looks[1:]]), np.array([True, False]),
    )  # fmt: skip
    shown = {0: Look("oil", "dusk", "bare"), 1: looks[1], 2: Look("oil", "dusk", "bare")}
    pixels, named = Pictures(bank, None, made).fading(41, np.random.default_rng(0))
    levels = ((pixels[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert [shown[level] for level in levels] == named
    assert levels.count(0) == 20
    assert set(levels) == {0, 1, 2}
    assert len(Pictures(bank, None).fading(41, np.random.default_rng(0))[0]) == 0


@pytest.mark.parametrize(
    ("lost", "wanted"),
    [
        ("half", critic_phases.HALF),
        ("bare", critic_phases.LOST),
        ("faint", critic_phases.FAINT),
        ("there", critic_phases.FAINT),
    ],
)
def test_a_style_that_lost_something_is_no_answer_to_any_look(bank, lost, wanted, monkeypatch):
    monkeypatch.setattr(critic_pictures, "degrade", lambda images, generator, *, share: images)
    monkeypatch.setattr(critic_phases, "RECOLOURED", 0.0)
    family = "flat" if lost == "half" else "blueprint"
    styled = np.flatnonzero(bank.families == FAMILIES.index(family))[:1]
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    look = LOOKS[bank.looks[styled[0]]]
    nothing = np.empty(0, np.int64)
    rest = [white[:0], nothing, white[:0], nothing, white[:0], nothing, np.empty(0, bool)]
    if lost == "half":
        rest[:2] = white, styled
    elif lost == "bare":
        rest[2:4] = white, np.array([painted.BARE_LOOKS.index(replace(look, texture="bare"))])
    else:
        rest[4:] = white, bank.looks[styled], np.array([lost == "there"])
    none = painted.Painted(bank.pixels[:0], 0, *rest)
    teacher = critic_phases.Critic(Pictures(bank, None, none), critic_phases.SMOKE, Path(), 0)
    look = bank.looks[styled[0]]
    rows = np.flatnonzero(bank.looks == look)[:1].repeat(400)
    pairs = Pairs(rows, rows, np.ones(400, bool), np.zeros(400, bool))
    for asked in (True, False):
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        asks = np.full(400, asked)
        shown = teacher._images(rows, pairs, asks, rng, generator)
        white = (shown.pixels[400:] == 1).flatten(1).all(1)
        assert shown.unknown[white].all()
        assert (shown.pairs.answers[white.numpy()] == (lost == "there")).all()
        assert shown.pairs.answers[~shown.unknown.numpy()].all()
        assert not shown.recoloured.any()
        share = white.float().mean().item()
        assert share == pytest.approx(wanted if asked else 0.0, abs=0.05)
        assert share > 0 or not asked


def test_damaged_pictures_are_moved_by_two_pixels_at_most():
    column = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)
    moved = critic_pictures.damage(column, torch.Generator().manual_seed(0), 0.0)
    offsets = ((moved[:, 0, 0, 32] - column[:, 0, 0, 32]) * 63 / 2).round().int().tolist()
    assert set(offsets) == {-2, -1, 0, 1, 2}


def test_a_recoloured_pair_changes_its_colours_alike():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(80, 3, 8, 8, generator=generator) * 2 - 1
    both = torch.cat([images, images])
    other = recolour(both, torch.arange(80).repeat(2), torch.Generator().manual_seed(1))
    torch.testing.assert_close(other[:80], other[80:])
    assert other.min() >= -1
    assert other.max() <= 1
    negatives = 0
    for before, after in zip(images, other, strict=False):
        ranks = [channel.flatten().argsort() for channel in before]
        for channel in after:  # each is one of the picture's channels in other tones
            order = channel.flatten().argsort()
            upright = sum(torch.equal(order, rank) for rank in ranks)
            upside_down = sum(torch.equal(order.flip(0), rank) for rank in ranks)
            assert upright + upside_down == 1
            negatives += upside_down
    grey = recolour(torch.zeros(20, 3, 8, 8), torch.arange(20), torch.Generator().manual_seed(1))
    assert (grey.amax(1) - grey.amin(1)).mean() > 0.1
    assert negatives / 240 == pytest.approx(critic_pictures.NEGATIVE, abs=0.1)


def test_colours_are_not_named_in_other_colours_nor_textures_where_one_is_never_met(bank):
    def look(row):
        return LOOKS[bank.looks[row]]

    rows = np.flatnonzero(bank.families == FAMILIES.index("crayon"))
    whole = next(row for row in rows if look(row).palette != "black")  # waxwork's
    lacking = next(row for row in rows if look(row).palette == "black")
    chosen = np.array([whole, whole, lacking])
    named = critic_heads.name_targets(bank, chosen, torch.tensor([False, True, False])) >= 0
    assert named[0].all()
    assert named[1].tolist() == [True, False, False, True, False, True, False, True]
    assert named[2].tolist() == [True] * 7 + [False]


def test_a_setting_that_is_held_out_is_named_by_a_palette_and_a_texture_that_are_not():
    settings = critic_heads.SETTINGS
    held_out = {LOOKS.index(style.look) for style in STYLES.values()}
    known = [number for number in range(len(LOOKS)) if number not in held_out]
    for number in held_out:
        palette, texture = settings[number]
        assert palette in settings[known, 0]
        assert texture in settings[known, 1]
    assert len({tuple(pair) for pair in settings}) == len(settings)
    assert settings[: len(LOOKS), 0].max() + 1 == critic_heads.CLASSES[6]
    assert settings[:, 1].max() + 1 + len(painted.SEPARABLE) == critic_heads.CLASSES[7]


@pytest.mark.parametrize("style", ["", "kari dow"])
def test_a_reworded_question_keeps_its_images_and_its_style(style):
    rng = np.random.default_rng(0)
    plain = question(style)
    texts = [question(style, rng) for _ in range(50)]
    assert len(set(texts)) > 45
    for text in texts:
        assert text.count("<image>") == 2
        assert text.count("kari dow") <= plain.count("kari dow")
        assert text.count("kari") == plain.count("kari")
        assert text.startswith(plain[: plain.index("Decide")])
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    kept = [sum(word in text.split() for word in plain.split()) for text in texts]
    assert 0.5 < np.mean(kept) / len(plain.split()) < 0.95


def test_a_critic_of_other_patches_is_no_start(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"--start is .*nowhere: no critic is there"):
        critic.run(out, tmp_path, smoke=True, seed=0, steps=None, start=tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="4 sequences and 8 pairs cannot be shared evenly"):
        critic.run(out, tmp_path, smoke=True, seed=0, steps=None, processes=3)
    bank = make_bank(draw_groups(0, 2, seed=0)[0])
    with monkeypatch.context() as patched:
        patched.setattr(critic_model, "PATCH", 16)
        coarse = critic_model.build_model(0)
    with pytest.raises(TrainingError, match="has other layers or patches"):
        critic_phases.Critic(Pictures(bank, None), critic_phases.SMOKE, tmp_path, 0, coarse)


def test_a_killed_phase_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    class Always:
        def __init__(self, every):
            pass

        def due(self):
            return True

    def train(checkpoint, stop):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.3)

        def loss_at(step):
            if step == stop:
                raise KeyboardInterrupt
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

        loop.train_phase(checkpoint, {"m": model}, loss_at, steps=9, rates=(0.02, 0.01))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    monkeypatch.setattr(loop, "Clock", Always)
    straight = train(tmp_path / "a.safetensors", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b.safetensors", 5)
    torch.testing.assert_close(train(tmp_path / "b.safetensors", None), straight, rtol=0, atol=0)


def test_the_critic_learns(places, caplog):
    run_smoke(critic, places, caplog)
    for phase in ("seeing", "comparing", "answering"):
        first, last = losses(caplog, f"critic-{phase}")
        assert last < first
    folder = places[0] / "critic"
    assert {"seen", "held out"} <= set(json.loads((folder / "metrics.json").read_text()))


def test_a_critic_goes_on_from_another_in_two_processes(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    (out / "sdxl").symlink_to(WEIGHTS / "sdxl")
    critic.run(out, work, smoke=True, seed=0, steps=None, start=WEIGHTS / "critic", processes=2)
    assert (work / "critic-seeing.safetensors").exists()
    assert (work / "critic-comparing.safetensors").exists()
    assert (work / "faint-0.4-0-36.safetensors").exists()
    before, after = (
        load_file(folder / "critic" / "model.safetensors") for folder in (WEIGHTS, out)
    )
    moved = {
        name: ((after[name].float() - old.float()).norm() / old.float().norm()).item()
        for name, old in before.items()
        if old.ndim > 1
    }
    assert np.median(list(moved.values())) < 0.3  # of another start about 1.4
    for part in ("language_model", "vision_tower"):
        assert max(share for name, share in moved.items() if part in name) > 0


def test_the_judge_reads_the_critic_as_it_was_trained(bank):
    # the shipped one: one trained in seconds says other words than yes and no, machine by machine
    folder = WEIGHTS / "critic"
    images = [Image.fromarray(row.permute(1, 2, 0).numpy()) for row in bank.pixels[:6]]
    reader = Reader(folder)
    for layout in ("anyres", "pad"):
        judge = LlavaOnevisionJudge.load(str(folder), device="cpu", layout=layout)
        for aspect, style in (("subject", ""), ("style", "wobbly")):
            template = choose(TEMPLATES)[aspect]
            verdicts = judge.ask(
                [Question(aspect, images[0], test, style, template) for test in images[1:]]
            )
            ours = reader.p_yes(
                unit_pixels(images[:1] * 5), unit_pixels(images[1:]), [style] * 5, layout
            )
            # float32 through another attention kernel and a cached prefix
            np.testing.assert_allclose([v.p_yes for v in verdicts], ours, atol=1e-5)


def test_clip_learns_goes_on_after_a_kill_and_loads(places, caplog, monkeypatch, tmp_path):
    run_smoke(clip, places, caplog)
    first, last = losses(caplog, "clip")
    assert last < first
    weights = places[0] / "clip" / "open_clip_model.safetensors"
    (places[1] / "clip.safetensors").rename(tmp_path / "finished")
    whole = weights.read_bytes()
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args)

    loss = clip.contrastive_loss
    monkeypatch.setattr(clip, "contrastive_loss", killed)
    monkeypatch.setattr(loop.Clock, "due", lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        run_smoke(clip, places, caplog)
    run_smoke(clip, places, caplog)
    assert weights.read_bytes() == whole
    metric = ClipMetric.load(f"local-dir:{places[0] / 'clip'}", device="cpu")
    assert "64" in metric.id
    tokenize = open_clip.get_tokenizer(f"local-dir:{places[0] / 'clip'}")
    known, unknown, other = tokenize(["a mug in oil style", "a mug in x style", "a mug in y style"])
    assert (unknown == other).all()
    assert (known != other).any()


def test_dino_learns_and_loads(places, caplog):
    run_smoke(dino, places, caplog)
    first, last = losses(caplog, "dino")
    assert last < first
    metric = DinoMetric.load(str(places[0] / "dino"), device="cpu")
    assert "crop 64" in metric.id


def test_crops_keep_an_image_that_is_taken_whole():
    images = unit_pixels(pictures(6))
    taken = dino.crops(images, 64, 1.0, 1.0, torch.Generator().manual_seed(0))
    mirrored = images.flip(3)
    for image, flipped, crop in zip(images, mirrored, taken, strict=True):
        nearest = min((image - crop).abs().max(), (flipped - crop).abs().max())
        assert nearest < 1e-4  # bilinear at pixel centres, float32 coordinates


def test_exchanging_the_ground_leaves_the_thing_alone(bank):
    images = bank.pixels[:60].float() / 127.5 - 1
    roles = bank.roles[:60]
    changed = dino.exchange_ground(images, roles, torch.Generator().manual_seed(0)) != images
    thing = (roles > 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert not changed.any(1)[thing].any()
    share = changed.any(1).flatten(1).any(1).float().mean()
    assert 0.5 < share < 0.95  # 60 coins of .75
