"""LLaVA-Critic, and any LLaVA-OneVision model, as the judge of the published protocol.

The prompt is built here (template qwen_1_5, images inline; transformers' own chat template has
neither), and the answer is read off the logits of its last position. The features of an image and
the keys and values of a prefix (the question up to the test image, the same for all images that are
compared with one reference) are computed once and reused.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mars2.judges import JudgeError, Question, Verdict, read_answer
from mars2.judges.images import image_digest, prepare
from mars2.judges.llava_checkpoint import Checkpoint, load_checkpoint
from mars2.judges.prompts import IMAGE_MARK, NEW_TOKENS, NO_WORDS, YES_WORDS, Form
from mars2.judges.recent import Recent
from mars2.judges.sources import find_model

PUBLISHED = "lmms-lab/llava-critic-7b"
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

Layout = Literal["anyres", "pad"]
"""How two images are shown: each as tiles of its own size, the published protocol's way; or each as
one padded square, which is what the model saw in training when there were several images."""

IMAGES_AT_ONCE = 8
"""Images that go through the vision tower together."""


def chat_string(question: str) -> str:
    """Return the whole prompt of a question: conversation template qwen_1_5, system block included.

    The two `<image>` marks stay; the features of the images take their places.
    """
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@dataclass(frozen=True)
class FirstToken:
    """What the logits of the first token of an answer say.

    Attributes:
        answer: True or False if the most likely token is a yes or a no, else None.
        p_yes: Probability of all yes tokens, against that of all yes and no tokens; ``[0, 1]``.
        margin: Logit of the best yes less that of the best no.
    """

    answer: bool | None
    p_yes: float
    margin: float


def read_first_token(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> FirstToken:
    """Return what logits (vocabulary,) say, given the ids of the yes and of the no tokens."""
    logits = logits.float()
    best = int(logits.argmax())
    yes_logits, no_logits = logits[list(yes)], logits[list(no)]
    return FirstToken(
        answer=True if best in yes else False if best in no else None,
        p_yes=float(torch.sigmoid(yes_logits.logsumexp(0) - no_logits.logsumexp(0))),
        margin=float(yes_logits.max() - no_logits.max()),
    )


@dataclass(frozen=True)
class _Prefix:
    cache: DynamicCache
    positions: int


class LlavaOnevisionJudge:
    """Asks a LLaVA-OneVision model.

    Args:
        checkpoint: The model and what belongs to it.
        name: Name and revision.
        layout: How two images are shown.
        device: Where it computes.
        published: Whether this is the published judge in its published setting.
        batch_positions: Most positions (text and image tokens) computed at once.
        kept_positions: Most positions whose image features, and whose keys and values, are kept.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        layout: Layout = "anyres",
        device: str = "cpu",
        published: bool = False,
        batch_positions: int = 16384,
        kept_positions: int = 32768,
    ) -> None:
        self.model = checkpoint.model.to(device)
        self.layout = layout
        self.published = published
        self.id = f"{name} {layout} {str(self.model.dtype).removeprefix('torch.')}"
        self._images = checkpoint.image_processor
        self._tokenizer = checkpoint.tokenizer
        self._stop = self._token("<|im_end|>")
        self._token("<|im_start|>")
        self._yes = self._words(YES_WORDS)
        self._no = self._words(NO_WORDS)
        self._batch_positions = batch_positions
        self._features: Recent[Tensor] = Recent(kept_positions, len)
        self._prefixes: Recent[_Prefix] = Recent(kept_positions, lambda kept: kept.positions)

    @classmethod
    def load(
        cls, source: str, *, dtype: str | None = None, device: str = "auto", layout: str = "anyres"
    ) -> "LlavaOnevisionJudge":
        """Return the judge whose weights lie in a folder or on the hub.

        Args:
            source: Folder in transformers' or LLaVA-NeXT's layout, hub id, or hub id@revision.
            dtype: Name in `DTYPES`; None: float16 on a GPU, as published, else float32.
            device: As torch names it; "auto": a GPU if there is one.
            layout: "anyres" or "pad".

        Raises:
            JudgeError: Something of this is not there or does not fit.
        """
        if layout not in get_args(Layout):
            raise JudgeError(f"layout is {layout!r}; give one of {', '.join(get_args(Layout))}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None:
            dtype = "float32" if device == "cpu" else "float16"
        if dtype not in DTYPES:
            raise JudgeError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
        found = find_model(source)
        return cls(
            load_checkpoint(found.folder, DTYPES[dtype]),
            name=found.id,
            layout="pad" if layout == "pad" else "anyres",
            device=device,
            published=(found.name, found.from_hub, layout, dtype)
            == (PUBLISHED, True, "anyres", "float16"),
        )

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in their order.

        A question is answered by its most likely first token if that is a yes or a no; otherwise
        text is generated and read. `p_yes` and `margin` are given where the first token decides.
        """
        shown = {id(image): image for q in questions for image in (q.reference, q.test)}
        digests = {key: image_digest(image) for key, image in shown.items()}
        groups: dict[tuple[str, str], list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault((question.text, digests[id(question.reference)]), []).append(number)
        verdicts: dict[int, Verdict] = {}
        with torch.inference_mode():
            features = self._see({digests[key]: image for key, image in shown.items()})
            for (text, reference), numbers in groups.items():
                before, between, after = chat_string(text).split(IMAGE_MARK)
                prefix = self._read_prefix(before, reference, features[reference], between)
                ending = self._embed(after)
                for batch in self._batches(
                    {
                        number: torch.cat([features[digests[id(questions[number].test)]], ending])
                        for number in numbers
                    },
                    prefix,
                ):
                    forms = {number: questions[number].template.form for number in batch}
                    verdicts |= self._answer(batch, prefix, forms)
        return [verdicts[number] for number in range(len(questions))]

    def _see(self, images: Mapping[str, Image.Image]) -> dict[str, Tensor]:
        """Return the features (positions, hidden) of images by digest."""
        known = {digest: self._features.get(digest) for digest in images}
        new = [digest for digest, features in known.items() if features is None]
        features = {digest: kept for digest, kept in known.items() if kept is not None}
        for start in range(0, len(new), IMAGES_AT_ONCE):
            part = new[start : start + IMAGES_AT_ONCE]
            encoded = self._encode([prepare(images[digest]) for digest in part])
            for digest, feature in zip(part, encoded, strict=True):
                features[digest] = feature
                self._features.put(digest, feature)
        return features

    def _encode(self, images: list[Image.Image]) -> list[Tensor]:
        """Return what the language model gets of each image, (positions, hidden)."""
        if self.layout == "pad":
            # transformers pads the images of one nested list, if they are two or more
            inputs = self._images([images + images[:1]], return_tensors="pt")
        else:
            inputs = self._images(images, return_tensors="pt")
        output = self.model.get_image_features(
            inputs["pixel_values"].to(self.model.device, self.model.dtype),
            inputs["image_sizes"],
            batch_num_images=inputs["batch_num_images"],
            vision_aspect_ratio=self.model.config.vision_aspect_ratio,
        )
        return list(output.pooler_output[: len(images)])

    def _embed(self, text: str) -> Tensor:
        """Return the embeddings (tokens, hidden) of a piece of the prompt."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        embeddings: Tensor = self.model.get_input_embeddings()(
            torch.tensor(ids, device=self.model.device)
        )
        return embeddings

    def _read_prefix(self, before: str, digest: str, features: Tensor, between: str) -> _Prefix:
        """Return keys and values of all that stands before the test image."""
        key = (before, digest, between)
        prefix = self._prefixes.get(key)
        if prefix is None:
            embeddings = torch.cat([self._embed(before), features, self._embed(between)])
            cache = DynamicCache(config=self.model.config.text_config)
            self.model.model(inputs_embeds=embeddings[None], past_key_values=cache)
            prefix = _Prefix(cache, len(embeddings))
            self._prefixes.put(key, prefix)
        return prefix

    def _batches(
        self, endings: Mapping[int, Tensor], prefix: _Prefix
    ) -> Iterator[dict[int, Tensor]]:
        """Split rows so that each batch, padded, has at most `batch_positions` positions."""
        batch: dict[int, Tensor] = {}
        longest = 0
        for number, ending in endings.items():
            longest = max(longest, len(ending))
            if batch and (len(batch) + 1) * (prefix.positions + longest) > self._batch_positions:
                yield batch
                batch, longest = {}, len(ending)
            batch[number] = ending
        yield batch

    def _answer(
        self, endings: Mapping[int, Tensor], prefix: _Prefix, forms: Mapping[int, Form]
    ) -> dict[int, Verdict]:
        logits = self._first_logits(list(endings.values()), prefix)
        verdicts = {}
        for (number, ending), row in zip(endings.items(), logits, strict=True):
            first = read_first_token(row, self._yes, self._no)
            form = forms[number]
            if not math.isfinite(first.p_yes):
                verdicts[number] = Verdict(None, None, None, "(the logits are not finite)")
            elif form == "short" and first.answer is not None:
                raw = self._tokenizer.decode([int(row.argmax())], skip_special_tokens=False)
                verdicts[number] = Verdict(first.answer, first.p_yes, first.margin, raw)
            else:
                verdicts[number] = _read_text(self._generate(ending, prefix, form), first, form)
        return verdicts

    def _first_logits(self, endings: Sequence[Tensor], prefix: _Prefix) -> Tensor:
        """Return the logits (rows, vocabulary) of the first token of each answer.

        Rows are padded on the right, where a causal model does not look.
        """
        cache = copy.deepcopy(prefix.cache)
        cache.batch_repeat_interleave(len(endings))
        hidden = self.model.model(
            inputs_embeds=pad_sequence(list(endings), batch_first=True), past_key_values=cache
        ).last_hidden_state  # (rows, longest, hidden)
        rows = torch.arange(len(endings))
        last = torch.tensor([len(ending) - 1 for ending in endings])
        logits: Tensor = self.model.lm_head(hidden[rows, last])
        return logits

    def _generate(self, ending: Tensor, prefix: _Prefix, form: Form) -> str:
        """Return the answer in words, each token the most likely one."""
        cache = copy.deepcopy(prefix.cache)
        ids: list[int] = []
        inputs = ending[None]
        while len(ids) < NEW_TOKENS[form]:
            logits = self.model(
                inputs_embeds=inputs, past_key_values=cache, logits_to_keep=1
            ).logits
            best = int(logits[0, -1].argmax())
            if best == self._stop:
                break
            ids.append(best)
            inputs = self.model.get_input_embeddings()(
                torch.tensor([[best]], device=self.model.device)
            )
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _token(self, text: str) -> int:
        token: int | None = self._tokenizer.token_to_id(text)
        if token is None:
            raise JudgeError(
                f"the tokenizer of {self.id} has no token {text}, which the prompt needs"
            )
        return token

    def _words(self, words: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of those words, with or without a space before, that are one token."""
        encoded = [
            self._tokenizer.encode(space + word, add_special_tokens=False).ids
            for word in words
            for space in ("", " ")
        ]
        tokens = tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
        if not tokens:
            raise JudgeError(f"the tokenizer of {self.id} has no single token for {words[0]!r}")
        return tokens


def _read_text(text: str, first: FirstToken, form: Form) -> Verdict:
    """Return the verdict of an answer in words: its leading yes or no, or its leading score."""
    answer = read_answer(text, form)
    if form == "score" or answer is None or first.answer is None:
        return Verdict(answer, None, None, text)
    return Verdict(answer, first.p_yes, first.margin, text)
