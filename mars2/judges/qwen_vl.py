"""Qwen2.5-VL and Qwen3-VL as judges: the protocol's questions, another model.

The two images stand inline in the question, and are seen at their own size, as the model's image
processor cuts them into patches. As in `llava_onevision`, an image's features and the keys and
values of a prefix (the question up to the test image) are computed once; what follows is computed
for many test images together, each with positions of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    DynamicCache,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from mars2.judges import JudgeError, Question, Verdict
from mars2.judges.answers import read_verdict, token_id, word_ids
from mars2.judges.images import image_digest, prepare
from mars2.judges.llava_checkpoint import load_tokenizer
from mars2.judges.prefix import Prefix, cache_argument
from mars2.judges.prompts import IMAGE_MARK, NEW_TOKENS, NO_WORDS, YES_WORDS, Form
from mars2.judges.recent import IMAGES_AT_ONCE, Recent
from mars2.judges.room import KEPT_FEATURES, halving, memory_need, require_room
from mars2.judges.sources import architectures_of, find_model, read_config
from mars2.judges.weights import (
    DTYPES,
    count_parameters,
    load_strictly,
    refuse_quantised,
    resolve,
    stored_weights,
)

ARCHITECTURES: Mapping[str, Any] = {
    "Qwen2_5_VLForConditionalGeneration": Qwen2_5_VLForConditionalGeneration,
    "Qwen3VLForConditionalGeneration": Qwen3VLForConditionalGeneration,
}
SYSTEM: Mapping[str, str] = {
    "Qwen2_5_VLForConditionalGeneration": "You are a helpful assistant.",
    "Qwen3VLForConditionalGeneration": "",
}
"""What each model's own chat template begins with."""
IMAGE_TOKEN = "<|image_pad|>"


def chat_string(question: str, system: str) -> str:
    """Return the whole prompt of a question; the two `<image>` marks stay."""
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{first}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def check_layout(layout: str) -> None:
    """Check that a layout is the default of every judge: these models have one.

    Raises:
        JudgeError: It is another.
    """
    if layout != "anyres":
        raise JudgeError(f"layout is {layout!r}; a Qwen-VL judge has one way to see images")


def judge_id(name: str, dtype: str) -> str:
    """Return the id of a judge, given its model's name and revision."""
    return f"{name} {dtype}"


def qwen_config(folder: Path) -> tuple[str, Any]:
    """Return the architecture in a folder, and its config.

    Raises:
        JudgeError: It is another one, or its config.json is missing or broken.
    """
    given = read_config(folder)
    named = architectures_of(given)
    for architecture in ARCHITECTURES:
        if architecture in named:
            refuse_quantised(folder, given)
            try:
                return architecture, AutoConfig.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
                raise JudgeError(
                    f"{folder / 'config.json'} cannot be understood: {error}"
                ) from error
    raise JudgeError(
        f"{folder} holds {', '.join(named) or 'no named architecture'}, another model "
        f"than this judge computes: it reads {' and '.join(ARCHITECTURES)}"
    )


@dataclass(frozen=True)
class _Seen:
    """What the language model gets of an image."""

    grid: Tensor  # (1, 3)
    features: Tensor  # (positions, hidden)
    deep: tuple[Tensor, ...]  # Qwen3-VL's, for its first layers: (positions, hidden) each


@dataclass(frozen=True)
class _Row:
    """A question in tokens; its first `start` positions are the same for all test images."""

    number: int
    question: Question
    test: _Seen
    ids: Tensor  # (positions,)
    places: Tensor  # (3, positions)
    start: int


class QwenVlJudge:
    """Asks a Qwen-VL model.

    Args:
        model: One of `ARCHITECTURES`, for inference.
        image_processor: Cuts images into patches.
        tokenizer: With the tokens of the model's prompt.
        name: Name and revision.
        device: Where it computes.
        batch_positions: Most positions (text and image tokens) computed at once.
        kept_features: Most positions whose image features are kept.
        kept_positions: Most positions whose keys and values are kept.
    """

    published = False

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        *,
        name: str,
        device: str = "cpu",
        batch_positions: int = 16384,
        kept_features: int = KEPT_FEATURES,
        kept_positions: int = 32768,
    ) -> None:
        self.model = model.to(device)
        self.id = judge_id(name, str(model.dtype).removeprefix("torch."))
        self._system = SYSTEM[type(model).__name__]
        self._images = image_processor
        self._tokenizer = tokenizer
        self._image_id = token_id(tokenizer, IMAGE_TOKEN, self.id)
        for token in ("<|im_start|>", "<|vision_start|>", "<|vision_end|>"):
            token_id(tokenizer, token, self.id)
        self._yes = word_ids(tokenizer, YES_WORDS, self.id)
        self._no = word_ids(tokenizer, NO_WORDS, self.id)
        self._cache_argument = cache_argument(self.model)
        self._batch_positions = batch_positions
        self._seen: Recent[_Seen] = Recent(kept_features, lambda seen: len(seen.features))
        self._prefixes: Recent[Prefix] = Recent(kept_positions, lambda kept: kept.positions)
        # not the folder's, which may hold a repetition penalty and sampling
        self._end = token_id(tokenizer, "<|im_end|>", self.id)
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self._end, pad_token_id=self._end
        )

    @classmethod
    def load(
        cls, source: str, *, dtype: str | None = None, device: str = "auto", layout: str = "anyres"
    ) -> "QwenVlJudge":
        """Return the judge whose weights lie in a folder or on the hub.

        Args:
            source: Folder, hub id, or hub id@revision.
            dtype: float32, float16 or bfloat16; None: bfloat16 on a GPU, else float32.
            device: As torch names it; "auto": a GPU if there is one.
            layout: "anyres", the default of every judge: these models have one layout.

        Raises:
            JudgeError: Something of this is not there or does not fit.
        """
        check_layout(layout)
        dtype, device = resolve("qwen_vl", dtype, device)
        found = find_model(source)
        architecture, config = qwen_config(found.folder)
        parameters = count_parameters(stored_weights(found.folder))
        need = memory_need(config, parameters, DTYPES[dtype])
        require_room(need, name=found.id, dtype=dtype, device=device)
        model = load_strictly(ARCHITECTURES[architecture], found.folder, DTYPES[dtype])
        return cls(
            model.eval().requires_grad_(False),
            _image_processor(found.folder),
            load_tokenizer(found.folder),
            name=found.id,
            device=device,
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
        seen = self._seen.of(
            {digests[key]: image for key, image in shown.items()},
            partial(halving, self._encode),
            IMAGES_AT_ONCE,
        )
        for (text, reference), numbers in groups.items():
            rows = []
            for number in numbers:
                test = seen[digests[id(questions[number].test)]]
                inputs = self._inputs(text, torch.cat([seen[reference].grid, test.grid]))
                ids, start = inputs["input_ids"][0], self._test_start(inputs)
                places, _ = self.model.model.get_rope_index(**inputs)  # (3, 1, positions)
                rows.append(_Row(number, questions[number], test, ids, places[:, 0], start))
            prefix = self._read_prefix((text, reference), seen[reference], rows[0])
            for batch in self._batches(rows):
                yield from self._answer_in_room(batch, prefix)

    def _read_prefix(self, key: tuple[str, str], reference: _Seen, row: _Row) -> Prefix:
        """Return keys and values of all that stands before the test image, in any of its rows."""
        prefix = self._prefixes.get(key)
        if prefix is None:

            def read(rows: list[Tensor]) -> list[DynamicCache]:
                cache = DynamicCache(config=self.model.config.text_config)
                self.model.model(
                    input_ids=torch.stack(rows),
                    position_ids=row.places[:, None, : row.start],
                    mm_encoder_outputs={"image": _together([reference])},
                    **{self._cache_argument: cache},
                )
                return [cache]

            [cache] = halving(read, [row.ids[: row.start]], failed=lambda _: self._drop())
            prefix = Prefix(cache, row.start)
            self._prefixes.put(key, prefix)
        return prefix

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Split rows so that each batch, padded, has at most `batch_positions` positions.

        Rows of like length go together, so that little of a batch is padding.
        """
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda row: len(row.ids)):  # so the last is the longest
            if batch and (len(batch) + 1) * len(row.ids) > self._batch_positions:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _answer_in_room(self, rows: list[_Row], prefix: Prefix) -> Iterator[tuple[int, Verdict]]:
        """Give numbers and verdicts; batches that memory does not hold are halved, and stay so.

        Raises:
            JudgeError: It does not hold a single question.
        """

        def shrink(count: int) -> None:
            self._batch_positions = count // 2 * max(len(row.ids) for row in rows)
            self._drop()

        verdicts = halving(lambda part: self._answer(part, prefix), rows, failed=shrink)
        return zip([row.number for row in rows], verdicts, strict=True)

    def _drop(self) -> None:
        """Keep nothing of earlier images and references."""
        self._seen.clear()
        self._prefixes.clear()

    def _answer(self, rows: Sequence[_Row], prefix: Prefix) -> list[Verdict]:
        return [
            read_verdict(
                logits,
                row.question.template.form,
                yes=self._yes,
                no=self._no,
                tokenizer=self._tokenizer,
                dtype=self.model.dtype,
                generate=partial(self._generate, row.question, row.question.template.form),
            )
            for row, logits in zip(rows, self._first_logits(rows, prefix), strict=True)
        ]

    def _first_logits(self, rows: Sequence[_Row], prefix: Prefix) -> Tensor:
        """Return the logits (rows, vocabulary) of the first token of each answer.

        Rows are padded on the right, where a causal model does not look.
        """
        own = [row.ids[row.start :] for row in rows]
        ids = pad_sequence(own, batch_first=True, padding_value=self._end)  # (rows, longest)
        places = pad_sequence([row.places[:, row.start :].T for row in rows])  # (longest, rows, 3)
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=prefix.mask(ids.shape[1]),
            position_ids=places.permute(2, 1, 0),
            mm_encoder_outputs={"image": _together([row.test for row in rows])},
            **{self._cache_argument: prefix.rows(len(rows))},
        ).last_hidden_state  # (rows, longest, hidden)
        last = torch.tensor([len(one) - 1 for one in own])
        logits: Tensor = self.model.lm_head(hidden[torch.arange(len(rows)), last])
        return logits

    def _test_start(self, inputs: Mapping[str, Tensor]) -> int:
        """Return where the test image's `<|vision_start|>` stands."""
        begin = token_id(self._tokenizer, "<|vision_start|>", self.id)
        return int((inputs["input_ids"][0] == begin).nonzero()[-1])

    def _encode(self, images: list[Image.Image]) -> list[_Seen]:
        patches, grids = self._cut(images)
        output = self.model.get_image_features(
            patches.to(self.model.device, self.model.dtype),
            grids.to(self.model.device),
            return_dict=True,
        )
        deep = getattr(output, "deepstack_features", None) or []
        return [
            _Seen(grids[k : k + 1], features, tuple(level[k] for level in deep))
            for k, features in enumerate(output.pooler_output)
        ]

    def _cut(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Return the patches (number, numbers in a patch) of images, and their grids (n, 3)."""
        cut = self._images([prepare(image) for image in images], return_tensors="pt")
        return cut["pixel_values"], cut["image_grid_thw"]

    def _inputs(self, question: str, grids: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs but the pixels: each `<image>` mark is its image's tokens."""
        before, between, after = chat_string(question, self._system).split(IMAGE_MARK)
        tokens = [int(grid.prod()) // self._images.merge_size**2 for grid in grids]
        shown = [f"<|vision_start|>{IMAGE_TOKEN * number}<|vision_end|>" for number in tokens]
        text = f"{before}{shown[0]}{between}{shown[1]}{after}"
        ids = torch.tensor([self._tokenizer.encode(text, add_special_tokens=False).ids])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._image_id).int(),
            "image_grid_thw": grids,
        }
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _generate(self, question: Question, form: Form) -> str:
        """Return the answer in words, each token the most likely one."""
        patches, grids = self._cut([question.reference, question.test])
        inputs = self._inputs(question.text, grids)
        pixels = patches.to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, pixel_values=pixels, max_new_tokens=NEW_TOKENS[form])
        said = ids[0, inputs["input_ids"].shape[1] :].tolist()
        text: str = self._tokenizer.decode(
            [token for token in said if token != self._end], skip_special_tokens=False
        )
        return text


def _together(images: Sequence[_Seen]) -> Any:
    """Return the features of several images as the model gives them."""
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(image.features for image in images),
        deepstack_features=list(zip(*(image.deep for image in images), strict=True)),
    )


def _image_processor(folder: Path) -> Any:
    if (folder / "preprocessor_config.json").is_file():
        settings = read_config(folder, "preprocessor_config.json")
    else:
        settings = read_config(folder, "processor_config.json").get("image_processor", {})
    for key in ("patch_size", "merge_size", "image_mean", "image_std"):
        if not settings.get(key):
            raise JudgeError(f"the image processor's settings in {folder} have no {key}")
    return Qwen2VLImageProcessorPil.from_dict(settings)
