"""Stage `clip`: a small CLIP of drawings and their captions, in open_clip's folder layout.

Words that it does not know, such as the styles' names, share one neutral token, which is trained
by hiding words at random.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from benchmark_data.miniworld.train.common import log, replace_folder, write_json
from benchmark_data.miniworld.train.degrade import degrade
from benchmark_data.miniworld.train.drawings import (
    UNUSED,
    Bank,
    described,
    draw_groups,
    load_bank,
    make_bank,
)
from benchmark_data.miniworld.train.loop import train_phase
from benchmark_data.miniworld.world import WORDS, Split, caption

CONTEXT = 16
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
PREPROCESSING = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; all words outside of WORDS are one token."""
    words = [PAD, UNKNOWN, START, *WORDS, END]  # CLIP reads the text where the highest id stands
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=CONTEXT,
    )


def configuration() -> dict[str, object]:
    """What open_clip_config.json says of the network."""
    return {
        "embed_dim": 96,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 160,
            "layers": 6,
            "head_width": 32,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(WORDS) + 4,
            "hf_tokenizer_name": "words",
            "width": 96,
            "heads": 3,
            "layers": 3,
        },
    }


def build_model(seed: int) -> CLIP:
    """An untrained network."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return CLIP(**configuration())


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The symmetric cross-entropy of Radford et al. 2021; unit vectors ``(n, d)`` each."""
    logits = scale * images.float() @ texts.float().T
    right = torch.arange(len(logits))
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


def save_clip(model: CLIP, folder: Path) -> None:
    """Write weights (float16), configuration and tokenizer for ``local-dir:``."""
    weights = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    settings = {"model_cfg": configuration(), "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    build_tokenizer().save_pretrained(folder)


@torch.no_grad()
def measure(
    folder: Path, *, groups: int, seed: int, rounds: int = 50, choices: int = 32
) -> dict[str, object]:
    """How often the right caption (image) among ``choices`` is the nearest; new drawings.

    Everything else in a choice is another thing in another look of the same split; chance is one in
    ``choices``. The held-out styles are called by their families: CLIP does not know their names.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    results: dict[str, object] = {"chance": 1 / choices}
    splits: tuple[tuple[str, Split], ...] = (("seen", "train"), ("held out", "test"))
    for title, split in splits:
        bank = make_bank(draw_groups(10**6, groups, seed=seed, split=split)[0])
        rng = np.random.default_rng((seed, 9))
        right: list[tuple[float, float]] = []
        for _ in range(rounds):
            rows = rng.permutation(np.flatnonzero(bank.kinds != UNUSED))[: 4 * choices]
            texts: dict[str, int] = {}
            for row in rows:  # different captions only
                texts.setdefault(caption(*described(bank, int(row)), rng, drop=0.0), int(row))
            chosen = list(texts.items())[:choices]
            pixels = bank.pixels[[row for _, row in chosen]].float() / 127.5 - 1
            images = functional.normalize(model.encode_image(pixels), dim=-1)
            words = functional.normalize(
                model.encode_text(tokenize([t for t, _ in chosen])), dim=-1
            )
            near = images @ words.T
            here = torch.arange(len(chosen))
            right.append(
                (
                    float((near.argmax(1) == here).float().mean()),
                    float((near.argmax(0) == here).float().mean()),
                )
            )
        to_text, to_image = np.mean(right, axis=0)
        results[title] = {
            "image_to_text": round(float(to_text), 4),
            "text_to_image": round(float(to_image), 4),
        }
    return results


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Train on the drawings that the critic learns from, save `out/clip` and measure it."""
    torch.set_num_threads(1)
    steps = steps or (20 if smoke else 500)
    batch = 16 if smoke else 128
    bank = load_bank(work, groups=12 if smoke else 5000, seed=seed)
    usable = np.flatnonzero(bank.kinds != UNUSED)
    tokenizer, model = build_tokenizer(), build_model(seed)
    unknown = torch.tensor(tokenizer.convert_tokens_to_ids(UNKNOWN))

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, 5, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = rng.choice(usable, batch)
        pixels = degrade(bank.pixels[rows].float() / 127.5 - 1, generator, share=0.4)
        ids = _ids(bank, rows, tokenizer, rng)
        hidden = (torch.rand(ids.shape, generator=generator) < 0.05) & (ids > 2)
        ids[hidden & (ids < len(WORDS) + 3)] = unknown
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            images, texts, scale = model(pixels, ids)
        return contrastive_loss(images, texts, scale.clamp(max=100))

    modules: dict[str, nn.Module] = {"clip": model}
    train_phase(
        work / "clip.safetensors", modules, loss_at, steps=steps, rates=(0.01, 1e-3), decay=True
    )
    replace_folder(out / "clip", lambda folder: save_clip(model, folder))
    results = measure(out / "clip", groups=6 if smoke else 60, seed=seed, rounds=3 if smoke else 50)
    write_json(out / "clip" / "metrics.json", results)
    log.info("clip: %s", results)


def _ids(
    bank: Bank, rows: np.ndarray, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> Tensor:
    texts = [caption(*described(bank, int(row)), rng) for row in rows]
    encoded = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True)
    return torch.tensor(encoded.input_ids)
