"""Qwen2.5-VL and Qwen3-VL as judges: the protocol's questions, another model.

The two images stand inline in the question, and are seen at their own size, as the model's image
processor cuts them into patches. As in `llava_onevision`, an image's features and the keys and
values of a prefix (the question up to the test image) are computed once; the rest of a question is
one forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    DynamicCache,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mars2.judges import JudgeError, Question, Verdict
from mars2.judges.answers import read_verdict, token_id, word_ids
from mars2.judges.images import image_digest, prepare
from mars2.judges.llava_checkpoint import load_tokenizer
from mars2.judges.prefix import Prefix, cache_argument
from mars2.judges.prompts import IMAGE_MARK, NEW_TOKENS, NO_WORDS, YES_WORDS, Form
from mars2.judges.recent import Recent
from mars2.judges.room import halving, memory_need, require_room
from mars2.judges.sources import find_model, read_config
from mars2.judges.weights import DTYPES, count_parameters, load_strictly, resolve, stored_weights

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


def judge_id(name: str, dtype: str) -> str:
    """Return the id of a judge, given its model's name and revision."""
    return f"{name} {dtype}"


def qwen_config(folder: Path) -> tuple[str, Any]:
    """Return the architecture in a folder, and its config.

    Raises:
        JudgeError: It is another one, or its config.json is missing or broken.
    """
    named = read_config(folder).get("architectures") or []
    for architecture in ARCHITECTURES:
        if architecture in named:
            try:
                return architecture, AutoConfig.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
                raise JudgeError(
                    f"{folder / 'config.json'} cannot be understood: {error}"
                ) from error
    raise JudgeError(
        f"{folder} holds {', '.join(map(str, named)) or 'no named architecture'}, another model "
        f"than this judge computes: it reads {' and '.join(ARCHITECTURES)}"
    )


@dataclass(frozen=True)
class _Seen:
    grid: Tensor  # (1, 3)
    features: Any  # as the model's `get_image_features` gives them
    positions: int


class QwenVlJudge:
    """Asks a Qwen-VL model.

    Args:
        model: One of `ARCHITECTURES`, for inference.
        image_processor: Cuts images into patches.
        tokenizer: With the tokens of the model's prompt.
        name: Name and revision.
        device: Where it computes.
        kept_positions: Most positions whose image features, and whose keys and values, are kept.
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
        self._seen: Recent[_Seen] = Recent(kept_positions, lambda seen: seen.positions)
        self._prefixes: Recent[Prefix] = Recent(kept_positions, lambda kept: kept.positions)
        # not the folder's, which may hold a repetition penalty and sampling
        end = token_id(tokenizer, "<|im_end|>", self.id)
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=end, pad_token_id=end
        )

    @classmethod
    def load(
        cls, source: str, *, dtype: str | None = None, device: str = "auto", layout: str = "anyres"
    ) -> "QwenVlJudge":
        """Return the judge whose weights lie in a folder or on the hub.

        Args:
            source: Folder, hub id, or hub id@revision.
            dtype: float32, float16 or bfloat16; None: float16 on a GPU, else float32.
            device: As torch names it; "auto": a GPU if there is one.
            layout: "anyres", the default of every judge: these models have one layout.

        Raises:
            JudgeError: Something of this is not there or does not fit.
        """
        if layout != "anyres":
            raise JudgeError(f"layout is {layout!r}; a Qwen-VL judge has one way to see images")
        dtype, device = resolve(dtype, device)
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
        with torch.inference_mode():
            return [
                halving(lambda one: [self._ask(one[0])], [question])[0] for question in questions
            ]

    def _ask(self, question: Question) -> Verdict:
        form = question.template.form
        return read_verdict(
            self._first_logits(question),
            form,
            yes=self._yes,
            no=self._no,
            tokenizer=self._tokenizer,
            dtype=self.model.dtype,
            generate=lambda: self._generate(question, form),
        )

    def _first_logits(self, question: Question) -> Tensor:
        """Return the logits (vocabulary,) of the first token of an answer."""
        reference, test = self._see(question.reference), self._see(question.test)
        inputs = self._inputs(question.text, torch.cat([reference.grid, test.grid]))
        # the test image begins the part that differs; its tokens are the last of their kind
        ids, start = inputs["input_ids"], self._test_start(inputs)
        positions, _ = self.model.model.get_rope_index(**inputs)  # (3, 1, positions)
        key = (question.text, image_digest(question.reference))
        prefix = self._prefixes.get(key)
        if prefix is None:
            cache = DynamicCache(config=self.model.config.text_config)
            self.model.model(
                input_ids=ids[:, :start],
                position_ids=positions[..., :start],
                mm_encoder_outputs={"image": reference.features},
                **{self._cache_argument: cache},
            )
            prefix = Prefix(cache, start)
            self._prefixes.put(key, prefix)
        output = self.model(
            input_ids=ids[:, start:],
            position_ids=positions[..., start:],
            mm_encoder_outputs={"image": test.features},
            logits_to_keep=1,
            **{self._cache_argument: prefix.rows(1)},
        )
        logits: Tensor = output.logits[0, -1]
        return logits

    def _test_start(self, inputs: Mapping[str, Tensor]) -> int:
        """Return where the test image's `<|vision_start|>` stands."""
        begin = token_id(self._tokenizer, "<|vision_start|>", self.id)
        return int((inputs["input_ids"][0] == begin).nonzero()[-1])

    def _see(self, image: Image.Image) -> _Seen:
        """Return what the language model gets of an image."""
        digest = image_digest(image)
        seen = self._seen.get(digest)
        if seen is None:
            patches, grid = self._cut(image)
            features = self.model.get_image_features(
                patches.to(self.model.device, self.model.dtype),
                grid.to(self.model.device),
                return_dict=True,
            )
            seen = _Seen(grid, features, int(grid.prod()) // self._images.merge_size**2)
            self._seen.put(digest, seen)
        return seen

    def _cut(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return an image's patches (number, numbers in a patch) and their grid (1, 3)."""
        cut = self._images([prepare(image)], return_tensors="pt")
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
        patches, grids = zip(
            *(self._cut(image) for image in (question.reference, question.test)), strict=True
        )
        inputs = self._inputs(question.text, torch.cat(grids))
        pixels = torch.cat(patches).to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, pixel_values=pixels, max_new_tokens=NEW_TOKENS[form])
        said = ids[0, inputs["input_ids"].shape[1] :].tolist()
        end = self.model.generation_config.eos_token_id
        text: str = self._tokenizer.decode(
            [token for token in said if token != end], skip_special_tokens=False
        )
        return text


def _image_processor(folder: Path) -> Any:
    if (folder / "preprocessor_config.json").is_file():
        settings = read_config(folder, "preprocessor_config.json")
    else:
        settings = read_config(folder, "processor_config.json").get("image_processor", {})
    for key in ("patch_size", "merge_size", "image_mean", "image_std"):
        if not settings.get(key):
            raise JudgeError(f"the image processor's settings in {folder} have no {key}")
    return Qwen2VLImageProcessorPil.from_dict(settings)
