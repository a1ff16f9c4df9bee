"""The merging loss against dense weights, row by row, and against finite differences."""

import copy
from collections.abc import Callable

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.denoiser import Conditioning, Denoiser
from baselines.merging_loss import (
    Coefficients,
    Loss,
    TaskBatch,
    draw_batch,
    encode_concept,
    merge_with_coefficients,
    merging_loss,
    regularize,
)


def draw_coefficients(adapter: LoraAdapter, seed: int, dtype: torch.dtype) -> Coefficients:
    """Around 0.5, for the layers whose coefficients LoRA.rar predicts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tuple(
            0.5 + torch.randn(delta.shape[1], generator=generator, dtype=dtype) for _ in range(2)
        )
        for name, delta in adapter.deltas.items()
        if name.endswith(("to_q", "to_out.0"))
    }


@pytest.fixture(scope="module")
def batch(tiny_denoiser_double: Denoiser, random_image: Callable[..., Image]) -> TaskBatch:
    denoiser = tiny_denoiser_double
    subject = encode_concept(denoiser, [random_image(0), random_image(1)], ["a dog"] * 2)
    style = encode_concept(denoiser, [random_image(2)], ["a house in oil style"])
    return draw_batch(denoiser, subject, style, 2, torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def pair(random_adapter: Callable[..., LoraAdapter]) -> tuple[LoraAdapter, LoraAdapter]:
    return (
        random_adapter(10, rank=3, dtype=torch.float64),
        random_adapter(11, rank=5, dtype=torch.float64),
    )


def test_merge_equals_the_dense_formula(pair: tuple[LoraAdapter, LoraAdapter]):
    subject, style = pair
    coefficients = draw_coefficients(subject, 0, torch.float64)
    merged = merge_with_coefficients(subject, style, coefficients, default=0.5)
    assert list(merged.deltas) == list(subject.deltas)
    for name, delta in merged.deltas.items():
        assert delta.rank == 8
        dense_subject, dense_style = subject.deltas[name].dense(), style.deltas[name].dense()
        if name in coefficients:
            m_subject, m_style = coefficients[name]
            expected = dense_subject @ m_subject.diag() + dense_style @ m_style.diag()
        else:
            expected = 0.5 * dense_subject + 0.5 * dense_style
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-12, atol=1e-12)


def test_merge_by_hand():
    subject = LoraAdapter(
        {"x": LowRankDelta(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0]]))}
    )
    style = LoraAdapter(
        {"x": LowRankDelta(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 4.0]]))}
    )
    merged = merge_with_coefficients(
        subject, style, {"x": (torch.tensor([3.0, 0.0]), torch.tensor([9.0, 0.5]))}
    )
    assert merged.deltas["x"].dense().tolist() == [[3.0, 2.0], [6.0, 0.0]]


def test_refuses_what_does_not_fit(pair: tuple[LoraAdapter, LoraAdapter]):
    subject, style = pair
    first = next(iter(subject.deltas))
    with pytest.raises(AdapterError, match="layer 'nowhere'"):
        merge_with_coefficients(subject, style, {"nowhere": (torch.ones(1), torch.ones(1))})
    with pytest.raises(AdapterError, match=r"coefficients of shape \(3,\)"):
        merge_with_coefficients(subject, style, {first: (torch.ones(3), torch.ones(3))})
    fewer = LoraAdapter({name: delta for name, delta in style.deltas.items() if name != first})
    with pytest.raises(AdapterError, match=f"random-10 updates {first}"):
        merge_with_coefficients(subject, fewer, {})
    with pytest.raises(AdapterError, match=f"random-10 updates {first}"):
        merge_with_coefficients(fewer, subject, {})
    other = LoraAdapter({**style.deltas, first: LowRankDelta(torch.ones(7, 1), torch.ones(1, 7))})
    with pytest.raises(AdapterError, match=r"but \(7, 7\) in adapter"):
        merge_with_coefficients(subject, other, {})


def test_regularizers_by_hand():
    coefficients = {
        "a": (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])),  # dot 3, cos 3/5
        "b": (torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])),  # dot -2, cos -1/sqrt 2
    }
    assert regularize(coefficients, "abs_cos").item() == pytest.approx(0.6 + 0.5**0.5)
    assert regularize(coefficients, "abs_dot").item() == pytest.approx(3 + 2)
    assert regularize(coefficients, "mean_abs_product").item() == pytest.approx(1.5 + 1)
    with pytest.raises(ValueError, match="regularizer is 'cos'"):
        regularize(coefficients, "cos")


def test_batch_shares_noise_and_timesteps(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image]
):
    image = random_image(0)
    subject = encode_concept(tiny_denoiser, [image], ["a dog"])
    style = encode_concept(tiny_denoiser, [image], ["oil style"])
    batch = draw_batch(tiny_denoiser, subject, style, 3, torch.Generator().manual_seed(0))
    assert torch.equal(batch.noisy[:3], batch.noisy[3:])  # same image, noise and timestep
    assert torch.equal(batch.timesteps[:3], batch.timesteps[3:])
    assert not torch.equal(batch.noisy[0], batch.noisy[1])
    for row in range(6):
        concept = subject if row < 3 else style
        assert torch.equal(batch.conditioning[[row]].pooled, concept.conditioning.pooled)


def test_each_image_keeps_its_prompt(tiny_denoiser: Denoiser, random_image: Callable[..., Image]):
    images, prompts = [random_image(0), random_image(1)], ["a dog", "a house in oil style"]
    both = encode_concept(tiny_denoiser, images, prompts)
    alone = [encode_concept(tiny_denoiser, [i], [p]) for i, p in zip(images, prompts, strict=True)]
    generator = torch.Generator().manual_seed(0)
    batch = draw_batch(tiny_denoiser, both, both, 4, generator)
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.randint(tiny_denoiser.train_timesteps, (4,), generator=generator)
    noise = torch.randn((4, *both.latents.shape[1:]), generator=generator)
    seen = set()
    for row in range(8):
        fits = [
            torch.allclose(
                batch.noisy[row],
                tiny_denoiser.add_noise(one.latents, noise[[row % 4]], timesteps[[row % 4]])[0],
                atol=1e-5,
            )
            for one in alone
        ]
        assert sum(fits) == 1
        shown = fits.index(True)
        seen.add(shown)
        pooled = batch.conditioning[[row]].pooled
        torch.testing.assert_close(pooled, alone[shown].conditioning.pooled)
    assert seen == {0, 1}


def test_a_concept_needs_images_and_a_prompt_for_each(
    tiny_denoiser: Denoiser, random_image: Callable[..., Image]
):
    for images, prompts in (([], []), ([random_image(0)], ["a dog", "a cat"])):
        with pytest.raises(ValueError, match=f"{len(images)} images and {len(prompts)} prompts"):
            encode_concept(tiny_denoiser, images, prompts)


def predict_dense(batch: TaskBatch, rows: slice, weights: dict[str, Tensor]) -> Tensor:
    """The answer of a copy of the UNet with ``weights`` added, on some rows."""
    fused = copy.copy(batch.denoiser)
    fused.unet = copy.deepcopy(batch.denoiser.unet)
    with torch.no_grad():
        for name, weight in weights.items():
            fused.unet.get_submodule(name).weight += weight
        conditioning: Conditioning = batch.conditioning[rows]
        return fused.predict(batch.noisy[rows], batch.timesteps[rows], conditioning)


def test_loss_equals_four_dense_forwards(batch: TaskBatch, pair: tuple[LoraAdapter, LoraAdapter]):
    subject, style = pair
    coefficients = draw_coefficients(subject, 1, torch.float64)
    loss = merging_loss(batch, subject, style, coefficients, weight=0.25, default=0.5)

    dense_subject = {name: delta.dense() for name, delta in subject.deltas.items()}
    dense_style = {name: delta.dense() for name, delta in style.deltas.items()}
    half = (0.5 * torch.ones(()), 0.5 * torch.ones(()))
    merged = {}
    for name in dense_subject:
        m_subject, m_style = coefficients.get(name, half)
        merged[name] = dense_subject[name] * m_subject + dense_style[name] * m_style
    expected = []
    for rows, teacher in ((slice(0, 2), dense_subject), (slice(2, 4), dense_style)):
        error = predict_dense(batch, rows, merged) - predict_dense(batch, rows, teacher)
        expected.append(error.square().mean().item())

    assert loss.subject.item() == pytest.approx(expected[0], rel=1e-9)
    assert loss.style.item() == pytest.approx(expected[1], rel=1e-9)
    assert abs(expected[0] - expected[1]) > 1e-6
    assert loss.regularizer.item() == pytest.approx(regularize(coefficients).item(), rel=1e-12)
    assert loss.total.item() == pytest.approx(
        sum(expected) + 0.25 * loss.regularizer.item(), rel=1e-9
    )


def test_gradient_equals_finite_differences(
    batch: TaskBatch, pair: tuple[LoraAdapter, LoraAdapter]
):
    subject, style = pair
    coefficients = draw_coefficients(subject, 2, torch.float64)

    def loss() -> Loss:
        return merging_loss(batch, subject, style, coefficients)

    vectors = [vector.requires_grad_() for both in coefficients.values() for vector in both]
    gradients = torch.autograd.grad(loss().total, vectors)
    for index in (0, 1, 7, len(vectors) - 1):
        vector, place, step = vectors[index], index % 5, 1e-5
        with torch.no_grad():
            values = []
            for move in (step, -2 * step, step):
                vector[place] += move
                values.append(loss().total.item())
        # central difference: the truncation error is of the order step^2
        numeric = (values[0] - values[1]) / (2 * step)
        assert gradients[index][place].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)
    for vector in vectors:
        vector.requires_grad_(False)


def test_no_error_where_the_merge_is_the_teacher(
    batch: TaskBatch, pair: tuple[LoraAdapter, LoraAdapter]
):
    subject, style = pair
    only_subject = {
        name: (torch.ones(d.shape[1]).double(), torch.zeros(d.shape[1]).double())
        for name, d in subject.deltas.items()
    }
    loss = merging_loss(batch, subject, style, only_subject)
    assert loss.subject.item() < 1e-20
    assert loss.style.item() > 1e-4
    assert loss.regularizer.item() == 0.0


def test_gradient_checkpointing_gives_the_same_gradients(
    batch: TaskBatch, pair: tuple[LoraAdapter, LoraAdapter]
):
    subject, style = pair
    gradients = []
    for enabled in (False, True):
        coefficients = draw_coefficients(subject, 2, torch.float64)
        vectors = [vector.requires_grad_() for both in coefficients.values() for vector in both]
        with batch.denoiser.gradient_checkpointing(enabled=enabled):
            merging_loss(batch, subject, style, coefficients, backward=True)
        gradients.append(torch.cat([vector.grad for vector in vectors]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)
    assert gradients[0].abs().max() > 0
