import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmark_data.miniworld import world
from benchmark_data.miniworld.settings import BARE, INVENTED, PALETTES, SEPARABLE, TEXTURES
from benchmark_data.miniworld.world import (
    ATTRIBUTES,
    CATEGORIES,
    COLOURS,
    FAMILIES,
    MONOCHROME,
    PATTERNS,
    PHOTO,
    SETTING_WORDS,
    STYLES,
    SUBJECTS,
    WORDS,
    Look,
    Thing,
    caption,
    changeable,
    draw,
    draw_roles,
    one_attribute_changed,
    random_look,
    random_thing,
    same_in,
    survives,
)

MUG = Thing("mug", "red", "green", "spots", "yellow")


def pixels(thing: Thing, look: Look, seed: int = 0, size: int = 64) -> NDArray[np.int16]:
    return np.asarray(draw(thing, look, seed=seed, size=size), dtype=np.int16)


def changed(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    """The fraction of pixels of which some channel differs by more than 24 of 255."""
    return float((np.abs(a - b).max(-1) > 24).mean())


def all_looks() -> list[Look]:
    return [
        Look(family, palette, texture)
        for family in FAMILIES
        for palette in PALETTES[family]
        for texture in (*TEXTURES[family], *([BARE] if family in SEPARABLE else []))
    ]


@pytest.mark.parametrize(
    "look", all_looks(), ids=lambda look: f"{look.family}-{look.palette}-{look.texture}"
)
def test_draws_every_look_reproducibly(look: Look) -> None:
    first, again = draw(MUG, look, seed=3), draw(MUG, look, seed=3)
    assert first.mode == "RGB"
    assert first.size == (64, 64)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != draw(MUG, look, seed=4).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_change_shows_if_and_only_if_it_survives(family: str, attribute: str) -> None:
    rng = np.random.default_rng([FAMILIES.index(family), ATTRIBUTES.index(attribute)])
    for seed, category in enumerate(rng.permutation(CATEGORIES)[:6]):
        thing = random_thing(rng, categories=[category], patterns=PATTERNS[1:])
        other = one_attribute_changed(thing, attribute, rng)
        look = random_look(rng, [family])
        difference = changed(pixels(thing, look, seed), pixels(other, look, seed))
        if attribute in survives(look):
            assert not same_in(look, thing, other)
            assert difference >= 0.01, (thing, other, look)
        else:
            assert same_in(look, thing, other)
            assert pixels(thing, look, seed).tolist() == pixels(other, look, seed).tolist()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "photo"])
def test_settings_of_a_family_differ_visibly(family: str) -> None:
    looks = [look for look in all_looks() if look.family == family]
    drawn = [pixels(MUG, look) for look in looks]
    for a, b in itertools.combinations(range(len(looks)), 2):
        assert changed(drawn[a], drawn[b]) > 0.02, (looks[a], looks[b])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "photo"])
def test_invented_palettes_are_nobodys(family: str) -> None:
    made = list(INVENTED[family].values())
    assert len(made) == 20
    assert not set(INVENTED[family]) & set(PALETTES[family])
    for one, other in itertools.combinations([*made, *PALETTES[family].values()], 2):
        tones = (np.array([*palette.ground, *palette.ink]) for palette in (one, other))
        assert one not in made or np.abs(np.subtract(*tones)).max() >= 24
    look = Look(family, "invented_7", TEXTURES[family][0])
    assert changed(pixels(MUG, look), pixels(MUG, Look(family, "invented_8", look.texture))) > 0
    rng = np.random.default_rng(0)
    assert not {random_look(rng, [family]).palette for _ in range(100)} & set(INVENTED[family])
    with pytest.raises(ValueError, match=f"unknown {family} palette 'invented_20'"):
        Look(family, "invented_20", TEXTURES[family][0])


@pytest.mark.parametrize("family", SEPARABLE)
def test_a_bare_ground_is_smoother_than_any_with_a_texture(family: str) -> None:
    def roughness(look: Look) -> float:
        """Mean difference of neighbours, away from the thing."""
        drawn = pixels(MUG, look, seed=2).astype(float)
        away = ~(draw_roles(MUG, seed=2) > 0)
        away &= np.roll(away, 3, 0) & np.roll(away, -3, 0) & np.roll(away, 3, 1)
        across = np.abs(np.diff(drawn, axis=1)).mean(-1)
        return float(across[away[:, 1:]].mean())

    for palette in PALETTES[family]:
        bare = roughness(Look(family, palette, BARE))
        for texture in TEXTURES[family]:
            assert bare < roughness(Look(family, palette, texture)), texture


def test_a_bare_blueprint_has_no_rules() -> None:
    for texture, least, most in (("grid", 20, 60), (BARE, -3, 3)):
        drawn = pixels(MUG, Look("blueprint", "prussian", texture), seed=2).mean(-1)
        lines = drawn[:, 8:56:8] - (drawn[:, 6:54:8] + drawn[:, 10:58:8]) / 2
        assert least < np.median(lines) < most


def test_only_some_families_have_bare_settings_and_no_style_is_one() -> None:
    with pytest.raises(ValueError, match="unknown line texture 'bare'; known: fine, bold, sketchy"):
        Look("line", "black_on_white", BARE)
    assert all(style.look.texture != BARE for style in STYLES.values())
    assert BARE not in SETTING_WORDS


def test_the_pose_depends_on_the_seed_alone() -> None:
    roles = draw_roles(MUG, seed=5) > 0
    for other in (Thing("mug", "blue", "pink"), Thing("mug", "blue", "pink", "checks", "red")):
        assert (draw_roles(other, seed=5) > 0).tolist() == roles.tolist()
    flat = pixels(MUG, Look("flat", "sky", "plain"), seed=5)
    on_ground = (np.abs(flat - (168, 214, 240)).max(-1) <= 2) & ~roles
    assert on_ground.sum() > 0.95 * (~roles).sum()


def test_no_jitter_means_one_pose() -> None:
    a, b = (draw_roles(MUG, seed=seed, jitter=0.0) for seed in (1, 2))
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_fill_the_frame_and_show_their_parts(category: str) -> None:
    for pattern in PATTERNS[1:]:
        thing = Thing(category, "red", "blue", pattern, "yellow")
        roles = draw_roles(thing, seed=0, jitter=0.0)
        body, accent, second, detail = ((roles == role).sum() for role in range(1, 5))
        across = max(int(np.ptp(axis)) + 1 for axis in np.nonzero(roles))
        assert 0.6 * 64 <= across <= 0.78 * 64
        assert accent >= 0.08 * (roles > 0).sum()
        assert 0.25 <= second / (body + second) <= 0.45
        assert detail > 0


def test_objects_stay_inside_the_frame() -> None:
    for seed, category in itertools.product(range(20), CATEGORIES):
        roles = draw_roles(Thing(category, "red", "blue"), seed=seed)
        edge = np.concatenate([roles[0], roles[-1], roles[:, 0], roles[:, -1]])
        assert not edge.any()


def test_other_sizes_show_the_same_picture() -> None:
    look = Look("flat", "sky", "sticker")
    large = np.asarray(draw(MUG, look, seed=1, size=128).reduce(2), dtype=np.int16)
    assert changed(large, pixels(MUG, look, seed=1)) < 0.06


def test_the_random_state_of_numpy_is_left_alone() -> None:
    state = np.random.get_state()  # noqa: NPY002
    before = np.random.random_sample()  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    draw(MUG, PHOTO, seed=0)
    assert np.random.random_sample() == before  # noqa: NPY002


def test_colours_are_well_separated() -> None:
    for a, b in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cup", "red", "green", "plain", ""), "unknown category 'cup'; known: mug, fish"),
        (("mug", "grey", "green", "plain", ""), "unknown colour 'grey'"),
        (("mug", "red", "green", "zigzag", "blue"), "unknown pattern 'zigzag'"),
        (("mug", "red", "green", "plain", "blue"), "second=''"),
        (("mug", "red", "green", "spots", ""), "second=''"),
        (("mug", "red", "red", "plain", ""), "must be different"),
        (("mug", "red", "green", "spots", "red"), "must be different"),
    ],
)
def test_refuses_impossible_things(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thing(*arguments)


def test_refuses_unknown_settings() -> None:
    with pytest.raises(ValueError, match="unknown neon palette 'sage'; known: black"):
        Look("neon", "sage", "tube")
    with pytest.raises(ValueError, match="unknown family 'pastel'"):
        survives("pastel")


def test_one_attribute_changed_changes_that_attribute() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        thing = random_thing(rng)
        for attribute in changeable(thing):
            other = one_attribute_changed(thing, attribute, rng)
            differing = {a for a in ATTRIBUTES if getattr(thing, a) != getattr(other, a)}
            came_or_went = {"second"} if "" in (thing.second, other.second) else set()
            assert attribute in differing
            assert differing <= {attribute} | (came_or_went if attribute == "pattern" else set())
    with pytest.raises(ValueError, match="unknown changeable attribute 'second'"):
        one_attribute_changed(Thing("mug", "red", "green"), "second", rng)


def test_a_plain_thing_survives_by_its_form_in_monochrome() -> None:
    red, blue = Thing("mug", "red", "green"), Thing("mug", "blue", "pink")
    assert same_in("line", red, blue)
    assert not same_in("neon", red, blue)
    assert not same_in("line", red, MUG)


def test_random_things_and_looks_are_never_held_out() -> None:
    rng = np.random.default_rng(1)
    things = {subject.thing for subject in SUBJECTS.values()}
    looks = {style.look for style in STYLES.values()}
    settings = {look for look in all_looks() if look.texture != BARE}
    drawn = [random_thing(rng) for _ in range(20_000)]
    assert not things & set(drawn)
    assert len(set(drawn)) > 9_000
    assert {random_look(rng) for _ in range(20_000)} == settings - looks


def test_splits() -> None:
    for entries, sizes in ((SUBJECTS, (12, 2, 5)), (STYLES, (10, 2, 5))):
        splits = [str(entry.split) for entry in entries.values()]
        assert tuple(splits.count(split) for split in world.SPLITS) == sizes
        assert [entry.id for entry in entries.values()] == list(entries)
    assert len({subject.thing for subject in SUBJECTS.values()}) == 19
    assert len({style.look for style in STYLES.values()}) == 17
    test_families = {style.look.family for style in STYLES.values() if style.split == "test"}
    assert len(test_families) == 5
    assert len(test_families - MONOCHROME) == 4
    assert len({style.look.family for style in STYLES.values() if style.split == "train"}) >= 8
    assert all(s.thing.second for s in SUBJECTS.values() if s.split == "test")


def test_captions_use_the_known_words() -> None:
    rng = np.random.default_rng(2)
    texts = [caption(random_thing(rng), random_look(rng), rng) for _ in range(5_000)]
    assert {word for text in texts for word in text.split()} == set(WORDS)
    assert max(len(text.split()) for text in texts) <= 12
    said = [
        caption(random_thing(rng), random_look(rng), rng, palette=1, texture=0.5)
        for _ in range(5_000)
    ]
    assert {word for text in said for word in text.split()} == {*WORDS, *SETTING_WORDS} - {
        "natural"
    }  # a photo has no setting
    assert max(len(text.split()) for text in said) <= 16
    assert not {style.phrase for style in STYLES.values()} & set(SETTING_WORDS)
    assert not {style.phrase for style in STYLES.values()} & set(WORDS)


def test_captions_by_hand() -> None:
    rng = np.random.default_rng(3)
    neon = Look("neon", "black", "tube")
    full = "a red mug with yellow spots and green handle in neon style"
    assert caption(MUG, neon, rng, drop=0) == full
    plain = Thing("umbrella", "red", "green")
    texts = {caption(plain, neon, rng, drop=1) for _ in range(200)}
    assert texts == {
        "an umbrella in neon style",
        "a red umbrella in neon style",
        "an umbrella with green handle in neon style",
        "a red umbrella with green handle in neon style",
    }
    photos = {caption(plain, PHOTO, rng, drop=0) for _ in range(50)}
    named = "a red umbrella with green handle in photo style"
    assert photos == {named, named.removesuffix(" in photo style")}


def test_prompts_by_hand() -> None:
    mug, style = SUBJECTS["mug_1"], STYLES["aquarelle"]
    assert world.subject_prompt(mug) == "a תת mug"
    assert world.prompt(mug, style) == "a תת mug in aquarelle style"
    prompt = world.style_prompt(Thing("fish", "red", "blue"), style)
    assert prompt == "a red fish with blue fins in aquarelle style"


@pytest.mark.parametrize(
    ("look", "mean"),
    [
        (Look("flat", "sky", "plain"), (169.9, 183.9, 188.8)),
        (Look("glass", "rose", "shards"), (183.2, 136.2, 128.7)),
        (PHOTO, (189.1, 183.5, 178.4)),
    ],
    ids=lambda value: getattr(value, "family", ""),
)
def test_pictures_stay_what_the_weights_were_trained_on(
    look: Look, mean: tuple[float, ...]
) -> None:
    """Means, not bytes: Pillow's versions may fill an edge's pixels differently."""
    found = pixels(MUG, look).mean((0, 1))
    np.testing.assert_allclose(found, mean, atol=0.5)
