"""Data: every chapter.

Small data sets that need no network: points along a curve, two real ones that come with
scikit-learn, and the sentences of a small grammar with their translations. Real translations
and pictures of clothes are read from a folder or downloaded. Small trained models come with
the package.
"""

from attn_course.data.batches import TranslationBatch, TranslationBatches, translation_batches
from attn_course.data.checkpoints import pretrained, save_pretrained
from attn_course.data.corpora import multi30k, preprocess, tatoeba
from attn_course.data.fashion import FASHION_CLASSES, FashionMNIST, fashion_mnist
from attn_course.data.images import ImageBatches, image_batches, random_affine
from attn_course.data.letters import LetterBatches, Letters, delayed, letters
from attn_course.data.lines import NUMERALS, LineBatches, Lines, Stage, digit_lines
from attn_course.data.pairs import Pair, Translations
from attn_course.data.phrasebook import LENGTH_BINS, SIGNPOST, SLICES, grammar
from attn_course.data.printed import printed_lines
from attn_course.data.real import DIABETES_FEATURES, Diabetes, Digits, diabetes, digits
from attn_course.data.synthetic import SinePoints, sine_function, sine_points
from attn_course.data.vocabulary import Vocabulary, detokenize, tokenize

__all__ = [
    "DIABETES_FEATURES",
    "FASHION_CLASSES",
    "LENGTH_BINS",
    "NUMERALS",
    "SIGNPOST",
    "SLICES",
    "Diabetes",
    "Digits",
    "FashionMNIST",
    "ImageBatches",
    "LetterBatches",
    "Letters",
    "LineBatches",
    "Lines",
    "Pair",
    "SinePoints",
    "Stage",
    "TranslationBatch",
    "TranslationBatches",
    "Translations",
    "Vocabulary",
    "delayed",
    "detokenize",
    "diabetes",
    "digit_lines",
    "digits",
    "fashion_mnist",
    "grammar",
    "image_batches",
    "letters",
    "multi30k",
    "preprocess",
    "pretrained",
    "printed_lines",
    "random_affine",
    "save_pretrained",
    "sine_function",
    "sine_points",
    "tatoeba",
    "tokenize",
    "translation_batches",
]
