"""LLaVA-Critic, and any LLaVA-OneVision model, as the judge of the published protocol.

The prompt is built here (template qwen_1_5, images inline; transformers' own chat template has
neither), and the answer is read off the logits of its last position. The features of an image and
the keys and values of a prefix (the question up to the test image, the same for all images that are
compared with one reference) are computed once and reused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mars2.judges import JudgeError, Question, Verdict
from mars2.judges.answers import read_verdict, token_id, word_ids
from mars2.judges.images import image_digest, prepare
from mars2.judges.llava_checkpoint import Checkpoint, describe, load_checkpoint
from mars2.judges.prefix import Prefix, cache_argument
from mars2.judges.prompts import IMAGE_MARK, NEW_TOKENS, NO_WORDS, YES_WORDS, Form
from mars2.judges.recent import IMAGES_AT_ONCE, Recent
from mars2.judges.room import KEPT_FEATURES, halving, memory_need, require_room
from mars2.judges.sources import ModelSource, find_model
from mars2.judges.weights import DTYPES, count_parameters, resolve, stored_weights

PUBLISHED = "lmms-lab/llava-critic-7b"

Layout = Literal["anyres", "pad"]
"""How two images are shown: each as tiles of its own size, the published protocol's way; or each as
one padded square, which is what the model saw in training when there were several images."""


def check_layout(layout: str) -> None:
    """Check that a layout is one of `Layout`.

    Raises:
        JudgeError: It is none.
    """
    if layout not in get_args(Layout):
        raise JudgeError(f"layout is {layout!r}; give one of {', '.join(get_args(Layout))}")


def chat_string(question: str) -> str:
    """Return the whole prompt of a question: conversation template qwen_1_5, system block included.

    The two `<image>` marks stay; the features of the images take their places.
    """
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def judge_id(name: str, layout: str, dtype: str) -> str:
    """Return the id of a judge, given its model's name and revision."""
    return f"{name} {layout} {dtype}"


def is_published(found: ModelSource, layout: str, dtype: str) -> bool:
    """Return whether a model is the published judge and asked in the published setting."""
    return (found.name, found.from_hub, layout, dtype) == (PUBLISHED, True, "anyres", "float16")


@dataclass(frozen=True)
class _Row:
    number: int
    ending: Tensor  # (positions, hidden): the test image and what follows
    form: Form


class LlavaOnevisionJudge:
    """Asks a LLaVA-OneVision model.

    Args:
        checkpoint: The model and what belongs to it.
        name: Name and revision.
        layout: How two images are shown.
        device: Where it computes.
        published: Whether this is the published judge in its published setting.
        batch_positions: Most positions (text and image tokens) computed at once.
        kept_features: Most positions whose image features are kept.
        kept_positions: Most positions whose keys and values are kept.
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
        kept_features: int = KEPT_FEATURES,
        kept_positions: int = 32768,
    ) -> None:
        self.model = checkpoint.model.to(device)
        self.layout = layout
        self.published = published
        self.id = judge_id(name, layout, str(self.model.dtype).removeprefix("torch."))
        self._images = checkpoint.image_processor
        self._tokenizer = checkpoint.tokenizer
        self._stop = token_id(self._tokenizer, "<|im_end|>", self.id)
        token_id(self._tokenizer, "<|im_start|>", self.id)
        self._yes = word_ids(self._tokenizer, YES_WORDS, self.id)
        self._no = word_ids(self._tokenizer, NO_WORDS, self.id)
        self._cache_argument = cache_argument(self.model)
        self._batch_positions = batch_positions
        self._features: Recent[Tensor] = Recent(kept_features, len)
        self._prefixes: Recent[Prefix] = Recent(kept_positions, lambda kept: kept.positions)

    @classmethod
    def load(
        cls, source: str, *, dtype: str | None = None, device: str = "auto", layout: str = "anyres"
    ) -> "LlavaOnevisionJudge":
        """Return the judge whose weights lie in a folder or on the hub.

        Args:
            source: Folder in transformers' or LLaVA-NeXT's layout, hub id, or hub id@revision.
            dtype: float32, float16 or bfloat16; None: float16 on a GPU, as published, else float32.
            device: As torch names it; "auto": a GPU if there is one.
            layout: "anyres" or "pad".

        Raises:
            JudgeError: Something of this is not there or does not fit.
        """
        check_layout(layout)
        dtype, device = resolve("llava_onevision", dtype, device)
        found = find_model(source)
        parameters = count_parameters(stored_weights(found.folder))
        require_room(
            memory_need(describe(found.folder).config, parameters, DTYPES[dtype]),
            name=found.id,
            dtype=dtype,
            device=device,
        )
        return cls(
            load_checkpoint(found.folder, DTYPES[dtype]),
            name=found.id,
            layout="pad" if layout == "pad" else "anyres",
            device=device,
            published=is_published(found, layout, dtype),
        )

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in their order.

        A question is answered by its most likely first token if that is a yes or a no; otherwise
        text is generated and read. `p_yes` and `margin` are given where the first token decides.
        """
        verdicts = dict(self.verdicts(questions))
        return [verdicts[number] for number in range(len(questions))]

    @torch.inference_mode()
    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Give the number and the verdict of each question, a batch after the other."""
        shown = {id(image): image for q in questions for image in (q.reference, q.test)}
        digests = {key: image_digest(image) for key, image in shown.items()}
        groups: dict[tuple[str, str], list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault((question.text, digests[id(question.reference)]), []).append(number)
        features = self._features.of(
            {digests[key]: image for key, image in shown.items()},
            partial(halving, self._encode),
            IMAGES_AT_ONCE,
        )
        for (text, reference), numbers in groups.items():
            before, between, after = chat_string(text).split(IMAGE_MARK)
            prefix = self._read_prefix(before, reference, features[reference], between)
            ending = self._embed(after)
            tests = {number: features[digests[id(questions[number].test)]] for number in numbers}
            lengths = {number: len(test) + len(ending) for number, test in tests.items()}
            for batch in self._batches(lengths, prefix):
                rows = [
                    _Row(
                        number,
                        torch.cat([tests[number], ending]),
                        questions[number].template.form,
                    )
                    for number in batch
                ]
                yield from self._answer_in_room(rows, prefix)

    def _encode(self, images: list[Image.Image]) -> list[Tensor]:
        """Return what the language model gets of each image, (positions, hidden)."""
        images = [prepare(image) for image in images]
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

    def _read_prefix(self, before: str, digest: str, features: Tensor, between: str) -> Prefix:
        """Return keys and values of all that stands before the test image."""
        key = (before, digest, between)
        prefix = self._prefixes.get(key)
        if prefix is None:
            embeddings = torch.cat([self._embed(before), features, self._embed(between)])

            def read(rows: list[Tensor]) -> list[DynamicCache]:
                cache = DynamicCache(config=self.model.config.text_config)
                self.model.model(inputs_embeds=torch.stack(rows), **{self._cache_argument: cache})
                return [cache]

            [cache] = halving(read, [embeddings], failed=lambda _: self._drop())
            prefix = Prefix(cache, len(embeddings))
            self._prefixes.put(key, prefix)
        return prefix

    def _batches(self, lengths: Mapping[int, int], prefix: Prefix) -> Iterator[list[int]]:
        """Split rows so that each batch, padded, has at most `batch_positions` positions.

        Rows of like length go together, so that little of a batch is padding.

        Args:
            lengths: Positions after the prefix, by the row's number.
            prefix: What all rows begin with.
        """
        batch: list[int] = []
        for number in sorted(lengths, key=lambda number: lengths[number]):  # the last is longest
            positions = (len(batch) + 1) * (prefix.positions + lengths[number])
            if batch and positions > self._batch_positions:
                yield batch
                batch = []
            batch.append(number)
        yield batch

    def _answer_in_room(self, rows: list[_Row], prefix: Prefix) -> Iterator[tuple[int, Verdict]]:
        """Give numbers and verdicts; batches that memory does not hold are halved, and stay so.

        Raises:
            JudgeError: It does not hold a single question.
        """

        def shrink(count: int) -> None:
            longest = max(len(row.ending) for row in rows)
            self._batch_positions = count // 2 * (prefix.positions + longest)
            self._drop()

        verdicts = halving(lambda part: self._answer(part, prefix), rows, failed=shrink)
        return zip([row.number for row in rows], verdicts, strict=True)

    def _drop(self) -> None:
        """Keep nothing of earlier images and references."""
        self._features.clear()
        self._prefixes.clear()

    def _answer(self, rows: Sequence[_Row], prefix: Prefix) -> list[Verdict]:
        logits = self._first_logits([row.ending for row in rows], prefix)
        return [
            read_verdict(
                of_row,
                row.form,
                yes=self._yes,
                no=self._no,
                tokenizer=self._tokenizer,
                dtype=self.model.dtype,
                generate=partial(self._generate, row.ending, prefix, row.form),
            )
            for row, of_row in zip(rows, logits, strict=True)
        ]

    def _first_logits(self, endings: Sequence[Tensor], prefix: Prefix) -> Tensor:
        """Return the logits (rows, vocabulary) of the first token of each answer.

        Rows are padded on the right, where a causal model does not look.
        """
        padded = pad_sequence(list(endings), batch_first=True)  # (rows, longest, hidden)
        hidden = self.model.model(
            inputs_embeds=padded,
            attention_mask=prefix.mask(padded.shape[1]),
            **{self._cache_argument: prefix.rows(len(endings))},
        ).last_hidden_state  # (rows, longest, hidden)
        rows = torch.arange(len(endings))
        last = torch.tensor([len(ending) - 1 for ending in endings])
        logits: Tensor = self.model.lm_head(hidden[rows, last])
        return logits

    def _generate(self, ending: Tensor, prefix: Prefix, form: Form) -> str:
        """Return the answer in words, each token the most likely one."""
        cache = prefix.rows(1)
        ids: list[int] = []
        inputs = ending[None]
        while len(ids) < NEW_TOKENS[form]:
            logits = self.model(
                inputs_embeds=inputs, logits_to_keep=1, **{self._cache_argument: cache}
            ).logits
            best = int(logits[0, -1].argmax())
            if best == self._stop:
                break
            ids.append(best)
            inputs = self.model.get_input_embeddings()(
                torch.tensor([[best]], device=self.model.device)
            )
        return self._tokenizer.decode(ids, skip_special_tokens=False)
