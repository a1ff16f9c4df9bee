import json
import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTModel

from mars2.judges import JudgeError
from mars2.metrics import MetricSettings, identify_metric
from mars2.metrics.clip import ClipMetric, shown_name
from mars2.metrics.dino import DinoMetric
from mars2.metrics.features import ImageFeatures, mean_cosine, unit


def cosine(a, b):
    """By its definition, in float64."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def resized(image, side):
    """Scaled so that the shorter side is `side`, bicubic; then the middle square."""
    width, height = image.size
    scale = side[0] / min(width, height)
    image = image.resize(
        (max(side[0], int(width * scale)), max(side[0], int(height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = ((length - side[1]) / 2 for length in image.size)
    left, top = round(left), round(top)
    return image.crop((left, top, left + side[1], top + side[1]))


def pixels(image, side, mean, std):
    values = np.asarray(resized(image, side), dtype=np.float64) / 255
    values = (values - np.array(mean)) / np.array(std)
    return torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32)


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return ClipMetric.load(f"local-dir:{tiny_clip}", device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def dino(tiny_dino):
    return DinoMetric.load(str(tiny_dino), device="cpu", batch_size=2)


@pytest.fixture
def items(noise, evaluated):
    subjects = [noise(seed, (40, 44)) for seed in (10, 11, 12)]
    styles = [noise(20, (64, 48))]
    return [
        evaluated(noise(seed), subjects, styles, prompt=prompt)
        for seed, prompt in enumerate(["a red mug", "a blue fish in a style", None])
    ]


def by_name(metric, items):
    return [{score.metric: score for score in scores} for scores in metric.score(items)]


def clip_oracle(tiny_clip):
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()
    model.load_state_dict(load_file(tiny_clip / "open_clip_model.safetensors"))

    def image(picture):
        with torch.no_grad():
            given = pixels(picture, (32, 32), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
            return model.encode_image(given)[0]

    def text(ids):
        with torch.no_grad():
            return model.encode_text(torch.tensor([ids + [0] * (8 - len(ids))]))[0]

    return image, text


def test_clip_equals_cosines_computed_directly(clip, tiny_clip, items):
    image, text = clip_oracle(tiny_clip)
    ids = {"a red mug": [2, 4, 5, 7, 3], "a blue fish in a style": [2, 4, 6, 8, 9, 4, 10, 3]}
    for item, scores in zip(items, by_name(clip, items), strict=True):
        assert tuple(scores) == clip.names
        own = image(item.image)
        for name, references in (
            ("clip_i_style", item.style_references),
            ("clip_i_subject", item.subject_references),
        ):
            expected = np.mean([cosine(own, image(reference)) for reference in references])
            assert scores[name].value == pytest.approx(expected, abs=1e-5)
            assert scores[name].detail == {"references": len(references)}
        if item.prompt is None:
            assert scores["clip_t"].value is None
        else:
            expected = cosine(own, text(ids[item.prompt]))
            assert scores["clip_t"].value == pytest.approx(expected, abs=1e-5)


def test_dino_equals_cosines_computed_directly(dino, tiny_dino, items):
    model = ViTModel.from_pretrained(tiny_dino, add_pooling_layer=False).eval()

    def token(picture):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        with torch.no_grad():
            given = pixels(picture, (32, 28), mean, std)
            return model(pixel_values=given).last_hidden_state[0, 0]

    for item, scores in zip(items, by_name(dino, items), strict=True):
        assert tuple(scores) == dino.names
        own = token(item.image)
        for name, references in (
            ("dino_style", item.style_references),
            ("dino_subject", item.subject_references),
        ):
            expected = np.mean([cosine(own, token(reference)) for reference in references])
            assert scores[name].value == pytest.approx(expected, abs=1e-5)


def test_an_image_is_like_itself_and_less_like_another(clip, dino, noise, evaluated):
    same, other = noise(1), noise(2)
    for metric in (clip, dino):
        style, subject = metric.score([evaluated(same, [other], [same])])[0][:2]
        assert style.value == pytest.approx(1, abs=1e-5)
        assert subject.value < 0.999


def test_references_are_seen_once_by_content(noise):
    seen = []

    def embed(images):
        seen.append(len(images))
        return torch.stack([torch.tensor(image.getpixel((0, 0))).float() for image in images])

    features = ImageFeatures(embed, batch_size=2)
    references = [noise(1), noise(2), noise(1)]
    first = features.of_references(references)
    again = features.of_references([image.copy() for image in references])
    assert seen == [2]
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    features.of([noise(3), noise(4), noise(5)])
    assert seen == [2, 2, 1]


def test_mean_cosine_by_hand():
    image = unit(torch.tensor([3.0, 4.0]))
    references = unit(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]]))
    assert mean_cosine(image, references) == pytest.approx((0.6 + 0.8 - 1) / 3, abs=1e-6)


def test_no_references_is_no_score(clip, noise, evaluated):
    scores = clip.score([evaluated(noise(1), [], [noise(2)])])[0]
    assert scores[1].value is None
    assert scores[1].detail == {"references": 0}


def test_progress_counts_images(clip, dino, items):
    for metric in (clip, dino):
        steps = []
        metric.score(items, progress=steps.append)
        assert steps == [2, 1]


def test_ids_tell_model_and_preprocessing(clip, dino, tiny_clip, tmp_path):
    assert clip.id.startswith("tiny@")
    assert "mean=0.4,0.5,0.6" in clip.id
    assert "size=32" in clip.id
    assert "interpolation=bicubic" in clip.id
    assert dino.id.startswith("tiny-vit@")
    assert dino.id.endswith("resize 32 bicubic, crop 28, imagenet")
    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in tiny_clip.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert ClipMetric.load(f"local-dir:{copy}", device="cpu").id == clip.id
    weights = load_file(copy / "open_clip_model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, copy / "open_clip_model.safetensors")
    assert ClipMetric.load(f"local-dir:{copy}", device="cpu").id != clip.id


def test_scores_by_other_weights_of_the_same_name_are_noticed(
    clip, dino, tiny_clip, tiny_dino, tmp_path
):
    for name, metric, folder, weights, changed in (
        ("clip", clip, tiny_clip, "open_clip_model.safetensors", "logit_scale"),
        ("dino", dino, tiny_dino, "model.safetensors", "embeddings.cls_token"),
    ):
        copy = tmp_path / folder.name
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        source = f"local-dir:{copy}" if name == "clip" else str(copy)
        settings = MetricSettings(**{name: source})
        assert identify_metric(name, settings).matches(metric.id)
        tensors = load_file(copy / weights)
        tensors[changed] = tensors[changed] + 1
        save_file(tensors, copy / weights, metadata={"format": "pt"})
        assert not identify_metric(name, settings).matches(metric.id)


def test_open_clips_own_models_are_known_by_their_weights_too(monkeypatch, tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"one")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda published: str(weights))
    one = shown_name("ViT-B-32-quickgelu:openai")
    assert one.startswith("ViT-B-32-quickgelu:openai@7692c3ad3540")  # sha256 of b"one"
    assert shown_name(f"ViT-B-32:{weights}") == "ViT-B-32:model.pt@7692c3ad3540"
    weights.write_bytes(b"two!")
    assert shown_name("ViT-B-32-quickgelu:openai") != one


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ViT-B-32-quickgelu", "names no weights"),
        ("ViT-B-32:nowhere.pt", "no such file; open_clip knows of ViT-B-32: openai"),
        ("ViT-B-33:openai", "cannot be loaded"),
        ("local-dir:nowhere", "no open_clip_config.json"),
    ],
)
def test_refuses_clip_models_that_are_not_there(source, said):
    with pytest.raises(JudgeError, match=said):
        ClipMetric.load(source, device="cpu")


def test_refuses_clip_without_safetensors(tiny_clip, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes(
        (tiny_clip / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(JudgeError, match=r"no \*\.safetensors"):
        ClipMetric.load(f"local-dir:{tmp_path}", device="cpu")


def test_refuses_a_dino_that_is_no_vit(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JudgeError, match="'bert'; DINO is a 'vit'"):
        DinoMetric.load(str(tmp_path), device="cpu")


def test_refuses_dino_weights_that_lack_keys(tiny_dino, tmp_path):
    for path in tiny_dino.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.cls_token"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JudgeError, match=r"lack .*cls_token"):
        DinoMetric.load(str(tmp_path), device="cpu")
