"""Studies: is the measure right, and what do the methods do? A file a study, and what they share.

Each gives tables, a figure and a paragraph (`result`); `mars2 study NAME` runs it.
"""

from collections.abc import Mapping

STUDIES: Mapping[str, str] = {
    "humans": "Do people agree with the metrics, and how closely could they?",
    "agreement": "Do judges agree with each other, and with what is known?",
    "failures": "What fails: which pairs, which of the two parts, and how far from training?",
    "cost": "What does a method cost as a whole, and from how many pairs on does it pay?",
    "layers": "Where do subject and style dominate: coefficients by layer, block and projection?",
    "prompts": "Does the judge's answer hang on the wording, the order or the picture's quality?",
    "scaling": "Does a hypernetwork get better with more train pairs, or more different ones?",
    "columns": "Do columns need coefficients of their own, and alone?",
    "diversity": "How well does the train split cover the test split?",
}
"""Name -> the question that it answers."""
