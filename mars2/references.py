"""Reference images of subjects and styles: what generated images are compared with."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from benchmark_data.load import load_suite
from benchmark_data.references import file_digest, reference_paths
from mars2.files import read_image
from mars2.job import RunError, digest
from mars2.store import ImagesSpec, RunStore, Sample


class References:
    """The reference images of the concepts in a store, and what its styles are called.

    Attributes:
        files: Concept id -> reference images.
        phrases: Concept id -> a style's name in the judge's question.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]], phrases: Mapping[str, str]) -> None:
        self.files = files
        self.phrases = phrases
        self._images: dict[str, list[Image.Image]] = {}
        self._digests: dict[str, list[str]] = {}

    def images(self, concept: str) -> list[Image.Image]:
        """Return a concept's reference images, RGB."""
        if concept not in self._images:
            self._images[concept] = [read_image(path) for path in self.files[concept]]
        return self._images[concept]

    def inputs(self, sample: Sample) -> str:
        """Return 12 hex of all that a sample is compared with."""
        for concept in (sample.subject, sample.style):
            if concept not in self._digests:
                self._digests[concept] = [file_digest(path) for path in self.files[concept]]
        return digest(
            [
                self._digests[sample.subject],
                self._digests[sample.style],
                self.phrases[sample.style],
                sample.prompt,
            ]
        )[:12]


def find_references(store: RunStore, suite: str | None = None) -> References:
    """Return the references of a store's concepts, from its suite or from the folders given.

    Args:
        store: A run, or a scored folder of images.
        suite: Where the suite lies now; None: where it lay then.

    Raises:
        RunError: The suite has changed since.
        SuiteError: A reference image is not there, or not the file that the suite demands.
    """
    if isinstance(store.spec, ImagesSpec) and store.spec.references:
        files = {
            concept: [Path(os.path.normpath(store.folder / file)) for file in files]
            for concept, files in store.spec.references.items()
        }
        return References(files, store.spec.phrases)
    loaded = load_suite(suite or store.spec.suite)
    if loaded.revision != store.spec.suite_revision:
        raise RunError(
            f"{store.folder} was made with revision {store.spec.suite_revision} of suite "
            f"{store.spec.suite}, this is {loaded.name} {loaded.revision}: give the suite it was "
            "made with by --suite, or make it again in a new folder"
        )
    concepts = dict.fromkeys(
        concept for sample in store.samples() for concept in (sample.subject, sample.style)
    )
    known = loaded.concepts
    return References(
        {concept: reference_paths([known[concept]], loaded.name) for concept in concepts},
        {concept: known[concept].question_style for concept in concepts},
    )
