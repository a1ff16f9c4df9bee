"""LoRA training: against peft and torch, by what it achieves, and when it is interrupted."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL.Image import Image

from baselines import dreambooth
from baselines.adapter import AdapterError, LoraAdapter
from baselines.attach import adapter_updates, attached
from baselines.denoiser import Conditioning, Denoiser
from baselines.dreambooth import LoraTraining, attention_layers, train_lora

QUICK = LoraTraining(rank=2, lr=1e-2, steps=4, save_every=2)


def same(first: LoraAdapter, second: LoraAdapter) -> bool:
    return list(first.deltas) == list(second.deltas) and all(
        torch.equal(first.deltas[name].up, second.deltas[name].up)
        and torch.equal(first.deltas[name].down, second.deltas[name].down)
        for name in first.deltas
    )


def training_error(
    denoiser: Denoiser, image: Image, prompt: str, adapter: LoraAdapter | None
) -> float:
    """Mean squared error over fixed noise and timesteps, not those of the training."""
    generator = torch.Generator().manual_seed(77)
    latents = denoiser.encode_images([image] * 16)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.linspace(0, 999, 16).long()
    noisy = denoiser.add_noise(latents, noise, timesteps)
    conditioning = denoiser.encode_prompts([prompt])[[0] * 16]
    updates = {} if adapter is None else adapter_updates(adapter)
    with torch.no_grad(), attached(denoiser.unet, updates):
        output = denoiser.predict(noisy, timesteps, conditioning)
    return (output - denoiser.target(latents, noise, timesteps)).square().mean().item()


def test_defaults_are_the_papers():
    settings = LoraTraining()
    assert (settings.rank, settings.lr, settings.steps, settings.batch_size) == (64, 5e-5, 1000, 1)


def test_trains_all_attention_projections_and_no_other(tiny_denoiser: Denoiser):
    layers = attention_layers(tiny_denoiser.unet)
    blocks = [
        name for name, _ in tiny_denoiser.unet.named_modules() if name.endswith(("attn1", "attn2"))
    ]
    assert layers == sorted(
        f"{block}.{projection}"
        for block in blocks
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
    )


def test_equals_peft_and_torch(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    """The same three steps with peft's LoRA layers, started from the same factors."""
    settings = LoraTraining(rank=3, alpha=6.0, lr=1e-2, steps=3, weight_decay=0.1, seed=5)
    images = [random_image(0), random_image(1)]
    ours = train_lora(tiny_denoiser, images, "a dog", settings)

    layers = attention_layers(tiny_denoiser.unet)
    oracle = copy.copy(tiny_denoiser)
    oracle.unet = inject_adapter_in_model(
        LoraConfig(r=3, lora_alpha=6.0, target_modules=layers), copy.deepcopy(tiny_denoiser.unet)
    )
    start = dreambooth._initial_factors(tiny_denoiser, layers, settings)
    wrapped = [oracle.unet.get_submodule(name) for name in layers]
    with torch.no_grad():
        for name, layer in zip(layers, wrapped, strict=True):
            layer.lora_A["default"].weight.copy_(start[f"{name}.down"])
            layer.lora_B["default"].weight.copy_(start[f"{name}.up"])
    trained = [p for p in oracle.unet.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(layers)
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    examples = dreambooth._Examples(oracle, images, ["a dog"] * 2, mirror=False)
    for step in range(3):
        draws = dreambooth._draw(oracle, examples, settings, step, label="images")
        noisy = oracle.add_noise(draws.latents, draws.noise, draws.timesteps)
        output = oracle.predict(noisy, draws.timesteps, draws.conditioning)
        (output - draws.noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for name, layer in zip(layers, wrapped, strict=True):
        expected = layer.get_delta_weight("default")
        # three float32 steps of Adam, whose first steps divide by the gradient's size
        torch.testing.assert_close(ours.deltas[name].dense(), expected, rtol=1e-3, atol=1e-5)


def test_learns_its_image(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    image = random_image(0)
    adapter = train_lora(
        tiny_denoiser, [image], "a dog", LoraTraining(rank=8, lr=2e-2, steps=50, batch_size=2)
    )
    before = training_error(tiny_denoiser, image, "a dog", None)
    after = training_error(tiny_denoiser, image, "a dog", adapter)
    assert after < 0.8 * before


def test_prior_images_come_with_their_own_prompt(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
):
    drawn = []
    loss = dreambooth._loss

    def spy(denoiser: Denoiser, draws: dreambooth._Draws, *rest: object) -> torch.Tensor:
        drawn.append(draws)
        return loss(denoiser, draws, *rest)

    monkeypatch.setattr(dreambooth, "_loss", spy)
    concept, prior = [random_image(0)], [random_image(8), random_image(9)]
    settings = dataclasses.replace(QUICK, steps=2, batch_size=2, prior_weight=1.0)
    train_lora(tiny_denoiser, concept, "a dog", settings, prior_images=prior, prior_prompt="cat")
    expected = tiny_denoiser.encode_images([*concept, *concept, *prior])
    prompts = tiny_denoiser.encode_prompts(["a dog", "a dog", "cat", "cat"])
    for draws in drawn:
        assert torch.equal(draws.latents[:2], expected[:2])
        # a batch of two is one shuffled pass over the two prior images
        assert {row.sum().item() for row in draws.latents[2:]} == {
            row.sum().item() for row in expected[2:]
        }
        torch.testing.assert_close(draws.conditioning.pooled, prompts.pooled)
    assert len(drawn) == 2
    assert not torch.equal(drawn[0].noise, drawn[1].noise)


def test_the_prior_counts_by_its_weight(tiny_denoiser: Denoiser):
    """By hand on an output and targets that are known."""

    class Fixed:
        def add_noise(self, latents, noise, timesteps):
            return latents

        def target(self, latents, noise, timesteps):
            return noise

        def predict(self, noisy, timesteps, conditioning):
            return noisy

    draws = dreambooth._Draws(
        latents=torch.tensor([1.0, 3.0])[:, None, None, None],
        noise=torch.tensor([0.0, 1.0])[:, None, None, None],
        timesteps=torch.zeros(2),
        conditioning=None,
    )
    settings = LoraTraining(prior_weight=0.5)
    assert dreambooth._loss(Fixed(), draws, settings).item() == 1.0 + 0.5 * 4.0
    tokens = Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1), torch.zeros(2, 6))
    draws = dataclasses.replace(draws, conditioning=tokens)
    kept = dreambooth._Kept(
        noisy=torch.tensor([5.0])[:, None, None, None],
        timesteps=torch.zeros(1),
        conditioning=tokens[:1],
        prediction=torch.tensor([2.0])[:, None, None, None],
    )
    both = LoraTraining(prior_weight=0.5, unconditional_weight=0.25)
    assert dreambooth._loss(Fixed(), draws, both, kept).item() == 1.0 + 0.5 * 4.0 + 0.25 * 9.0


def test_the_empty_prompt_is_kept_at_low_noise_alone_where_asked(tiny_denoiser: Denoiser):
    draws = dreambooth._Draws(
        latents=torch.ones(4, 4, 8, 8),
        noise=torch.zeros(4, 4, 8, 8),
        timesteps=torch.tensor([100, 700, 699, 950]),
        conditioning=tiny_denoiser.encode_prompts(["a dog"] * 4),
    )
    settings = LoraTraining(batch_size=4, unconditional_weight=1.0, unconditional_below=0.7)
    kept = dreambooth._unconditional(tiny_denoiser, draws, settings)
    assert kept.timesteps.tolist() == [100, 699]
    assert not kept.conditioning.embeddings.any()
    whole = dreambooth._loss(tiny_denoiser, draws, settings, kept)
    plain = dreambooth._loss(tiny_denoiser, draws, settings)
    torch.testing.assert_close(whole, plain)  # without a LoRA the base is itself
    moved = dataclasses.replace(kept, prediction=kept.prediction + 2)
    whole = dreambooth._loss(tiny_denoiser, draws, settings, moved)
    torch.testing.assert_close(whole, plain + 0.5 * 2.0**2)  # two rows of four
    none = dataclasses.replace(settings, unconditional_below=0.1)
    assert dreambooth._unconditional(tiny_denoiser, draws, none) is None


def test_the_unconditional_prediction_stays_the_bases(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image]
):
    image, prompt = random_image(0), "a dog"
    plain = LoraTraining(rank=8, lr=5e-3, steps=60, batch_size=2)
    generator = torch.Generator().manual_seed(5)
    latents = tiny_denoiser.encode_images([image] * 8)
    timesteps = torch.linspace(0, 999, 8).long()
    noisy = tiny_denoiser.add_noise(
        latents, torch.randn(latents.shape, generator=generator), timesteps
    )
    empty = tiny_denoiser.encode_prompts([prompt])[[0] * 8].zeros_like()

    def unconditional(adapter: LoraAdapter | None) -> torch.Tensor:
        updates = {} if adapter is None else adapter_updates(adapter)
        with torch.no_grad(), attached(tiny_denoiser.unet, updates):
            return tiny_denoiser.predict(noisy, timesteps, empty)

    moved = {}
    for weight in (0.0, 1.0):
        settings = dataclasses.replace(plain, unconditional_weight=weight)
        adapter = train_lora(tiny_denoiser, [image], prompt, settings)
        moved[weight] = (unconditional(adapter) - unconditional(None)).square().mean().item()
        before = training_error(tiny_denoiser, image, prompt, None)
        assert training_error(tiny_denoiser, image, prompt, adapter) < before
    assert moved[1.0] < 0.2 * moved[0.0]


def test_one_prompt_for_each_image(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    images = [random_image(0), random_image(1)]
    joint = train_lora(tiny_denoiser, images, ["a dog", "oil style"], QUICK)
    assert joint.metadata["prompt"] == "a dog | oil style"
    assert same(
        train_lora(tiny_denoiser, images, ["a dog", "a dog"], QUICK),
        train_lora(tiny_denoiser, images, "a dog", QUICK),
    )
    assert not same(joint, train_lora(tiny_denoiser, images, "a dog", QUICK))


def test_the_seed_decides(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    def train(seed: int) -> LoraAdapter:
        settings = dataclasses.replace(QUICK, seed=seed)
        return train_lora(tiny_denoiser, [random_image(0)], "a dog", settings)

    assert same(train(1), train(1))
    assert not same(train(1), train(2))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_training_goes_on_with_the_same_result(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image], tmp_path: Path, stop: int
):
    images = [random_image(0), random_image(1), random_image(2)]
    settings = dataclasses.replace(
        QUICK, random_flip=True, prior_weight=1.0, unconditional_weight=1.0
    )
    path = tmp_path / "state"
    seen: list[int] = []

    def train(checkpoint: Path | None, kill_at: int | None) -> LoraAdapter:
        def progress(step: int, _loss: float) -> None:
            seen.append(step)
            if step == kill_at:
                raise KeyboardInterrupt

        return train_lora(
            tiny_denoiser,
            images,
            "a dog",
            settings,
            prior_images=images[:1],
            prior_prompt="dog",
            checkpoint=checkpoint,
            progress=progress,
        )

    whole = train(None, None)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(path, stop)
    resumed = train(path, None)
    assert same(resumed, whole)
    assert resumed.metadata == whole.metadata
    saved = stop - stop % 2
    assert seen == [*range(1, stop + 1), *range(saved + 1, 5)]
    assert same(train(path, None), whole)  # finished: nothing left to do


def test_a_checkpoint_of_other_images_is_refused(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image], tmp_path: Path
):
    train_lora(tiny_denoiser, [random_image(0)], "a dog", QUICK, checkpoint=tmp_path / "state")
    with pytest.raises(AdapterError, match="other settings, images or prompts"):
        train_lora(tiny_denoiser, [random_image(1)], "a dog", QUICK, checkpoint=tmp_path / "state")


def test_gradient_checkpointing_changes_nothing(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image]
):
    settings = dataclasses.replace(QUICK, gradient_checkpointing=True)
    spared = train_lora(tiny_denoiser, [random_image(0)], "a dog", settings)
    plain = train_lora(tiny_denoiser, [random_image(0)], "a dog", QUICK)
    for name, update in plain.deltas.items():
        torch.testing.assert_close(spared.deltas[name].dense(), update.dense())
    assert not tiny_denoiser.unet.is_gradient_checkpointing


def test_leaves_the_base_alone(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    before = {name: value.clone() for name, value in tiny_denoiser.unet.state_dict().items()}
    train_lora(tiny_denoiser, [random_image(0)], "a dog", QUICK)
    after = tiny_denoiser.unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_chosen_layers_only(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    layers = attention_layers(tiny_denoiser.unet)[:2]
    adapter = train_lora(tiny_denoiser, [random_image(0)], "a dog", QUICK, layers=layers)
    assert list(adapter.deltas) == layers
    with pytest.raises(AdapterError, match="no layer 'nowhere'"):
        train_lora(tiny_denoiser, [random_image(0)], "a dog", QUICK, layers=["nowhere"])


def test_a_diverging_training_says_so(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    settings = dataclasses.replace(QUICK, lr=1e30)
    with pytest.raises(AdapterError, match="lower lr"):
        train_lora(tiny_denoiser, [random_image(0)], "a dog", settings)


@pytest.mark.parametrize(
    ("images", "prompt", "prior", "prior_prompt", "weight", "message"),
    [
        (0, "a", 0, "", 0.0, "no training images"),
        (2, ["a"], 0, "", 0.0, "2 images but 1 prompts"),
        (1, "a", 1, "b", 0.0, "prior_weight is 0.0 with 1 prior images"),
        (1, "a", 0, "b", 0.5, "prior_weight is 0.5 with 0 prior images"),
        (1, "a", 1, "", 0.5, "without a prior prompt"),
    ],
)
def test_refuses_inputs_that_do_not_fit(
    tiny_denoiser: Denoiser,
    random_image: Callable[..., Image],
    images: int,
    prompt: str | Sequence[str],
    prior: int,
    prior_prompt: str,
    weight: float,
    message: str,
):
    with pytest.raises(ValueError, match=message):
        train_lora(
            tiny_denoiser,
            [random_image(i) for i in range(images)],
            prompt,
            dataclasses.replace(QUICK, prior_weight=weight),
            prior_images=[random_image(i) for i in range(prior)],
            prior_prompt=prior_prompt,
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("steps", 0),
        ("lr", 0.0),
        ("batch_size", -1),
        ("prior_weight", -0.1),
        ("unconditional_weight", -1.0),
        ("unconditional_below", 0.0),
        ("unconditional_below", 1.5),
    ],
)
def test_refuses_settings_out_of_range(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        LoraTraining(**{field: value})


def test_a_cosine_rate_falls_to_zero_over_the_steps():
    settings = LoraTraining(lr=2e-3, steps=4, lr_schedule="cosine")
    rates = [settings.lr_at(step) for step in range(4)]
    assert rates == pytest.approx([2e-3, 2e-3 * 0.8535534, 1e-3, 2e-3 * 0.1464466])
    assert LoraTraining(lr=2e-3).lr_at(999) == 2e-3


def test_the_first_step_is_taken_at_the_rate_of_its_schedule(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
):
    image = random_image(0)
    settings = dataclasses.replace(QUICK, steps=1, weight_decay=0.0)
    plain = train_lora(tiny_denoiser, [image], "a dog", settings)
    monkeypatch.setattr(LoraTraining, "lr_at", lambda settings, step: settings.lr / 2)
    halved = train_lora(tiny_denoiser, [image], "a dog", settings)
    for name, delta in plain.deltas.items():  # AdamW's first step is the rate's size
        torch.testing.assert_close(halved.deltas[name].up, delta.up / 2)


def test_a_cosine_training_is_not_continued_with_other_steps(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image], tmp_path: Path
):
    image = random_image(0)
    path = tmp_path / "state.safetensors"
    settings = dataclasses.replace(QUICK, lr_schedule="cosine")
    train_lora(tiny_denoiser, [image], "a dog", settings, checkpoint=path)
    longer = dataclasses.replace(settings, steps=6)
    with pytest.raises(AdapterError):
        train_lora(tiny_denoiser, [image], "a dog", longer, checkpoint=path)
