"""Expert `text`: writing in the image, for instructions that ask for writing or quote it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from experts.base import Candidate, Expert, ExpertOptions, Placement, Request
from experts.lexicon import colour_share, read_phrase, to_lab, word_fit
from experts.refine import enlarge, refine, shrink, tidy
from pipeline.masks import mask_box

_ASKS = re.compile(
    r"\b(?:says?|saying|said|reads?|reading|written|writes?|writing|texts?|words?|letters?|lettering|signs?|"
    r"labels?|labell?ed|titles?|titled|entitled|numbers?|numerals?|digits?|names?|named|brands?|logos?|spells?|"
    r"spelled|caption|inscription|printed|headline|subtitle|slogan|what (?:is the )?time)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"“”«»]([^\"“”«»]{1,80})[\"“”«»]|(?:^|\s)['‘]([^'’]{2,80})['’](?:\W|$)")
_UPPER_CASE = re.compile(r"\b[A-Z][A-Z0-9&-]+(?: [A-Z0-9&-]{2,})*\b")
_NOT_QUOTED = {"OK", "TV", "VQA", "USER", "ASSISTANT", "A", "I", "THE", "YES", "NO", "NOT", "DO", "OR", "AND"}


class TextOptions(ExpertOptions):
    """Options of the expert `text`."""

    confidence: float = Field(0.5, ge=0, le=1)
    """Least confidence of the recogniser at which a line of writing counts."""
    threads: int = Field(1, ge=1)
    """CPU threads of ONNX Runtime per worker."""


@dataclass(frozen=True, eq=False)
class _Line:
    text: str
    confidence: float
    mask: np.ndarray


class _Page:
    """The lines of writing of one image, and what they are written on."""

    def __init__(self, image: np.ndarray, small: np.ndarray, lines: list[_Line]) -> None:
        self.lines = lines
        self._size = image.shape[:2]
        self._small = small
        self.smooth = cv2.bilateralFilter(small, 5, 25, 3)
        self._lab = to_lab(self.smooth)

    @property
    def centres(self) -> list[tuple[float, float]]:
        """x, y as shares of width and height."""
        boxes = np.array([mask_box(line.mask) for line in self.lines])
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 / self._size[::-1]
        return [(float(x), float(y)) for x, y in middle]

    def around(self, line: _Line) -> np.ndarray:
        """Bool at working size: the surroundings of a line, about as far as its writing is high."""
        reach = max(3, round(np.sqrt(line.mask.mean() * self._small.shape[0] * self._small.shape[1]) / 2))
        return self._ring(self._shrunk(line), reach)

    def surface(self, line: _Line) -> np.ndarray | None:
        """The even surface a line is written on, bool at full size: what is connected to the line and has the colour
        around it. Where that is no more than a label, what the label is on."""
        box = self._shrunk(line)
        rough = self._grown(box)
        if rough is not None and rough.sum() < 2.5 * box.sum():
            body = self._grown(rough)
            rough = rough if body is None else body
        return None if rough is None else enlarge(refine(self._small, rough), *self._size)

    def _grown(self, inner: np.ndarray) -> np.ndarray | None:
        ring = self._ring(inner, 3)
        if not ring.any():
            return None
        distance = np.linalg.norm((self._lab - np.median(self._lab[ring], axis=0)) * (0.5, 1, 1), axis=2)
        joined = ((distance < _EVEN) | inner | ring).astype(np.uint8)
        labels = cv2.connectedComponents(joined, connectivity=4)[1]
        grown = tidy(labels == labels[inner].max())
        return grown if 1.2 * inner.sum() < grown.sum() < 0.3 * grown.size else None

    def _shrunk(self, line: _Line) -> np.ndarray:
        small = cv2.resize(line.mask.astype(np.float32), self._small.shape[1::-1], interpolation=cv2.INTER_AREA)
        return small >= min(0.3, float(small.max()))

    @staticmethod
    def _ring(inner: np.ndarray, reach: int) -> np.ndarray:
        kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        return (cv2.dilate(inner.astype(np.uint8), kernel) > 0) & ~inner


class Text(Expert):
    """Detection and recognition by RapidOCR's PP-OCR models, which ship in its wheel. A quoted or upper-case string
    selects the line it matches, and the surface that line is written on; a question about writing gets all lines
    together, then each alone."""

    summary = "writing: the line that matches a quoted string, else all lines; OCR by RapidOCR (PP-OCR)"
    limits = "only where the instruction asks for writing or quotes it; Latin and Chinese script; no handwriting"
    needs = ("rapidocr", "onnxruntime")
    Options = TextOptions
    options: TextOptions

    def __init__(self, options: TextOptions, placement: Placement | None = None) -> None:
        import rapidocr

        super().__init__(options, placement)
        # With the paths given, RapidOCR never compares, mends or downloads a model file.
        models = Path(rapidocr.__file__).parent / "models"
        self._ocr: Any = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,
                "Global.text_score": options.confidence,
                "Det.limit_type": "max",
                "Det.limit_side_len": _LONG,
                "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
                "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
                "EngineConfig.onnxruntime.intra_op_num_threads": options.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return f"text-3+opencv-{cv2.__version__}+rapidocr-{version('rapidocr')}+onnxruntime-{version('onnxruntime')}"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        small = shrink(image)
        if small is None or not any(_applies(request) for request in requests):
            return [[] for _ in requests]
        page = _Page(image, small, self._read(image))
        return [_select(page, request) if page.lines and _applies(request) else [] for request in requests]

    def _read(self, image: np.ndarray) -> list[_Line]:
        height, width = image.shape[:2]
        scale = min(max(1.0, _SHORT / min(height, width)), _LONG / max(height, width))
        size = (round(width * scale), round(height * scale))
        result = self._ocr(cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_LINEAR))
        if result.boxes is None:
            return []
        lines = []
        for corners, text, confidence in zip(result.boxes, result.txts, result.scores, strict=True):
            mask = np.zeros(image.shape[:2], np.uint8)
            cv2.fillPoly(mask, [np.round(corners / scale).astype(np.int32)], 1)
            if mask.any():
                lines.append(_Line(text, float(confidence), mask > 0))
        return lines


_SHORT, _LONG = 480, 1600
"""The detector sees small writing better enlarged: short side, in pixels, at least, and long side at most."""
_MATCH = 0.6
"""Least similarity at which a quoted string is a line's, or a line fits the words."""
_MOST = 4
_EVEN = 11.0
"""CIELAB distance, lightness halved, within which a surface is of one colour."""
_CARRIER = re.compile(r"\b(?:that|which|with|says?|labell?ed|titled|named|marked|reading)\b", re.IGNORECASE)
"""Words after which a quotation describes an object."""


def _applies(request: Request) -> bool:
    return bool(request.phrases) and bool(_ASKS.search(request.instruction) or _quotes(request.instruction))


def _quotes(instruction: str) -> list[str]:
    quoted = [first or second for first, second in _QUOTED.findall(instruction)]
    # An instruction in capitals altogether quotes nothing.
    if not quoted and not instruction.isupper():
        quoted = [text for text in _UPPER_CASE.findall(instruction) if text not in _NOT_QUOTED]
    return quoted


def _select(page: _Page, request: Request) -> list[Candidate]:
    quotes = _quotes(request.instruction)
    fits = _quote_fits(page.lines, quotes) if quotes else _word_fits(page, request.phrases)
    ranked = sorted(zip(page.lines, fits, strict=True), key=lambda pair: -pair[1] * pair[0].confidence)
    best, fit = ranked[0]
    if fit >= _MATCH:
        # "the book that says ATLAS" means the book, "the word ATLAS" the word: often only the reader can tell.
        carrier = 0.9 if _CARRIER.search(request.instruction) else 0.7
        surface = page.surface(best)
        chosen = [(best.mask, 0.8 * best.confidence * fit)]
        chosen += [] if surface is None else [(surface, carrier * best.confidence * fit)]
        chosen += [(line.mask, 0.4 * line.confidence * other) for line, other in ranked[1:] if other >= _MATCH]
    else:
        # A quote that no line matches may be misread, more likely it is not there.
        trust = 0.2 if quotes else 0.7
        confidence = float(np.mean([line.confidence for line in page.lines]))
        chosen = [(np.logical_or.reduce([line.mask for line in page.lines]), trust * confidence)]
        if len(page.lines) > 1:
            chosen += [(line.mask, 0.7 * trust * line.confidence) for line, _ in ranked]
    chosen = sorted(chosen, key=lambda pair: -pair[1])[:_MOST]
    return [Candidate(mask, score, request.instruction) for mask, score in chosen]


def _quote_fits(lines: Sequence[_Line], quotes: list[str]) -> list[float]:
    return [max(_similarity(quote, line.text) for quote in quotes) for line in lines]


def _word_fits(page: _Page, phrases: list[str]) -> list[float]:
    """How well each line fits the colour, size and position words ("the label on the green bottle"), in [0, 1]; all
    0 where no phrase has any."""
    fits = np.zeros(len(page.lines))
    areas = [float(line.mask.sum()) for line in page.lines]
    for words in map(read_phrase, phrases):
        if words.colours and not words.assumed:
            share = colour_share(page.smooth, words.colours)
            colour = np.array([share[page.around(line)].mean() for line in page.lines])
            fits = np.maximum(fits, colour / max(0.3, colour.max()) * word_fit(words, areas, page.centres))
        elif words.placed or words.size:
            fits = np.maximum(fits, word_fit(words, areas, page.centres))
    return fits.tolist()


def _similarity(quote: str, text: str) -> float:
    """Similarity in [0, 1] of a quote to the most similar run of as many words of a line, ignoring case."""
    wanted, words = quote.lower().split(), text.lower().split()
    runs = [" ".join(words[k : k + len(wanted)]) for k in range(max(1, len(words) - len(wanted) + 1))]
    quote = " ".join(wanted)
    return max(SequenceMatcher(None, quote, run, autojunk=False).ratio() for run in [*runs, "".join(words)])
