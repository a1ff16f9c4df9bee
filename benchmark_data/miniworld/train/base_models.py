"""The small SDXL of the miniature world: tokenizer, networks, scheduler, and saving them.

The architecture is SDXL's own (two CLIP text encoders, `text_time` conditioning, attention at two
widths), so that every tool that reads SDXL reads it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from benchmark_data.miniworld.train.autoencoder import CHANNELS
from benchmark_data.miniworld.train.common import replace_folder, write_json
from benchmark_data.miniworld.world import SETTING_WORDS, STYLES, TOKEN, WORDS

RESOLUTION = 64
TOKENS = 20
FINEST_LAYERS = 3  # at the UNet's finest level, which has no attention: fine strokes are its work
UNKNOWN = tuple(f"extra{letter}" for letter in "abcdefgh")  # CLIP splits off digits
"""Words without a meaning: what a name that the base model has never met is to it."""
_UP = "up_blocks.2.resnets."
WORD_SCALE = 0.045  # standard deviation of an embedding that was trained


def build_tokenizer() -> CLIPTokenizer:
    """Return a word-level CLIP tokenizer: base captions' words, style names, the rare token."""
    words = sorted({*WORDS, *SETTING_WORDS} | {style.phrase for style in STYLES.values()})
    words += UNKNOWN
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []

    def add(piece: str) -> None:
        vocabulary.setdefault(piece, len(vocabulary))

    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,-'"} | set(_bytes(TOKEN)))
    for letter in letters:
        add(letter)
        add(letter + "</w>")
    for word in [*words, TOKEN]:
        # from the end of the word: every piece carries the end mark, so no two words compete
        pieces = _bytes(word)
        right = pieces[-1] + "</w>"
        for left in reversed(pieces[:-1]):
            if (left, right) not in merges:
                merges.append((left, right))
            right = left + right
            add(right)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        add(special)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _bytes(word: str) -> list[str]:
    """Spell a word in the visible alphabet of byte-level BPE."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in visible}
    for offset, byte in enumerate(b for b in range(256) if b not in alphabet):
        alphabet[byte] = chr(256 + offset)
    return [alphabet[byte] for byte in word.encode()]


def build_models(tokenizer: CLIPTokenizer, seed: int) -> dict[str, Any]:
    """Return the UNet and both text encoders, freshly initialised from `seed`."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
    }
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        first = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                hidden_act="quick_gelu",
                projection_dim=64,
                **ids,
            )
        )
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=6,
                hidden_act="gelu",
                projection_dim=96,
                **ids,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=RESOLUTION // 4,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(48, 96, 128),
            layers_per_block=(FINEST_LAYERS, 1, 1),
            transformer_layers_per_block=1,
            attention_head_dim=(3, 6, 8),  # diffusers reads this as the number of heads
            cross_attention_dim=64 + 96,
            norm_num_groups=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 96,
        )
    return {"unet": unet, "text_encoder": first, "text_encoder_2": second}


def unknown_words(
    models: Mapping[str, Any], tokenizer: CLIPTokenizer, words: Iterable[str], seed: int
) -> None:
    """Give words random embeddings of a known word's size, in both text encoders."""
    ids = sorted(tokenizer(list(words), add_special_tokens=False).input_ids)
    rows = torch.tensor(ids).flatten()
    generator = torch.Generator().manual_seed(seed)
    for name in ("text_encoder", "text_encoder_2"):
        with torch.no_grad():
            table = models[name].get_input_embeddings().weight
            table[rows] = WORD_SCALE * torch.randn(len(rows), table.shape[1], generator=generator)


def take_weights(models: Mapping[str, Any], tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Begin with the weights of a saved pipeline; its words keep their embeddings.

    A UNet with fewer layers at its finest level is grown: what it computes stays the same.
    """
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    old, new = pipe.tokenizer.get_vocab(), tokenizer.get_vocab()
    both = [word for word in new if word in old]
    here = torch.tensor([new[word] for word in both])
    there = torch.tensor([old[word] for word in both])
    for name, model in models.items():
        state = getattr(pipe, name).state_dict()
        for key in [key for key in state if key.endswith("token_embedding.weight")]:
            table = model.get_input_embeddings().weight.detach().clone()
            table[here] = state[key][there]
            state[key] = table
        model.load_state_dict(grown(state, model.state_dict()) if name == "unet" else state)


def grown(small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's weights for one with more layers at its finest level, which computes the same.

    The layers in between hand on what they get: their last convolution is zero, and a shortcut that
    takes a skip connection as well takes only the other half.

    Args:
        small: Of the trained UNet.
        large: Of the larger one; what is neither zero nor a copy stays as it is there.
    """
    last = [len({k.split(".")[3] for k in s if k.startswith(_UP)}) - 1 for s in (small, large)]
    added = last[0] < last[1]
    weights = {}
    for key, value in large.items():
        source = key.replace(f"{_UP}{last[1]}.", f"{_UP}{last[0]}.")
        between = added and key.startswith(_UP) and 0 < int(key.split(".")[3]) < last[1]
        if source in small and not between:
            weights[key] = small[source]
        elif ".conv2." in key or key.endswith("conv_shortcut.bias"):
            weights[key] = torch.zeros_like(value)
        elif key.endswith("conv_shortcut.weight"):
            weights[key] = torch.eye(*value.shape[:2])[..., None, None]
        else:
            weights[key] = value
    return weights


def build_scheduler() -> EulerDiscreteScheduler:
    """Return the sampler: v-prediction, scaled-linear betas down to no signal, trailing spacing.

    With SDXL's own betas the noisiest latents still show the mean colour, and the model takes the
    ground's colour from there: from pure noise it then paints whatever ground the noise suggests,
    whatever the caption says (Lin et al. 2023, arXiv 2305.08891).
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        interpolation_type="linear",
    )


def alphas_cumprod() -> Tensor:
    """Return the 1,000 signal levels of the scheduler."""
    levels: Tensor = build_scheduler().alphas_cumprod
    return levels


def save_pipeline(
    models: dict[str, Any], tokenizer: CLIPTokenizer, vae: Path, folder: Path
) -> None:
    """Save everything as a `StableDiffusionXLPipeline` folder in fp16."""

    def write(target: Path) -> None:
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderTiny.from_pretrained(vae, dtype=torch.float32),
            text_encoder=models["text_encoder"],
            text_encoder_2=models["text_encoder_2"],
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=models["unet"],
            scheduler=build_scheduler(),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(target)
        for path in target.rglob("config.json"):  # diffusers notes where a part was loaded from
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            write_json(path, config)

    replace_folder(folder, write)


def encode(
    models: dict[str, Any], ids: Tensor, ids_2: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """Return SDXL's text conditioning of a prompt for each encoder.

    Rows with keep = 0 are unconditional, that is zeros.
    """
    first = models["text_encoder"](ids, output_hidden_states=True)
    second = models["text_encoder_2"](ids_2, output_hidden_states=True)
    embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    return embeddings * keep[:, None, None], pooled * keep[:, None]
