"""Pages of text as pictures, and queries of words that stand on them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 128
"""Pixels of a page, either way."""
MARGIN = 3
FONT_SIZE = 11
QUERY_WORDS = 4
PADDING = 0


@dataclass(frozen=True)
class Page:
    """One page: its picture and the words that a reader may ask for."""

    picture: Image.Image
    words: list[str]


def render(text: str) -> Page:
    """Return a page with as much of a text as fits."""
    picture = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)
    top, line, shown = MARGIN, "", []
    for word in text.split():
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=font) > SIDE - 2 * MARGIN:
            draw.text((MARGIN, top), line, font=font, fill=0)
            top, longer = top + FONT_SIZE + 1, word
            if top + FONT_SIZE > SIDE:
                line = ""
                break
        line = longer
        shown.append(word)
    draw.text((MARGIN, top), line, font=font, fill=0)
    return Page(picture, [word for word in map(plain, shown) if len(word) > 3])


def plain(word: str) -> str:
    """Return a word without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def pixels(pages: list[Page]) -> Tensor:
    """Return pictures as ``[pages, 3, SIDE, SIDE]``, black 1, white 0."""
    rows = [torch.frombuffer(bytearray(page.picture.tobytes()), dtype=torch.uint8) for page in pages]
    grey = 1 - torch.stack(rows).view(-1, 1, SIDE, SIDE).float() / 255
    return grey.expand(-1, 3, -1, -1).contiguous()


class Vocabulary:
    """Numbers for the words of all pages; 0 pads."""

    def __init__(self, pages: list[Page]) -> None:
        words = sorted({word for page in pages for word in page.words})
        self.numbers = {word: number for number, word in enumerate(words, start=1)}

    def __len__(self) -> int:
        return len(self.numbers) + 1

    def query(self, words: list[str]) -> Tensor:
        """Return the numbers of a query's words, ``[QUERY_WORDS]``."""
        numbers = [self.numbers[word] for word in words][:QUERY_WORDS]
        return torch.tensor(numbers + [PADDING] * (QUERY_WORDS - len(numbers)))


def ask(page: Page, seed: int) -> list[str]:
    """Return some of a page's words, others for other seeds."""
    words = sorted(set(page.words))
    return random.Random(seed).sample(words, min(QUERY_WORDS, len(words)))
